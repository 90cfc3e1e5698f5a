import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.log_probs import log_probs_from_logits
from jaxalign.losses.supervised import supervised_loss
from jaxalign.objective import loss, metric_means


def problem():
    random = np.random.default_rng(0)
    logits, ids = random.normal(size=(4, 5, 9)), random.integers(0, 9, (4, 5))
    mask = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], np.float64)
    return logits, ids, mask


def reference(logits, ids, mask, per_sequence):
    """Negative log-likelihood by loops over rows, tokens and vocabulary."""
    rows = []
    for i in range(4):
        row = []
        for t in range(5):
            if mask[i, t]:
                mass = sum(np.exp(logits[i, t, v]) for v in range(9))
                row.append(-np.log(np.exp(logits[i, t, ids[i, t]]) / mass))
        if row:
            rows.append(row)
    if per_sequence:
        return np.mean([np.mean(row) for row in rows])
    return np.mean([x for row in rows for x in row])


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_it_is_the_mean_negative_log_likelihood(aggregation):
    logits, ids, mask = problem()
    with jax.enable_x64(True):
        log_probs = log_probs_from_logits(jnp.asarray(logits), jnp.asarray(ids)).log_probs
        objective = supervised_loss(log_probs, jnp.asarray(mask), aggregation=aggregation)
        expected = reference(logits, ids, mask, aggregation != "token-mean")
        np.testing.assert_allclose(loss(objective), expected, rtol=1e-12)
        token_nll = metric_means(objective.metrics)["token_nll"]
        np.testing.assert_allclose(token_nll, reference(logits, ids, mask, False), rtol=1e-12)


def test_the_gradient_is_that_of_cross_entropy():
    """softmax - onehot where it counts, over the number of tokens."""
    logits, ids, mask = problem()
    with jax.enable_x64(True):

        def value(logits):
            return loss(supervised_loss(log_probs_from_logits(logits, jnp.asarray(ids)).log_probs, jnp.asarray(mask)))

        gradient = jax.grad(value)(jnp.asarray(logits))
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected = (p - np.eye(9)[ids]) * mask[..., None] / mask.sum()
        np.testing.assert_allclose(gradient, expected, atol=1e-14)


def test_a_uniform_policy_has_the_perplexity_of_its_vocabulary():
    log_probs = jnp.full((2, 3), -np.log(50.0))
    means = metric_means(supervised_loss(log_probs, jnp.ones((2, 3))).metrics)
    np.testing.assert_allclose(np.exp(means["token_nll"]), 50, rtol=1e-5)


def test_scale_length_divides_sums():
    objective = supervised_loss(
        -jnp.ones((2, 3)), jnp.ones((2, 3)), aggregation="seq-mean-token-scale", scale_length=12.0
    )
    np.testing.assert_allclose(loss(objective), 3 / 12)


def test_ids_in_place_of_log_probs_are_refused():
    with pytest.raises(AssertionError):
        supervised_loss(jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3)))
