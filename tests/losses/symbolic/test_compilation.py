"""Compiled losses against the closed forms of the losses they stand for, values and gradients, in double precision."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import objective
from jaxalign.errors import UserError
from jaxalign.losses.symbolic.compilation import Link, compile_structure, link_loss, log_ratio, symbolic_loss
from jaxalign.losses.symbolic.named import NAMED_LOSSES, get_loss
from jaxalign.losses.symbolic.structures import parse_structure, preference_of

# Ordinary pairs, equal ones, and the ends of the scale (-1e4 nats, almost certain, far apart).
CHOSEN = np.array([-0.5, -3.0, -1.25, -1e4, -1e4, -2.0, -1e-3, -80.0, -0.1])
REJECTED = np.array([-2.0, -0.7, -1.25, -1e4, -9990.0, -1e4, -5.0, -1e-3, -0.1])
REFERENCE_CHOSEN = np.array([-1.0, -2.5, -1.25, -9995.0, -1e4, -3.0, -0.2, -70.0, -0.1])
REFERENCE_REJECTED = np.array([-1.5, -1.0, -1.25, -1e4, -1e4, -9000.0, -4.0, -0.5, -0.2])
ARRAYS = {
    "chosen": CHOSEN,
    "rejected": REJECTED,
    "reference_chosen": REFERENCE_CHOSEN,
    "reference_rejected": REFERENCE_REJECTED,
}


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def logistic(z):
    """-log sigmoid(z), and its slope."""
    return np.logaddexp(0, -z), -sigmoid(-z)


def relu(x):
    return np.maximum(x, 0), (x > 0).astype(float)


def log1mexp(x):
    return np.where(x > -0.7, np.log(-np.expm1(x)), np.log1p(-np.exp(x)))


def dpo(beta=0.1):
    loss, slope = logistic(beta * (CHOSEN - REFERENCE_CHOSEN - REJECTED + REFERENCE_REJECTED))
    return loss, beta * slope, -beta * slope


def cpo(beta=0.1, weight=1.0):
    loss, slope = logistic(beta * (CHOSEN - REJECTED))
    return loss - weight * CHOSEN, beta * slope - weight, -beta * slope


def orpo():
    odds_chosen, odds_rejected = CHOSEN - log1mexp(CHOSEN), REJECTED - log1mexp(REJECTED)
    loss, slope = logistic(odds_chosen - odds_rejected)
    return loss, slope / -np.expm1(CHOSEN), -slope / -np.expm1(REJECTED)


def ipo(beta=0.1):
    distance = CHOSEN - REFERENCE_CHOSEN - REJECTED + REFERENCE_REJECTED - 1 / (2 * beta)
    return distance**2, 2 * distance, -2 * distance


def slic():
    loss, slope = relu(1 - CHOSEN + REJECTED)
    return loss - 0.1 * CHOSEN, -slope - 0.1, slope


def rrhf():
    loss, slope = relu(REJECTED - CHOSEN)
    return loss - CHOSEN, -slope - 1, slope


def dpop(beta=0.3):
    log_ratio = CHOSEN - REFERENCE_CHOSEN
    loss, slope = logistic(beta * (2 * log_ratio - REJECTED + REFERENCE_REJECTED))
    return loss, 2 * beta * slope, -beta * slope


def ce():
    return -CHOSEN, -np.ones_like(CHOSEN), np.zeros_like(CHOSEN)


def ceunl():
    return -CHOSEN - log1mexp(REJECTED), -np.ones_like(CHOSEN), np.exp(REJECTED) / -np.expm1(REJECTED)


def uncpo():
    inverse = np.exp(REJECTED) * -np.expm1(CHOSEN)  # b (1 - a)
    slope = np.exp(REJECTED) / (1 - inverse)
    return -np.log1p(-inverse), -slope * np.exp(CHOSEN), slope * -np.expm1(CHOSEN)


def value_and_gradients(loss, arrays, **options):
    """Per pair, by summing over the batch one pair at a time."""

    def total(arrays, mask):
        return loss(mask=mask, **arrays, **options).total

    masks = jnp.eye(len(CHOSEN), dtype=arrays["chosen"].dtype)
    arrays = {name: jnp.asarray(x) for name, x in arrays.items()}
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(total), (None, 0)))(arrays, masks)
    return values, {name: np.diagonal(gradient) for name, gradient in gradients.items()}


def named(name, **changes):
    options = get_loss(name).options | {"log_prob": "sequence-sum"} | changes
    return lambda **arrays: symbolic_loss(**options, **arrays)


@pytest.mark.parametrize("closed_form", [dpo, cpo, orpo, ipo, slic, rrhf, dpop, ce, ceunl, uncpo])
def test_named_losses_are_their_closed_forms(closed_form):
    with jax.enable_x64(True):
        loss, gradients = value_and_gradients(named(closed_form.__name__), ARRAYS)
    expected = closed_form()
    np.testing.assert_allclose(loss, expected[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(gradients["chosen"], expected[1], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(gradients["rejected"], expected[2], rtol=1e-9, atol=1e-9)
    for name in ("reference_chosen", "reference_rejected"):
        np.testing.assert_array_equal(gradients[name], 0)


def test_nothing_is_nan_in_single_precision():
    """All named losses in one sum, through which a NaN of any of them would come."""
    arrays = {key: jnp.float32(x) for key, x in ARRAYS.items()}
    arrays["chosen"] = arrays["chosen"].at[0].set(0)  # probability 1
    arrays["rejected"] = arrays["rejected"].at[1].set(0)

    def totals(arrays):
        return jnp.stack([named(name)(mask=jnp.ones(len(CHOSEN)), **arrays).total for name in NAMED_LOSSES])

    values, gradients = jax.jit(lambda x: (totals(x), jax.grad(lambda x: totals(x).sum())(x)))(arrays)
    assert values.shape == (22,)
    assert np.isfinite(values).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_links(beta):
    rho = np.array([-3.0, 0.0, 0.05, 0.7, 1e4, -1e4])
    with jax.enable_x64(True):
        found = {link: link_loss(jnp.asarray(rho), link, beta) for link in get_args(Link)}
    np.testing.assert_allclose(found["logistic"], np.logaddexp(0, -beta * rho))
    np.testing.assert_allclose(found["squared"], (rho - 0.5 / beta) ** 2)
    np.testing.assert_allclose(found["hinge"], np.maximum(0, beta - rho))
    np.testing.assert_allclose(found["perceptron"], np.maximum(0, -rho))


def test_kinks_have_gradient_zero():
    assert float(jax.grad(lambda rho: link_loss(rho, "hinge", 1.0))(1.0)) == 0
    assert float(jax.grad(lambda rho: link_loss(rho, "perceptron"))(0.0)) == 0


def test_simpo_is_dpo_with_a_constant_reference():
    """log p(reference) of the rejected completion is -gamma / beta per token."""
    beta, gamma = 2.0, 0.5
    lengths = np.array([3.0, 5, 2, 4, 8, 1, 7, 6, 9]), np.array([2.0, 5, 9, 4, 8, 1, 3, 6, 9])
    constants = {"reference_chosen": np.zeros_like(CHOSEN), "reference_rejected": -gamma / beta * lengths[1]}
    with jax.enable_x64(True):
        result = symbolic_loss(
            **get_loss("simpo").options,
            mask=jnp.ones_like(CHOSEN),
            chosen=jnp.asarray(CHOSEN),
            rejected=jnp.asarray(REJECTED),
            chosen_length=jnp.asarray(lengths[0]),
            rejected_length=jnp.asarray(lengths[1]),
            **constants,
        )
        shifted = symbolic_loss(
            formula=get_loss("cpo").formula,
            beta=beta,
            log_prob="sequence-mean",
            shift=-gamma / beta,
            mask=jnp.ones_like(CHOSEN),
            chosen=jnp.asarray(CHOSEN),
            rejected=jnp.asarray(REJECTED),
            chosen_length=jnp.asarray(lengths[0]),
            rejected_length=jnp.asarray(lengths[1]),
        )
    margin = CHOSEN / lengths[0] - REJECTED / lengths[1]
    expected = np.logaddexp(0, -(beta * margin - gamma)).sum()
    assert float(result.total) == pytest.approx(expected, rel=1e-12)
    assert float(shifted.total) == pytest.approx(expected, rel=1e-12)


def test_the_policy_at_its_reference_has_loss_log_2():
    pairs = {"chosen": CHOSEN[:4], "rejected": REJECTED[:4]}
    pairs |= {f"reference_{name}": x for name, x in pairs.items()}
    result = symbolic_loss(**get_loss("dpo").options, mask=np.ones(4), **pairs)
    assert float(objective.loss(result)) == pytest.approx(np.log(2), abs=1e-6)
    assert float(result.metrics["margin"][0]) == 0


def test_weights_and_empty_completions():
    """A mask weighs pairs, and a pair with an empty completion has no weight."""
    mask = np.array([2.0, 0.5, 1.0])
    lengths = {"chosen_length": np.array([3, 0, 2]), "rejected_length": np.array([1, 4, 2])}
    pairs = {name: x[:3].astype(np.float32) for name, x in ARRAYS.items()}
    result = symbolic_loss(formula="rejected -> chosen", mask=mask, **pairs, **lengths)
    expected = uncpo()[0][:3]
    assert float(result.weight) == 3
    assert float(result.total) == pytest.approx(2 * expected[0] + expected[2], rel=1e-5)
    satisfied = 1 - np.exp(REJECTED[:3]) * -np.expm1(CHOSEN[:3])  # the loss is the semantic loss -log P(formula)
    means = objective.metric_means(result.metrics)
    assert float(means["satisfaction"]) == pytest.approx((2 * satisfied[0] + satisfied[2]) / 3, rel=1e-5)
    assert float(means["accuracy"]) == pytest.approx(np.average(satisfied[[0, 2]] > 0.5, weights=[2, 1]))
    assert float(means["log_prob_chosen"]) == pytest.approx((2 * CHOSEN[0] + CHOSEN[2]) / 3, rel=1e-6)
    assert float(means["positive_log_prob"]) == 0


def test_other_variables_are_other_arrays():
    """A second model's prediction under its own name."""
    formula = "chosen & (other_rejected -> ~rejected)"
    arrays = {"chosen": [-0.5], "rejected": [-1.0], "other_rejected": [-2.0]}
    arrays = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
    result = symbolic_loss(formula=formula, mask=np.ones(1), **arrays)
    a, b, c = (float(np.exp(x[0])) for x in arrays.values())
    assert float(result.total) == pytest.approx(-np.log(a * (1 - b * c)), rel=1e-5)


