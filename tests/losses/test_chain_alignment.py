import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.chain_alignment import aft_loss, chain_scores, distinct_chains, pro_loss, rrhf_loss
from jaxalign.losses.preference import PairLogProbs, preference_loss
from jaxalign.objective import loss, metric_means

B, N = 5, 4
CONSTRAINTS = ("none", "detached", "boundary")
BETA = 0.3


def problem(seed=0):
    """Questions with ties; one whose answers are all alike, one with one answer, one without any."""
    random = np.random.default_rng(seed)
    feedback = random.integers(0, 3, (B, N)).astype(float)
    feedback[0], feedback[1] = (2, 1, 0, 1), 1
    valid = random.uniform(size=(B, N)) < 0.8
    valid[0], valid[1] = True, True
    valid[2] = np.arange(N) == 1
    valid[3] = False
    return -random.exponential(size=(B, N)), feedback, valid


def pairs_of(feedback, valid):
    return [(i, j) for i in range(N) for j in range(N) if valid[i] and valid[j] and feedback[i] > feedback[j]]


def aft(scores, feedback, valid, constraint, beta=BETA):
    """The contrast of one question, a loop over pairs."""
    inner, pairs = 1.0, pairs_of(feedback, valid)
    for i, j in pairs:
        inner += math.exp(scores[j] - scores[i])
        if constraint == "boundary":
            boundary = min(scores[k] for k, other in pairs if other == j) - beta
            inner += math.exp(2 * boundary - scores[i] - scores[j])
    return math.log(inner)


def rrhf(scores, feedback, valid):
    return sum(max(scores[j] - scores[i], 0) for i, j in pairs_of(feedback, valid))


def pro(scores, feedback, valid, temperature=1.0):
    total = 0.0
    for i in range(N):
        worse = [j for first, j in pairs_of(feedback, valid) if first == i]
        if worse:
            terms = [math.exp(scores[k] / temperature) for k in (i, *worse)]
            total -= math.log(terms[0] / sum(terms))
    return total


def best_score(scores, feedback, valid):
    counting = [i for i in range(N) if valid[i]]
    return scores[max(counting, key=lambda i: (feedback[i], -i))] if counting else 0.0


def double(function, *arguments, **options):
    with jax.enable_x64(True):
        compiled = jax.jit(functools.partial(function, **options))
        return jax.tree.map(np.asarray, compiled(*map(jnp.asarray, arguments)))


def gradient(function, scores, *arguments, **options):
    return double(jax.grad(lambda s: function(s, *arguments, **options).total), scores)


def test_scores_are_means_and_an_empty_chain_is_not_valid():
    random = np.random.default_rng(0)
    log_probs, lengths = -random.exponential(size=(2, 3, 5)), np.array([[5, 2, 0], [1, 0, 4]])
    mask = np.arange(5) < lengths[..., None]
    scores, valid = double(chain_scores, np.where(mask, log_probs, np.nan), mask)
    expected = [[log_probs[b, n, :k].mean() if k else 0 for n, k in enumerate(row)] for b, row in enumerate(lengths)]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    np.testing.assert_array_equal(valid, lengths > 0)


def test_of_equal_chains_the_first_is_kept_whatever_their_padding_says():
    random = np.random.default_rng(3)
    ids, lengths = random.integers(0, 2, (20, 5, 3)), random.integers(0, 4, (20, 5))
    mask = np.arange(3) < lengths[..., None]
    found = double(distinct_chains, ids, mask)
    rows = [[tuple(chain[:k]) for chain, k in zip(*row, strict=True)] for row in zip(ids, lengths, strict=True)]
    np.testing.assert_array_equal(found, [[c not in row[:n] for n, c in enumerate(row)] for row in rows])
    assert 40 < found.sum() < 100


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_aft_equals_a_loop_over_pairs(constraint):
    scores, feedback, valid = problem()
    imitated = np.zeros((B, N), bool)
    imitated[:, 1] = True
    imitated[0, 3] = True
    result = double(
        aft_loss, scores, feedback, valid, imitated=imitated, constraint=constraint, beta=BETA, likelihood_weight=0.7
    )
    contrast = [aft(*row, constraint) for row in zip(scores, feedback, valid, strict=True)]
    kept = imitated & valid
    likelihood = [-s[k].mean() if k.any() else 0 for s, k in zip(scores, kept, strict=True)]
    np.testing.assert_allclose(result.total, sum(contrast) + 0.7 * sum(likelihood), rtol=1e-12)
    assert result.weight == valid.any(1).sum() == 4
    np.testing.assert_allclose(result.metrics["loss_comparison"], (sum(contrast), 4), rtol=1e-12)
    count = sum(len(pairs_of(f, v)) for f, v in zip(feedback, valid, strict=True))
    assert result.metrics["pairs"] == (count, 4)


