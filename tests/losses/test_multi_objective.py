"""DPO of several objectives against loops over pairs, ties and padding, and its weighted sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.gradients.conflict_averse import combine, gram_matrix, objective_gradients, raco_coefficients
from jaxalign.losses.multi_objective import amopo_loss, objective_losses, pair_difference, weighted_loss
from jaxalign.losses.preference import PairLogProbs, preference_loss
from jaxalign.objective import loss
from tests.compiled import compiled

amopo_loss, objective_losses, pair_difference, weighted_loss = map(
    compiled, (amopo_loss, objective_losses, pair_difference, weighted_loss)
)

BETA, WEIGHTS = 0.3, (0.7, 0.3)
SIGNS = np.array([[1, -1, 0, 1, 1], [-1, -1, 1, 0, 1]])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def pairs(rows=5, seed=0):
    random = np.random.default_rng(seed)
    sums = [random.normal(-20, 5, rows) for _ in range(4)]
    lengths = [random.integers(1, 9, rows) for _ in range(2)]
    lengths[0][3] = 0  # an empty completion
    return PairLogProbs(*sums, *lengths, np.array([1.0, 1, 1, 1, 0]))


def log_loss(x):
    return np.log1p(np.exp(-x))


@pytest.mark.parametrize("drop_ties", [False, True])
def test_each_objective_is_dpo_of_its_signs(drop_ties):
    with jax.enable_x64(True):
        p = pairs()
        delta, mask = pair_difference(p)
        assert mask.tolist() == [1, 1, 1, 0, 0]
        for found, signs in zip(
            objective_losses(delta, SIGNS, beta=BETA, mask=mask, drop_ties=drop_ties), SIGNS, strict=True
        ):
            losses = []
            for i in range(3):
                ratio = (p.chosen[i] - p.reference_chosen[i]) - (p.rejected[i] - p.reference_rejected[i])
                if signs[i] or not drop_ties:
                    losses.append(log_loss(BETA * signs[i] * ratio))
            np.testing.assert_allclose(loss(found), np.mean(losses), rtol=1e-12)


def test_one_objective_that_prefers_the_first_is_dpo():
    with jax.enable_x64(True):
        p = pairs()
        delta, mask = pair_difference(p)
        (found,) = objective_losses(delta, np.ones((1, 5)), beta=BETA, mask=mask)
        whole = compiled(preference_loss)(p._replace(mask=np.array(mask)), loss="dpo", beta=BETA)
        np.testing.assert_allclose(loss(found), loss(whole), rtol=1e-12)


@pytest.mark.parametrize(("kind", "reference"), [("mean_log_ratio", 1.0), ("mean_log_prob", 0.0)])
def test_differences_of_means(kind, reference):
    with jax.enable_x64(True):
        p = pairs()
        delta, _ = pair_difference(p, kind)
        for i in range(3):
            a = (p.chosen[i] - reference * p.reference_chosen[i]) / p.chosen_length[i]
            b = (p.rejected[i] - reference * p.reference_rejected[i]) / p.rejected_length[i]
            np.testing.assert_allclose(delta[i], a - b, rtol=1e-12)
        assert (np.asarray(delta)[3:] == 0).all()


def test_ties_and_padding_have_no_gradient_and_nan_in_padding_no_effect():
    p = pairs()
    delta, mask = pair_difference(p)

    def total(delta):
        return sum(found.total for found in objective_losses(delta, np.array([[0, 0, 1, 1, 1]]), beta=BETA, mask=mask))

    gradient = jax.jit(jax.grad(total))(delta)
    assert gradient[2] != 0 and (np.asarray(gradient)[[0, 1, 3, 4]] == 0).all()
    poisoned = p._replace(chosen=np.where(np.arange(5) == 4, np.nan, p.chosen))
    np.testing.assert_array_equal(pair_difference(poisoned)[0], delta)


def test_the_weighted_loss_is_raco_without_radius():
    """Its gradient is sum_i w_i g_i, which is what coefficients of radius 0 combine."""
    with jax.enable_x64(True):
        p = pairs()
        delta, mask = pair_difference(p)

        def losses(delta):
            return jnp.stack([loss(found) for found in objective_losses(delta, SIGNS, beta=BETA, mask=mask)])

        @jax.jit
        def both(delta):
            _, gradients = objective_gradients(losses, delta)
            coefficients, _ = raco_coefficients(gram_matrix(gradients), WEIGHTS, radius=0.0)
            expected = jax.grad(lambda d: loss(weighted_loss(d, SIGNS, WEIGHTS, beta=BETA, mask=mask)))(delta)
            return combine(gradients, coefficients), expected

        np.testing.assert_allclose(*both(delta), rtol=1e-12)
        amopo = amopo_loss(p, SIGNS, WEIGHTS, beta=BETA)
        means, _ = pair_difference(p, "mean_log_prob")
        np.testing.assert_allclose(
            loss(amopo), loss(weighted_loss(means, SIGNS, WEIGHTS, beta=BETA, mask=mask)), rtol=1e-12
        )


@pytest.mark.parametrize("drop_ties", [False, True])
def test_objectives_told_apart(drop_ties):
    """Each reads its own row of delta: the value is the weighted loss, the gradient by a row that of its own loss."""
    delta, mask = pair_difference(pairs())
    options = {"beta": BETA, "mask": mask, "drop_ties": drop_ties}
    whole = weighted_loss(delta, SIGNS, WEIGHTS, ("one", "two"), **options)
    each = [loss(found) for found in objective_losses(delta, SIGNS, **options)]
    np.testing.assert_allclose(loss(whole), np.dot(WEIGHTS, each), rtol=1e-12)
    assert whole.weight == 3 and float(whole.metrics["tied_one"][0]) == 1

    def apart(rows):
        return loss(weighted_loss(rows, SIGNS, WEIGHTS, **options))

    value, rows = jax.value_and_grad(apart)(jnp.stack([delta, delta]))
    np.testing.assert_allclose(value, loss(whole), rtol=1e-12)
    for row, sign in zip(rows, SIGNS, strict=True):
        counted = (np.arange(5) < 3) & ((sign != 0) | (not drop_ties))
        wanted = -BETA * sign / (1 + np.exp(BETA * sign * np.asarray(delta))) * counted / counted.sum()
        np.testing.assert_allclose(row, wanted, rtol=1e-12)


def test_what_is_wrong_is_told():
    delta = np.ones(5)
    with pytest.raises(ValueError, match="beta=0 must be more than 0"):
        objective_losses(delta, SIGNS, beta=0)
    with pytest.raises(ValueError, match="must be 2 numbers of at least 0 whose sum is 1"):
        weighted_loss(delta, SIGNS, (0.5, 0.6))
    with pytest.raises(ValueError, match="unknown difference 'ratio'"):
        pair_difference(pairs(), "ratio")
    with pytest.raises(ValueError, match="needs the log-probs of a reference"):
        pair_difference(pairs()._replace(reference_chosen=None))