def test_the_same_preference_in_three_forms():
    text = "rejected -> chosen given chosen ^ rejected"
    structure = parse_structure(text)
    forms = [text, structure, preference_of(structure)]
    pairs = {"chosen": CHOSEN[:3], "rejected": REJECTED[:3]}
    totals = {float(symbolic_loss(formula=form, mask=np.ones(3), **pairs).total) for form in forms}
    assert len(totals) == 1


def test_degenerate_formulas():
    with pytest.raises(ValueError, match="nothing wins by 'chosen & ~chosen'"):
        compile_structure("chosen & ~chosen")
    with pytest.raises(ValueError, match="nothing wins and nothing loses by 'chosen given false'"):
        compile_structure("chosen given false", allow_degenerate=True)
    with pytest.raises(ValueError, match="'true' names no prediction"):
        compile_structure("true")
    pairs = {"chosen": jnp.asarray([-1.0, -1e4]), "mask": jnp.ones(2)}
    result = symbolic_loss(formula="chosen & ~chosen", allow_degenerate=True, **pairs)
    assert float(result.total) == np.inf
    for formula, words, expected in (
        ("chosen | ~chosen", "nothing loses", 0.0),
        ("chosen also true", "the same wins and loses", 2 * np.log(2)),
    ):
        with pytest.warns(UserWarning, match=words):
            tables = compile_structure(parse_structure(formula))
        with pytest.warns(UserWarning, match=words):
            total, gradient = jax.value_and_grad(
                lambda x, tables=tables: symbolic_loss(formula=tables, chosen=x, mask=jnp.ones(2)).total
            )(pairs["chosen"])
        assert float(total) == pytest.approx(expected, rel=1e-6)
        np.testing.assert_array_equal(gradient, 0)