@pytest.mark.parametrize("detach_worse", [False, True])
def test_rrhf_and_pro_equal_loops(detach_worse):
    scores, feedback, valid = problem()
    rows = list(zip(scores, feedback, valid, strict=True))
    best = sum(best_score(*row) for row in rows)

    def both(*arguments):
        options = {"detach_worse": detach_worse}
        return (
            rrhf_loss(*arguments, likelihood_weight=0.5, **options).total,
            pro_loss(*arguments, score_temperature=0.5, **options).total,
        )

    of_rrhf, of_pro = double(both, scores, feedback, valid)
    np.testing.assert_allclose(of_rrhf, sum(rrhf(*row) for row in rows) - 0.5 * best, rtol=1e-12)
    np.testing.assert_allclose(of_pro, sum(pro(*row, 0.5) for row in rows) - best, rtol=1e-12)


def test_pro_in_a_strict_order_is_the_likelihood_of_the_order():
    scores, order = np.array([-0.3, -1.2, -0.7, -2.0]), [2, 0, 3, 1]  # best first
    rewards = np.array([2.0, 0.0, 3.0, 1.0])
    left, expected = list(order), 0.0
    for k in order[:-1]:
        expected -= math.log(math.exp(scores[k]) / sum(math.exp(scores[j]) for j in left))
        left.remove(k)
    result = double(pro_loss, scores[None], rewards[None], np.ones((1, N)), likelihood_weight=0.0)
    np.testing.assert_allclose(result.total, expected, rtol=1e-12)


def test_rrhf_of_two_chains_is_the_preference_loss():
    random = np.random.default_rng(1)
    sums, lengths = -random.exponential(size=(6, 2)), random.integers(1, 5, (6, 2)).astype(float)
    feedback, valid = np.tile([1.0, 0.0], (6, 1)), np.ones((6, 2))
    lists = double(rrhf_loss, sums / lengths, feedback, valid)

    def pairs_loss(sums, lengths, mask):
        pairs = PairLogProbs(sums[:, 0], sums[:, 1], None, None, lengths[:, 0], lengths[:, 1], mask)
        return preference_loss(pairs, loss="rrhf", likelihood="sequence-mean")

    peer = double(pairs_loss, sums, lengths, np.ones(6))
    np.testing.assert_allclose(lists.total, peer.total, rtol=1e-12)


def test_what_each_constraint_moves():
    """Right: 0, 1. Wrong: 2 above the boundary, 3 below it. Less likely right ones are at -1, so B = -1.3."""
    scores, feedback, valid = np.array([[-0.5, -1.0, -1.1, -2.0]]), np.array([[1, 1, 0, 0]]), np.ones((1, N))
    found = double(all_losses, scores, feedback, valid)
    plain, detached, bounded = (found[c][1][0] for c in CONSTRAINTS)
    assert (plain[:2] < 0).all() and (plain[2:] > 0).all()
    np.testing.assert_allclose(detached, [*plain[:2], 0, 0], rtol=1e-12)
    assert (bounded[:2] < 0).all() and bounded[2] > 0 > bounded[3]
    result = found["boundary"][0]
    assert result.metrics["below_boundary"] == (1, 2)
    through = gradient(aft_loss, scores, feedback, valid, constraint="boundary", beta=BETA, detach_boundary=False)[0]
    np.testing.assert_allclose(through[[0, 2, 3]], bounded[[0, 2, 3]], rtol=1e-12)
    assert through[1] > bounded[1]


def test_the_boundary_is_where_the_gradient_of_a_wrong_chain_turns():
    random = np.random.default_rng(2)
    scores, right = -3 * random.uniform(size=(100, N)), np.tile([True, True, False, False], (100, 1))
    found = gradient(aft_loss, scores, right, np.ones((100, N)), constraint="boundary", beta=BETA)[:, 2:]
    distance = scores[:, 2:] - (scores[:, :2].min(1, keepdims=True) - BETA)
    assert 20 < (distance < 0).sum() < 180
    np.testing.assert_array_equal(np.sign(found), np.sign(distance))


