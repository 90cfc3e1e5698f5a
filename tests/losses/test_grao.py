import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxalign.losses.grao import grao_loss
from jaxalign.objective import loss, metric_means
from jaxalign.rewards.reference_answer import reference_advantages, reference_weights
from tests.compiled import compiled

P, G, T, R = 4, 3, 5, 6
BETA, LAMBDA = 0.5, 0.6


def problem(seed=0):
    random = np.random.default_rng(seed)
    lengths, answer_lengths = random.integers(1, T + 1, (P, G)), random.integers(1, R + 1, P)
    lengths[0, 1], answer_lengths[2] = 0, 0
    return {
        "log_probs": -random.exponential(size=(P, G, T)),
        "mask": np.arange(T) < lengths[..., None],
        "reference_answer_log_probs": -random.exponential(size=(P, R)),
        "reference_answer_mask": np.arange(R) < answer_lengths[:, None],
        "rewards": random.integers(-1, 2, (P, G)).astype(float),
    }


def paper_objective(problem, a, a_y):
    """The three terms as the paper writes them, one prompt after the other."""
    total = 0
    for p in range(P):
        own = []
        for i in range(G):
            n = int(problem["mask"][p, i].sum())
            own.append(float(problem["log_probs"][p, i, :n].mean()) if n else 0.0)
        n = int(problem["reference_answer_mask"][p].sum())
        y = float(problem["reference_answer_log_probs"][p, :n].mean()) if n else 0.0
        explore = np.mean([a[p, i] * own[i] for i in range(G)])
        imitate = BETA * a_y[p] * y
        align = LAMBDA * np.mean([a[p, i] * (own[i] - y) for i in range(G)])
        total += explore + imitate + align
    return -total / P


def advantages_of(rewards, include_reference, reference_reward=0.0):
    """(A [P, G], A_y [P]) of own rewards and that of the reference answer, which is the last of its group."""
    rewards = np.asarray(rewards)
    members = np.concatenate([rewards, np.full((len(rewards), 1), reference_reward)], axis=1)
    found = _advantages(members.reshape(-1), members.shape[1], include_reference=include_reference)
    found = np.asarray(found).reshape(members.shape)
    return found[:, :-1], found[:, -1]


_advantages = jax.jit(reference_advantages, static_argnums=1, static_argnames="include_reference")
_weights = jax.jit(reference_weights, static_argnames="clamp_reference")


def arrays(case):
    return {name: x for name, x in case.items() if name != "rewards"}


@pytest.mark.parametrize("include_reference", [True, False])
def test_the_collected_weights_are_the_three_terms(include_reference):
    with jax.enable_x64(True):
        for seed in range(3):
            case = problem(seed)
            a, a_y = advantages_of(case["rewards"], include_reference)
            options = {"imitation": BETA, "alignment": LAMBDA, "clamp_reference": False}
            actual = loss(compiled(grao_loss)(**arrays(case), advantages=a, reference_advantage=a_y, **options))
            np.testing.assert_allclose(actual, paper_objective(case, a, a_y), rtol=1e-9)


@hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
@hypothesis.given(st.lists(st.sampled_from([-1.0, 0.0, 1.0, 0.3, np.nan]), min_size=4, max_size=4), st.booleans())
def test_advantages_are_those_of_the_loops(rewards, include_reference):
    known = [r for r in rewards if not np.isnan(r)]
    group = [*known, 0.25] if include_reference else known
    spread = np.std(group) if group else 0.0
    if spread < 1e-9:
        expected, expected_y = [0.0] * 4, 0.0
    else:
        expected = [0.0 if np.isnan(r) else (r - np.mean(group)) / spread for r in rewards]
        expected_y = (0.25 - np.mean(group)) / spread
    with jax.enable_x64(True):
        a, a_y = advantages_of([rewards], include_reference, 0.25)
    np.testing.assert_allclose(a[0], expected, atol=1e-6)
    np.testing.assert_allclose(a_y[0], expected_y, atol=1e-6)


def test_the_two_readings_where_all_lose_or_win():
    with jax.enable_x64(True):
        for result in (-1.0, 1.0):
            a, a_y = advantages_of(np.full((1, 8), result), True)
            np.testing.assert_allclose(a_y, -result * np.sqrt(8), rtol=1e-6)
            np.testing.assert_allclose(a, result / np.sqrt(8), rtol=1e-6)
            _, w_y = _weights(a, a_y, imitation=BETA, alignment=LAMBDA, clamp_reference=False)
            np.testing.assert_allclose(w_y, (BETA + LAMBDA / 8) * a_y, rtol=1e-6)
            _, clamped = _weights(a, a_y, imitation=BETA, alignment=LAMBDA)
            np.testing.assert_allclose(clamped, np.maximum(w_y, 0))
            silent = advantages_of(np.full((1, 8), result), False)
            assert all((x == 0).all() for x in silent)


def test_one_completion_and_the_reference_are_a_group():
    a, a_y = advantages_of([[1.0]], True)
    np.testing.assert_allclose([a[0, 0], a_y[0]], [1, -1], rtol=1e-6)


def test_without_the_reference_in_the_group_the_regulariser_is_a_factor():
    with jax.enable_x64(True):
        a, a_y = advantages_of(problem()["rewards"], False)
        w, w_y = _weights(a, a_y, imitation=BETA, alignment=LAMBDA, clamp_reference=False)
        np.testing.assert_allclose(w, (1 + LAMBDA) * a / G, rtol=1e-9)
        np.testing.assert_allclose(w_y, BETA * a_y, atol=1e-9)


def test_the_reference_answer_is_learned_from():
    with jax.enable_x64(True):
        case = problem()
        a, a_y = advantages_of(case["rewards"], True)
        _, w_y = _weights(a, a_y, clamp_reference=False)

        def value(answer):
            changed = arrays(case) | {"reference_answer_log_probs": answer}
            result = grao_loss(**changed, advantages=a, reference_advantage=a_y, clamp_reference=False)
            return loss(result), result

        n = case["reference_answer_mask"].sum(axis=1, keepdims=True)
        expected = -w_y[:, None] * case["reference_answer_mask"] / np.maximum(n, 1) / P
        gradient, result = jax.jit(jax.grad(value, has_aux=True))(case["reference_answer_log_probs"])
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
        found = metric_means(result.metrics)
        shown = np.asarray(w_y) * np.asarray(n[:, 0] > 0)
        np.testing.assert_allclose(found["reference_weight_negative"], (shown < 0).mean())
        np.testing.assert_allclose(found["reference_weight"], shown.mean(), rtol=1e-5)