def test_wrong_arguments_are_named():
    pairs = {"chosen": np.float32([-1.0, -2.0]), "rejected": np.float32([-1.0, -2.0]), "mask": np.ones(2)}

    def check(words, error=ValueError, **options):
        with pytest.raises(error, match=words):
            symbolic_loss(**(pairs | {"formula": "rejected -> chosen"} | options))

    check("reads 'reference_chosen', of which no log-probs are given", formula="chosen & reference_chosen")
    check("reads 'rejected'", rejected=None)
    check("cannot read the formula at column 11", UserError, formula="rejected &-> chosen")
    check("unknown link 'cubic'", link="cubic")
    check("beta=0 must be more than 0", beta=0)
    check("unknown log_prob 'mean'", log_prob="mean")
    check("needs chosen_length", log_prob="sequence-mean")
    check("'chosen' has a log-prob of 0.5", chosen=np.float32([-1, 0.5]))
    check("'winner' by a length", formula="winner", winner=pairs["chosen"], log_prob="sequence-mean",
          chosen_length=np.ones(2), rejected_length=np.ones(2))  # fmt: skip


def test_a_positive_log_prob_is_reported_where_it_cannot_be_refused():
    @jax.jit
    def share(chosen):
        result = symbolic_loss(formula="rejected -> chosen", chosen=chosen, rejected=chosen, mask=jnp.ones(4))
        return objective.metric_means(result.metrics)["positive_log_prob"]

    assert float(share(jnp.asarray([-1.0, 0.5, -2.0, 0.0]))) == 0.25


def test_copies_read_the_same_array():
    preference = compile_structure("chosen & chosen'")
    assert preference.variables == ("chosen", "chosen'")
    rho = log_ratio(preference, {"chosen": jnp.float32([-2.0])})
    assert float(rho[0]) == pytest.approx(-4 - np.log1p(-np.exp(-4)), rel=1e-6)
