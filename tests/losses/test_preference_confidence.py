"""LCPO over the losses of the preference table: closed forms, symmetries and a plain reference."""

import jax
import numpy as np
import pytest

from jaxalign.losses.preference import PairLogProbs, preference_loss
from jaxalign.losses.preference_confidence import both_ways, confidence_loss, implied_margin, swapped
from jaxalign.objective import loss as value_of
from jaxalign.objective import metric_means
from tests.compiled import compiled

both_ways, confidence_loss, implied_margin = map(compiled, (both_ways, confidence_loss, implied_margin))

ETA = np.array([0.9, 0.6])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def problem(seed=0, rows=6) -> tuple[PairLogProbs, np.ndarray]:
    random = np.random.default_rng(seed)
    sums = -random.uniform(1, 12, (4, rows))
    lengths = random.integers(2, 9, (2, rows)).astype(float)
    return PairLogProbs(*sums, *lengths, np.ones(rows)), random.integers(0, 2, rows)


def ls(x):
    return -np.logaddexp(0, -np.asarray(x))


def test_margins_are_the_closed_forms():
    pairs, _ = problem()
    delta = np.asarray(pairs.chosen - pairs.reference_chosen - pairs.rejected + pairs.reference_rejected)
    np.testing.assert_allclose(implied_margin(pairs, loss="dpo", beta=0.3), 0.3 * delta, rtol=1e-9)
    np.testing.assert_allclose(implied_margin(pairs, loss="ipo", beta=0.3), 2 * delta / 0.3, rtol=1e-9)
    scaled = 2 * np.asarray(pairs.chosen / pairs.chosen_length - pairs.rejected / pairs.rejected_length)
    simpo = implied_margin(pairs, loss="simpo", beta=2.0, target_margin=0.7)
    np.testing.assert_allclose(simpo, ls(scaled - 0.7) - ls(-scaled - 0.7), rtol=1e-9)
    cpo = implied_margin(pairs, loss="cpo", beta=0.3, likelihood_weight=0.5, likelihood="sequence-sum")
    np.testing.assert_allclose(cpo, 0.8 * np.asarray(pairs.chosen - pairs.rejected), rtol=1e-9)
    offset = np.linspace(-1, 1, 6)
    odpo = implied_margin(pairs, loss="odpo", beta=0.3, offset=offset)
    back = implied_margin(swapped(pairs), loss="odpo", beta=0.3, offset=-offset)
    np.testing.assert_allclose(odpo, -back, rtol=1e-9)


@pytest.mark.parametrize("mode", ["gibbs", "weighted-loss"])
def test_values_and_gradients_are_those_of_the_formulas(mode):
    pairs, annotator = problem(1)
    options = dict(loss="ipo", beta=0.4)
    pairs.rejected_length[4] = 0
    pairs = pairs._replace(mask=np.array([1.0, 1, 0, 1, 1, 1]))
    annotator[1] = 5  # nobody: the row does not count
    kept = [0, 3, 5]
    forward, reverse = (np.asarray(x)[kept] for x in both_ways(pairs, **options))
    z, eta = reverse - forward, ETA[annotator[kept]]
    w = 1 / (1 + np.exp(-z) * (1 - eta) / eta)
    terms = -w * ls(z) - (1 - w) * ls(-z) if mode == "gibbs" else w * forward + (1 - w) * reverse

    def total(chosen):
        return confidence_loss(pairs._replace(chosen=chosen), ETA, annotator, mode=mode, **options)

    found = total(pairs.chosen)
    assert found.weight == 3
    np.testing.assert_allclose(found.total, terms.sum(), rtol=1e-9)
    means = metric_means(found.metrics)
    np.testing.assert_allclose(means["confidence"], w.mean(), rtol=1e-9)
    np.testing.assert_allclose(means["flipped"], (w < 0.5).mean(), rtol=1e-9)
    p = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(means["label_log_likelihood"], np.log(p * eta + (1 - p) * (1 - eta)).mean(), rtol=1e-9)
    gradient = np.zeros(6)
    ratio = np.asarray(pairs.chosen - pairs.reference_chosen - pairs.rejected + pairs.reference_rejected)[kept]
    up, down = 2 * (ratio - 1.25), 2 * (ratio + 1.25)  # of the loss and of its reverse, by the log-ratio
    gradient[kept] = (p - w) * 2 / 0.4 if mode == "gibbs" else w * up + (1 - w) * down
    found = jax.jit(jax.grad(lambda s: total(s).total))(pairs.chosen)
    np.testing.assert_allclose(found, gradient, rtol=1e-8, atol=1e-12)


def test_special_points():
    """Both modes are one for dpo; at the reference it is log 2; eta = 1/2 teaches nothing; swaps and 1 - eta cancel."""
    pairs, annotator = problem(2)
    options = dict(loss="dpo", beta=0.3)
    one, other = (confidence_loss(pairs, ETA, annotator, mode=m, **options) for m in ("gibbs", "weighted-loss"))
    np.testing.assert_allclose(one.total, other.total, rtol=1e-9)
    start = pairs._replace(chosen=pairs.reference_chosen, rejected=pairs.reference_rejected)
    at_start = confidence_loss(start, ETA, annotator, **options)
    np.testing.assert_allclose(value_of(at_start), np.log(2), rtol=1e-9)
    np.testing.assert_allclose(metric_means(at_start.metrics)["confidence"], ETA[annotator].mean(), rtol=1e-9)
    coin = jax.grad(lambda s: confidence_loss(pairs._replace(chosen=s), [0.5, 0.5], annotator, **options).total)
    np.testing.assert_allclose(jax.jit(coin)(pairs.chosen), 0, atol=1e-12)
    turned = confidence_loss(swapped(pairs), 1 - ETA, annotator, **options)
    np.testing.assert_allclose(turned.total, one.total, rtol=1e-9)
    sure = confidence_loss(pairs, [1.0, 1.0], annotator, mode="weighted-loss", **options)  # up to its clip
    np.testing.assert_allclose(value_of(sure), value_of(compiled(preference_loss)(pairs, **options)), rtol=1e-3)
    far = confidence_loss(pairs._replace(chosen=pairs.chosen + 1e6), ETA, annotator, **options)
    assert np.isfinite(far.total)


def test_mistakes_are_named():
    pairs, annotator = problem()
    for options, words in (
        ({"mode": "hard"}, "unknown mode 'hard'"),
        ({"loss": "aot"}, "loss 'aot' belong to ranks"),
        ({"weights": np.ones(6)}, "takes no weights"),
        ({"loss": "dpoo"}, "unknown preference loss"),
    ):
        with pytest.raises(ValueError, match=words):
            confidence_loss(pairs, ETA, annotator, **options)
