"""The order of losses: what it promises about their values, its shape, its picture, and how many losses there are."""

import itertools
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.symbolic import lattice
from jaxalign.losses.symbolic.compilation import link_loss, log_ratio
from jaxalign.losses.symbolic.drawing import BOX_WIDTH, hasse_diagram
from jaxalign.losses.symbolic.named import SINGLE_MODEL, get_loss
from jaxalign.losses.symbolic.structures import Preference, from_verdicts, parse_structure, preference_of

NAMES = ("chosen", "rejected")


def test_the_sixteen_are_a_cube_of_four_dimensions():
    preferences = lattice.single_model_losses()
    assert preferences == [loss.preference for loss in SINGLE_MODEL.values()]
    order = lattice.entailment(preferences)
    # loses < both, excluded < wins is the order of two bits
    bits = {"loses": 0b00, "both": 0b01, "excluded": 0b10, "wins": 0b11}
    codes = [bits[p.verdicts[0]] << 2 | bits[p.verdicts[3]] for p in preferences]
    np.testing.assert_array_equal(order, [[a & b == a for b in codes] for a in codes])
    edges = lattice.cover_edges(order)
    assert len(edges) == 32
    assert all((codes[i] ^ codes[j]).bit_count() == 1 for i, j in edges)
    assert lattice.heights(order) == [code.bit_count() for code in codes]


def test_some_published_edges():
    names = list(SINGLE_MODEL)
    edges = lattice.cover_edges(lattice.entailment([loss.preference for loss in SINGLE_MODEL.values()]))
    edges = {(names[i], names[j]) for i, j in edges}
    assert {
        ("ceunl", "l3"),
        ("l3", "orpo"),
        ("cpo", "ccpo"),
        ("orpo", "ccpo"),
        ("ccpo", "uncpo"),
        ("ce", "bcpo"),
    } <= edges
    assert ("cpo", "orpo") not in edges


def test_entailment_orders_the_losses_for_all_probabilities():
    """1,000 random weights, with some at the ends; every falling link; no violation beyond rounding."""
    random = np.random.default_rng(1)
    log_probs = -random.exponential(size=(2, 1000)) * 10.0 ** random.integers(-3, 4, (2, 1000))
    preferences = lattice.single_model_losses()
    with jax.enable_x64(True):
        arrays = dict(zip(NAMES, map(jnp.asarray, log_probs), strict=True))
        rho = jnp.stack([log_ratio(preference, arrays) for preference in preferences])
        losses = {link: np.asarray(link_loss(rho, link)) for link in ("logistic", "hinge", "perceptron")}
    order = lattice.entailment(preferences)
    assert order.sum() == 81  # 3^4
    slack = 1e-12 * np.abs(rho).max(axis=0)
    for loss in losses.values():
        violations = order[..., None] & (loss[:, None] < loss[None] - slack)
        assert violations.sum() == 0
    unordered = ~(order | order.T)
    differ = losses["logistic"][:, None] < losses["logistic"][None] - slack
    assert (differ.any(-1) & differ.swapaxes(0, 1).any(-1))[unordered].all(), "neither is below the other"


def test_entailment_of_the_core_is_not_enough():
    """cunl has the stronger core, and qfunl has not the larger ratio everywhere."""
    first, second = get_loss("cunl").preference, get_loss("qfunl").preference
    assert not lattice.entails(first, second)
    assert not lattice.entails(second, first)


def test_entailment_across_variables():
    chosen = preference_of(parse_structure("chosen"))
    weaker = preference_of(parse_structure("reference_chosen -> chosen"))
    assert lattice.entails(chosen, weaker)
    assert not lattice.entails(weaker, chosen)


def test_equivalent_losses_have_no_lattice():
    same = [get_loss("cpo").preference] * 2
    with pytest.raises(ValueError, match="0 and 1 entail each other"):
        lattice.cover_edges(lattice.entailment(same))


def test_how_many_losses_there_are():
    assert len(set(lattice.enumerate_losses(("chosen",)))) == 16
    assert len(set(lattice.enumerate_losses(NAMES))) == 256
    assert sum(1 for _ in lattice.enumerate_losses(NAMES, degenerate=False)) == 15**2
    first = list(itertools.islice(lattice.enumerate_losses(("a", "b", "c", "d")), 3))
    assert all(isinstance(p, Preference) and len(p.winning) == 16 for p in first)


def test_verdicts_and_tables_are_the_same():
    for preference in lattice.enumerate_losses(NAMES):
        assert from_verdicts(NAMES, preference.verdicts) == preference
    with pytest.raises(ValueError, match="unknown verdict 'draws'"):
        from_verdicts(("chosen",), ("wins", "draws"))
    with pytest.raises(ValueError, match="4 verdicts are not those of 1"):
        from_verdicts(("chosen",), ("wins",) * 4)


def test_the_picture_has_all_elements_and_lines_that_lead_upwards():
    labels = [("bottom", "a < b"), ("left", ""), ("right", ""), ("top & all", "")]
    svg = hasse_diagram(labels, [0, 1, 1, 2], [(0, 1), (0, 2), (1, 3), (2, 3)], [0, 1, 2, 3], list("wxyz"), "title <1>")
    root = ET.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    lines = list(root.iter(f"{space}line"))
    assert len(lines) == 4
    assert all(float(line.get("y2")) < float(line.get("y1")) for line in lines)
    boxes = [group.find(f"{space}rect") for group in root.iter(f"{space}g")]
    corners = {(float(box.get("x")), float(box.get("y"))) for box in boxes}
    assert len(corners) == 4
    width, height = float(root.get("width")), float(root.get("height"))
    assert all(0 <= x <= width - BOX_WIDTH and 0 <= y <= height for x, y in corners)
    assert {"bottom", "a < b", "top & all", "title <1>"} <= {text.text for text in root.iter(f"{space}text")}
