"""Round trips: tables -> formulas -> tables, tables -> ratio -> tables, and ratios as numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.errors import UserError
from jaxalign.losses.symbolic.decompilation import (
    decompile_ratio,
    formula_of_polynomial,
    polynomial,
    ratio,
    reference_form,
    structure_of,
)
from jaxalign.losses.symbolic.lattice import enumerate_losses
from jaxalign.losses.symbolic.named import NAMED_LOSSES, SINGLE_MODEL, get_loss, names_of
from jaxalign.losses.symbolic.structures import Preference, ordered, parse_structure, preference_of
from jaxalign.losses.symbolic.tables import truth_table
from tests.losses.symbolic.random_formulas import NAMES, tables, weighted_count


def number(text, **probabilities):
    """A polynomial or a ratio as Python computes it."""
    return eval(text, {"__builtins__": {}}, probabilities)


def round_trip(preference):
    structure = parse_structure(str(structure_of(preference)))
    assert preference_of(structure, preference.variables) == preference


def test_all_two_variable_structures_round_trip():
    """Through the text of the formula, for all 4^4 pairs of tables."""
    preferences = list(enumerate_losses(NAMES[:2]))
    assert len(set(preferences)) == 256
    for preference in preferences:
        round_trip(preference)


def test_a_thousand_four_variable_structures_round_trip():
    random = np.random.default_rng(0)
    for winning, losing in random.integers(0, 2, (1000, 2, 16)).astype(bool).tolist():
        round_trip(Preference(NAMES, tuple(winning), tuple(losing)))


def test_every_two_variable_ratio_is_the_ratio_of_counts_and_reads_back():
    a, b = 0.3, 0.8
    for preference in enumerate_losses(NAMES[:2], degenerate=False):
        text = ratio(preference)
        expected = weighted_count(preference.winning, (a, b)) / weighted_count(preference.losing, (a, b))
        assert number(text, chosen=a, rejected=b) == pytest.approx(expected, rel=1e-12)
        structure = decompile_ratio(text)
        assert preference_of(structure, NAMES[:2]) == preference


@given(st.integers(1, 4).flatmap(tables), st.tuples(*[st.floats(0.01, 0.99)] * 4))
def test_polynomials_are_counts_and_read_back(table, probabilities):
    names = NAMES[: len(table).bit_length() - 1]
    text = polynomial(table, names)
    values = dict(zip(names, probabilities, strict=False))
    assert number(text, **values) == pytest.approx(weighted_count(table, list(values.values())), abs=1e-9)
    assert truth_table(formula_of_polynomial(text), names) == table


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ce", "chosen / (1 - chosen)"),
        ("ceunl", "chosen * (1 - rejected) / (rejected + (1 - chosen) * (1 - rejected))"),
        ("l20", "(1 - rejected) / (rejected + (1 - chosen) * (1 - rejected))"),
        ("cunl", "chosen * (1 - rejected) / rejected"),
        ("funl", "(1 - rejected) / rejected"),
        ("sce", "chosen / (1 - chosen * (1 - rejected))"),
        ("l5", "(1 - rejected * (1 - chosen)) / (1 - chosen * (1 - rejected))"),
        ("cpo", "chosen / rejected"),
        ("l14", "(1 - rejected * (1 - chosen)) / rejected"),
        ("l3", "chosen * (1 - rejected) / (1 - chosen)"),
        ("qfunl", "(1 - rejected) / (1 - chosen)"),
        ("orpo", "chosen * (1 - rejected) / (rejected * (1 - chosen))"),
        ("cfunl", "(1 - rejected) / (rejected * (1 - chosen))"),
        ("bcpo", "(1 - rejected * (1 - chosen)) / (1 - chosen)"),
        ("ccpo", "chosen / (rejected * (1 - chosen))"),
        ("uncpo", "(1 - rejected * (1 - chosen)) / (rejected * (1 - chosen))"),
        ("dpo", "chosen * reference_rejected / (rejected * reference_chosen)"),
        ("dpop", "chosen * chosen' * reference_rejected / (reference_chosen * reference_chosen' * rejected)"),
    ],
)
def test_the_published_ratios_are_those_of_the_formulas(name, expected):
    preference = get_loss(name).preference
    assert preference_of(decompile_ratio(expected), preference.variables) == preference


@pytest.mark.parametrize("name", NAMED_LOSSES)
def test_named_formulas_are_as_short_as_decompiled_ones(name):
    loss = get_loss(name)
    assert len(loss.formula) <= len(str(structure_of(loss.preference)))
    assert name in names_of(loss.preference)


def test_core_formulas_of_the_sixteen():
    """By the verdicts on "both valid" and "neither valid"."""
    for loss in SINGLE_MODEL.values():
        both, _, _, neither = loss.preference.verdicts
        if both == neither == "loses":
            core = "chosen & ~rejected"
        elif both == "loses":
            core = "~rejected"
        else:
            core = "chosen" if neither == "loses" else "rejected -> chosen"
        assert str(structure_of(loss.preference).core) == core


def test_the_reference_form_of_cpo_is_dpo():
    assert reference_form(get_loss("cpo").preference) == get_loss("dpo").preference


@pytest.mark.parametrize("name", SINGLE_MODEL)
def test_a_reference_form_subtracts_the_plain_reference_ratio(name):
    preference = get_loss(name).preference
    referenced = reference_form(preference)
    p = {"chosen": 0.3, "rejected": 0.8, "reference_chosen": 0.45, "reference_rejected": 0.15}
    plain = number(ratio(preference), **p)
    assert number(ratio(referenced), **p) == pytest.approx(plain * 0.15 / 0.45, rel=1e-12)
    top, bottom = (f"({part})" for part in structure_texts(preference))
    core = f"{bottom} & reference_chosen -> {top} & reference_rejected"
    expected = truth_table(parse_structure(core).core, referenced.variables)
    assert truth_table(structure_of(referenced).core, referenced.variables) == expected


def structure_texts(preference):
    """Formulas of the winning and of the losing worlds."""
    names = preference.variables
    return tuple(str(formula_of_polynomial(polynomial(table, names))) for table in preference[1:])


def test_only_one_reference():
    with pytest.raises(ValueError, match="depends on reference_chosen already"):
        reference_form(get_loss("dpo").preference)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("chosen * chosen / rejected", r"'chosen \* chosen' is not multilinear: 'chosen'"),
        ("(chosen + rejected) / chosen", "summands of 'chosen \\+ rejected' are not disjoint"),
        ("(chosen - rejected) / chosen", "'rejected' does not entail 'chosen'"),
        ("chosen ** 2 / rejected", r"'chosen \*\* 2' is no term"),
        ("2 * chosen / rejected", "'2' is no term"),
        ("chosen", "has not the form top / bottom"),
        ("chosen / rejected * chosen", "has not the form top / bottom"),
        ("chosen / rejected / chosen", "'chosen / rejected' is no term"),
        ("chosen / (rejected", "cannot read the polynomial"),
        ("True / chosen", "'True' is no term"),
        ("(" * 3000 + "a / b", "cannot read the polynomial"),
    ],
)
def test_what_is_no_ratio_of_formulas_is_named(text, words):
    with pytest.raises(UserError, match=words):
        decompile_ratio(text)


def test_differences_are_more_than_complements():
    formula = formula_of_polynomial("chosen - chosen * rejected")
    assert truth_table(formula, NAMES[:2]) == truth_table(parse_structure("chosen & ~rejected").core, NAMES[:2])


def test_more_variables_change_no_meaning():
    preference = get_loss("orpo").preference
    wide = preference.over(ordered((*NAMES, "other")))
    p = (0.3, 0.8, 0.4, 0.6, 0.7)
    assert weighted_count(wide.winning, p) == pytest.approx(weighted_count(preference.winning, p[:2]))
    assert preference_of(structure_of(wide)) == preference, "what makes no difference is not in the formula"
    with pytest.raises(ValueError, match="depends on rejected"):
        preference.over(("chosen",))
