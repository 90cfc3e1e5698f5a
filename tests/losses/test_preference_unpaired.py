"""KTO, BCO and unpaired APO-zero against their formulas in plain Python."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.preference_unpaired import UnpairedLogProbs, is_batch_coupled, unpaired_loss
from jaxalign.objective import loss as value_of
from jaxalign.objective import metric_means

LOSSES = ("kto", "bco", "apo_zero_unpaired")
every_loss = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def problem(seed=0, drift=2.0) -> UnpairedLogProbs:
    """Eight rows of both classes, one that does not count and one without a token."""
    random = np.random.default_rng(seed)
    sums = -random.uniform(1, 20, (2, 8))
    references = sums + 4 * random.normal(size=sums.shape) - drift
    label = np.array([1, 0, 1, 1, 0, 1, 0, 1.0])
    length = np.array([3, 2, 5, 0, 1, 9, 4, 4.0])
    mask = np.array([1, 1, 1, 1, 1, 1, 1, 0.0])
    return UnpairedLogProbs(*map(jnp.asarray, (sums[0], references[0], sums[1], references[1], label, length, mask)))


def sig(x):
    return 1 / (1 + math.exp(-x))


def reference(name, rows, beta=0.1, up=1.0, down=1.0, shift=0.0, balanced=False, weights=None):
    kept = [i for i in range(8) if rows.mask[i] and rows.length[i]]
    z0 = max(0.0, float(np.mean([rows.mismatched[i] - rows.reference_mismatched[i] for i in kept])))
    terms = {1: [], 0: []}
    for i in kept:
        a, y = float(rows.completion[i] - rows.reference[i]), int(rows.label[i])
        sign = 1 if y else -1
        value = {
            "kto": 1 - sig(sign * beta * (a - z0)),
            "apo_zero_unpaired": 1 - sig(sign * beta * a),
            "bco": -math.log(sig(sign * (beta * a - shift))),
        }[name]
        terms[y].append((up if y else down) * value * (1 if weights is None else weights[i]))
    if balanced:
        return np.mean(terms[1]) + np.mean(terms[0])
    return np.mean(terms[1] + terms[0])


@every_loss
@pytest.mark.parametrize("drift", [2.0, -2.0])  # z0 above 0 and held at 0
def test_values_are_those_of_the_formulas(name, drift):
    rows = problem(1, drift)
    weights = np.linspace(0.2, 2, 8)
    np.testing.assert_allclose(value_of(unpaired_loss(rows, loss=name)), reference(name, rows), rtol=1e-12)
    options = dict(beta=0.4, desirable_weight=1.3, undesirable_weight=0.7, reward_shift=0.6)
    actual = unpaired_loss(rows, loss=name, reduction="class-balanced", weights=jnp.asarray(weights), **options)
    wanted = reference(name, rows, 0.4, 1.3, 0.7, 0.6, balanced=True, weights=weights)
    np.testing.assert_allclose(value_of(actual), wanted, rtol=1e-12)


def test_the_anchor_of_kto_is_a_constant():
    """Only the completion's own sum has a gradient: -lambda beta sigmoid'(beta (a - z0)) for a desirable row."""
    rows = problem(2)
    gradient = jax.grad(lambda rows: unpaired_loss(rows, loss="kto", desirable_weight=1.5).total)(rows)
    for name, leaf in gradient._asdict().items():
        assert name in ("completion", "mask") or not leaf.any()
    kept = [0, 1, 2, 4, 5, 6]
    z0 = max(0.0, float(np.mean((rows.mismatched - rows.reference_mismatched)[jnp.array(kept)])))
    for i in range(8):
        s = sig(0.1 * float(rows.completion[i] - rows.reference[i] - z0))
        slope = 0.1 * s * (1 - s) * (-1.5 if rows.label[i] else 1.0)
        np.testing.assert_allclose(gradient.completion[i], slope if i in kept else 0.0, rtol=1e-10)


def test_at_the_reference():
    rows = problem(3)
    rows = rows._replace(reference=rows.completion, reference_mismatched=rows.mismatched)
    np.testing.assert_allclose(value_of(unpaired_loss(rows, loss="kto")), 0.5)
    balanced = unpaired_loss(rows, loss="bco", reduction="class-balanced")
    np.testing.assert_allclose(value_of(balanced), 2 * math.log(2))


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "class-balanced"])
def test_one_class_or_no_row_at_all(name, reduction):
    rows = problem(4)
    for changed in (rows._replace(label=jnp.ones(8)), rows._replace(mask=jnp.zeros(8))):
        value, gradient = jax.value_and_grad(
            lambda x, changed=changed: value_of(
                unpaired_loss(changed._replace(completion=x), loss=name, reduction=reduction)
            )
        )(changed.completion)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        assert bool(value) == bool(changed.mask.any())


@every_loss
def test_extreme_inputs_and_padding(name):
    rows = problem(5)
    far = rows._replace(completion=jnp.array([-1e4, 0, 0, 0, -1e4, -1e4, 0, np.nan]), reference=jnp.full(8, -5e3))
    value, gradient = jax.value_and_grad(lambda x: unpaired_loss(far._replace(completion=x), loss=name).total)(
        far.completion
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()
    grown = jax.tree.map(lambda x: jnp.concatenate([jnp.full(3, jnp.nan), x]), rows)
    grown = grown._replace(mask=jnp.concatenate([jnp.zeros(3), rows.mask]))
    np.testing.assert_allclose(unpaired_loss(grown, loss=name).total, unpaired_loss(rows, loss=name).total, rtol=1e-12)


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "class-balanced"])
def test_coupling(name, reduction):
    rows = problem(6)
    halves = [jax.tree.map(lambda x, s=s: x[s], rows) for s in (slice(0, 4), slice(4, 8))]
    parts = sum(unpaired_loss(half, loss=name, reduction=reduction).total for half in halves)
    whole = unpaired_loss(rows, loss=name, reduction=reduction).total
    assert bool(np.isclose(parts, whole, rtol=1e-9)) != is_batch_coupled(name, reduction=reduction)


def test_metrics():
    rows = problem(7)
    means = metric_means(unpaired_loss(rows, loss="bco", reward_shift=0.3).metrics)
    reward = 0.1 * np.asarray(rows.completion - rows.reference)
    up, down = [0, 2, 5], [1, 4, 6]
    np.testing.assert_allclose(means["reward_desirable"], reward[up].mean())
    np.testing.assert_allclose(means["reward_undesirable"], reward[down].mean())
    np.testing.assert_allclose(means["accuracy"], ((reward[up] > 0.3).sum() + (reward[down] < 0.3).sum()) / 6)
    assert "kl" not in means and "kl" in unpaired_loss(rows, loss="kto").metrics


def test_mistakes_are_named():
    rows = problem()
    with pytest.raises(ValueError, match="unknown unpaired loss 'dpo'"):
        unpaired_loss(rows, loss="dpo")
    with pytest.raises(ValueError, match="needs the log-probs of mismatched completions"):
        unpaired_loss(rows._replace(mismatched=None), loss="kto")
    with pytest.raises(ValueError, match="beta=0"):
        unpaired_loss(rows, beta=0)
    with pytest.raises(ValueError, match="unknown reduction 'sum'"):
        unpaired_loss(rows, reduction="sum")