@pytest.mark.parametrize("function", [rrhf_loss, pro_loss])
def test_a_detached_worse_chain_is_not_moved(function):
    """The middle one of three is worse in one pair and better in another: it only goes up."""
    arguments = np.array([[-2.0, -1.5, -1.0]]), np.array([[2.0, 1.0, 0.0]]), np.ones((1, 3))
    plain = gradient(function, *arguments, likelihood_weight=0.0)[0]
    detached = gradient(function, *arguments, likelihood_weight=0.0, detach_worse=True)[0]
    assert plain[2] > 0 == detached[2]
    np.testing.assert_allclose(detached[0], plain[0], rtol=1e-12)
    assert detached[1] < 0 and detached[1] < plain[1]


LOSSES = {
    **{c: lambda *a, c=c: aft_loss(*a, constraint=c, beta=BETA) for c in CONSTRAINTS},
    "rrhf": lambda *a: rrhf_loss(*a, likelihood_weight=0.0),
    "pro": lambda *a: pro_loss(*a, likelihood_weight=0.0),
}


def all_losses(scores, *arguments):
    """{name: (objective, gradient of the scores)}"""

    def total(scores, name):
        result = LOSSES[name](scores, *arguments)
        return result.total, result

    found = {name: jax.grad(total, has_aux=True)(scores, name) for name in LOSSES}
    return {name: (result, slope) for name, (slope, result) in found.items()}


def test_without_a_pair_there_is_nothing_to_learn():
    """All right, all wrong, one chain, none; and what stands where there is no chain may be anything."""
    scores = np.array([[-0.5, -1.0], [-2.0, -0.1], [-1.0, np.nan], [np.nan, np.inf]])
    feedback = np.array([[1, 1], [0, 0], [1, np.nan], [0, 1]])
    valid = np.array([[1, 1], [1, 1], [1, 0], [0, 0]])
    for name, (result, slope) in double(all_losses, scores, feedback, valid).items():
        assert (result.total, result.weight) == (0, 3), name
        assert metric_means(result.metrics)["pairs"] == 0, name
        np.testing.assert_array_equal(slope, 0, err_msg=name)


def test_a_chain_that_is_not_scorable_is_in_no_pair():
    scores, valid = np.array([[-1.5, -1.0, -0.2, -0.7]]), np.ones((1, N))
    given = (np.array([[1, 0, np.nan, 1]]), valid), (np.array([[1.0, 0, 0, 1]]), valid * (np.arange(N) != 2))
    with jax.enable_x64(True):
        compiled = jax.jit(all_losses)
        found, without = (jax.device_get(compiled(scores, *arguments)) for arguments in given)
    for name in LOSSES:
        assert found[name][0].total == without[name][0].total > 0, name
        assert found[name][0].metrics == without[name][0].metrics, name


def test_what_is_not_scorable_is_never_imitated_as_the_best():
    scores, feedback, valid = np.full((2, 3), -1.0), np.array([[np.nan, 0, 0], [np.nan] * 3]), np.ones((2, 3))
    for function in (rrhf_loss, pro_loss):
        found = gradient(function, scores, feedback, valid)
        np.testing.assert_array_equal(found, [[0, -1, 0], [0, 0, 0]])


def test_far_scores_stay_finite():
    feedback, valid = np.array([[1, 0], [0, 1], [1, 0]]), np.ones((3, 2))
    scores = np.array([[-900.0, -0.1], [-900.0, -0.1], [-900.0, -900.0]], np.float32)
    for name, (result, slope) in jax.jit(all_losses)(scores, feedback, valid).items():
        assert np.isfinite(loss(result)) and np.isfinite(slope).all(), name


def test_equal_scores_of_one_pair_cost_log_two():
    arguments = np.full((1, 2), -0.7), np.array([[1, 0]]), np.ones((1, 2))
    for function in (aft_loss, pro_loss):
        np.testing.assert_allclose(double(function, *arguments, likelihood_weight=0.0).total, math.log(2), rtol=1e-12)


def test_unusable_options_are_refused():
    arguments = np.zeros((1, 2)), np.zeros((1, 2)), np.ones((1, 2))
    with pytest.raises(ValueError, match="unknown constraint 'dc'"):
        aft_loss(*arguments, constraint="dc")
    with pytest.raises(ValueError, match="beta=-1"):
        aft_loss(*arguments, beta=-1)
    with pytest.raises(ValueError, match="score_temperature=0"):
        pro_loss(*arguments, score_temperature=0)
