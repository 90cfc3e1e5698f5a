import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.dypo import dypo_loss, grade, group_alignment_loss
from jaxalign.objective import loss, metric_means
from jaxalign.rewards.advantages import group_advantages
from tests.compiled import compiled

Q, K, T, S = 5, 4, 3, 6
REWARDS = np.array([[0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [np.nan, 1, 0, 0]])


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


run = compiled(dypo_loss)


@functools.cache
def advantages():
    return np.asarray(compiled(group_advantages)(REWARDS.reshape(-1), group_size=K)).reshape(Q, K)


def problem(seed=0):
    """A hard prompt, a mixed one, an easy one, a hard one without teacher, a mixed one with a gap."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, T + 1, (Q, K))
    lengths[1, 3] = 0
    teacher_lengths = np.array([4, 2, 6, 0, 5])
    log_probs = -random.exponential(size=(Q, K, T))
    return {
        "log_probs": log_probs,
        "advantages": advantages(),
        "mask": np.arange(T) < lengths[..., None],
        "rewards": REWARDS,
        "teacher_log_probs": -random.exponential(size=(Q, S)),
        "teacher_mask": np.arange(S) < teacher_lengths[:, None],
        "old_log_probs": log_probs + 0.3 * random.normal(size=log_probs.shape),
        "reference_log_probs": log_probs + 0.3 * random.normal(size=log_probs.shape),
    }


def reference(case, *, alpha=0.5, beta=1.0, gamma=1.0, reduction="token-mean", normalise="all"):
    taught, mixed = [], []
    for q in range(Q):
        known = [r for r in case["rewards"][q] if not np.isnan(r)]
        n = int(case["teacher_mask"][q].sum())
        if all(r == 0 for r in known):
            if n:
                nll = -case["teacher_log_probs"][q, :n].sum()
                taught.append(gamma * (nll / n if reduction == "token-mean" else nll))
        elif not all(r == 1 for r in known):
            surrogate, gains = 0.0, []
            for i in range(K):
                m = int(case["mask"][q, i].sum())
                new, old, ref = (case[name][q, i, :m] for name in ("log_probs", "old_log_probs", "reference_log_probs"))
                rho, a = np.exp(new - old), case["advantages"][q, i]
                surrogate -= np.minimum(rho * a, np.clip(rho, 0.8, 1.2) * a).mean() / K if m else 0
                gains.append((new - ref).sum())
            pairs = [
                np.log1p(np.exp(-beta * (gains[s] - gains[f])))
                for s in range(K)
                for f in range(K)
                if case["rewards"][q, s] == 1 and case["rewards"][q, f] == 0
            ]
            mixed.append(alpha * surrogate + (1 - alpha) * np.mean(pairs))
    if normalise == "all":
        return (sum(taught) + sum(mixed)) / Q
    return np.mean(taught) + np.mean(mixed)


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 1.0}, {"alpha": 0.2, "beta": 0.3, "gamma": 2.0}, {"reduction": "sum"}, {"normalise": "routed"}],
)
def test_the_loss_is_that_of_the_loops(options):
    names = {"alpha": "group_weight", "gamma": "teacher_weight", "reduction": "teacher_reduction"}
    actual = run(**problem(), **{names.get(name, name): x for name, x in options.items()})
    np.testing.assert_allclose(loss(actual), reference(problem(), **options), rtol=1e-9)


def test_every_prompt_has_one_grade():
    grades = grade(jnp.array(REWARDS))
    np.testing.assert_array_equal(grades.hard, [True, False, False, True, False])
    np.testing.assert_array_equal(grades.easy, [False, False, True, False, False])
    np.testing.assert_array_equal(grades.hard + 0 + grades.mid + grades.easy, 1)
    assert not any(x.any() for x in grade(jnp.full((1, 2), jnp.nan)))
    assert bool(grade(jnp.array([[0.5, 0.5]])).mid[0])
    found = metric_means(run(**problem()).metrics)
    np.testing.assert_allclose([found[name] for name in ("hard", "mid", "easy")], [0.4, 0.4, 0.2])
    np.testing.assert_allclose(found["hard_without_teacher"], 0.2)


def test_the_gradient_of_the_alignment_loss():
    random = np.random.default_rng(1)
    log_probs, ref, beta = random.normal(size=(2, K)), random.normal(size=(2, K)), 0.7
    rewards = np.array([[1, 0, 1, 0], [1, 1, 1, 1.0]])
    found = jax.jit(jax.grad(lambda x: group_alignment_loss(x, ref, rewards, beta)[0].sum()))(log_probs)
    gain = (log_probs - ref)[0]
    expected = np.zeros((2, K))
    for s in (0, 2):
        for f in (1, 3):
            push = beta / 4 / (1 + np.exp(beta * (gain[s] - gain[f])))
            expected[0, s] -= push
            expected[0, f] += push
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    far = jax.jit(group_alignment_loss)(np.array([[1e4, -1e4]]), np.zeros((1, 2)), np.array([[0.0, 1]]))[0]
    np.testing.assert_allclose(far, 2e4)


def test_at_the_reference_both_parts_pull_the_same_way():
    """GRPO's ascent is sqrt(p (1 - p)) D and GAL's beta / 2 D, D the mean score of right minus that of wrong ones."""
    rewards, beta, p = np.array([[1.0, 0, 0, 0]]), 0.8, 0.25
    log_probs = np.full((1, K, 1), -1.0)
    ones, none = np.ones((1, K, 1)), np.zeros((1, 1))

    @jax.jit
    def gradients(log_probs):
        advantages = group_advantages(rewards.reshape(-1), K, ddof=0, epsilon=0.0).reshape(1, K)

        def value(x, alpha):
            objective = dypo_loss(
                x, advantages, ones, rewards, none, none, reference_log_probs=log_probs, group_weight=alpha, beta=beta
            )
            return -loss(objective)

        return [jax.grad(value)(log_probs, alpha)[0, :, 0] for alpha in (1.0, 0.0)]

    difference = np.array([1, -1 / 3, -1 / 3, -1 / 3])
    of_group, of_pairs = gradients(log_probs)
    np.testing.assert_allclose(of_group, np.sqrt(p * (1 - p)) * difference, rtol=1e-9)
    np.testing.assert_allclose(of_pairs, beta / 2 * difference, rtol=1e-9)


def test_the_gate_before_the_switch_is_plain_grpo():
    case = problem()
    closed = loss(run(**case, routing=np.array(False)))
    changed = case | {"rewards": np.where(np.arange(Q)[:, None] == 0, 1, REWARDS)}  # nobody looks at grades
    np.testing.assert_allclose(loss(run(**changed, routing=False)), closed)
    np.testing.assert_allclose(loss(run(**case, routing=np.array(True))), reference(case), rtol=1e-9)


def test_easy_prompts_alone_teach_nothing():
    case = problem() | {"rewards": np.ones((Q, K)), "advantages": np.zeros((Q, K))}
    value_and_gradient = jax.value_and_grad(lambda x: loss(dypo_loss(**case | {"log_probs": x})))
    value, gradient = jax.jit(value_and_gradient)(case["log_probs"])
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, 0)


def test_mistakes_are_named():
    case = problem()
    case.pop("reference_log_probs")
    with pytest.raises(ValueError, match="need reference_log_probs"):
        dypo_loss(**case)
    jax.eval_shape(functools.partial(dypo_loss, **case, group_weight=1.0))
    with pytest.raises(ValueError, match="group_weight=2"):
        dypo_loss(**case, group_weight=2.0)
    with pytest.raises(ValueError, match="normalise='queue'"):
        dypo_loss(**case, group_weight=1.0, normalise="queue")
