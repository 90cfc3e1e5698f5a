import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.policy_gradient import importance_ratio, policy_loss
from jaxalign.objective import loss, metric_means
from tests.compiled import compiled

ROWS, TIME = 6, 5
ratio_of = compiled(importance_ratio)
RATIOS = ["token", "sequence", "sequence-token", "sequence-sum", "on-policy"]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def problem(seed=0, noise=0.4):
    """Log-probs off-policy enough that ratios are clipped on both sides; masks with a hole and an empty row."""
    random = np.random.default_rng(seed)
    mask = (np.arange(TIME) < np.array([5, 1, 3, 0, 4, 5])[:, None]).astype(np.float64)
    mask[5, 2] = 0
    old = -random.uniform(0.1, 3, (ROWS, TIME))
    return {
        "log_probs": old + noise * random.normal(size=old.shape),
        "old_log_probs": old,
        "reference_log_probs": old + 0.3 * random.normal(size=old.shape),
        "advantages": random.normal(size=ROWS),
        "entropy": random.uniform(0, 2, old.shape),
        "mask": mask,
    }


def arrays(p, *names):
    return {name: p[name] for name in names}


def evaluate(p, log_probs=None, **options):
    """policy_loss with everything the problem holds."""
    log_probs = p["log_probs"] if log_probs is None else log_probs
    extra = arrays(p, "old_log_probs", "reference_log_probs", "entropy")
    return policy_loss(log_probs, p["advantages"], p["mask"], **extra | options)


call = compiled(evaluate)


@compiled
def gradient_of(p, **options):
    return jax.grad(lambda x: loss(evaluate(p, x, **options)))(p["log_probs"])


def reference_ratio(p, i, t, level):
    d = [p["log_probs"][i, s] - p["old_log_probs"][i, s] for s in range(TIME) if p["mask"][i, s]]
    return {
        "token": np.exp(p["log_probs"][i, t] - p["old_log_probs"][i, t]),
        "sequence": np.exp(np.mean(d)),
        "sequence-token": np.exp(np.mean(d)),
        "sequence-sum": np.exp(np.sum(d)),
        "on-policy": 1.0,
    }[level]


def reference_loss(
    p,
    *,
    ratio="token",
    clip_low=0.2,
    clip_high=0.2,
    dual_clip=None,
    ratio_cap=None,
    kl_coefficient=0.0,
    kl="k3",
    entropy_coefficient=0.0,
    aggregation="seq-mean-token-mean",
    scale_length=None,
    count_empty=False,
):
    """The formulas of the papers, token by token. Returns (loss, share of tokens clipped low, high)."""
    rows, low, high, tokens = [], 0, 0, 0
    for i in range(ROWS):
        row = []
        a = p["advantages"][i]
        for t in range(TIME):
            if not p["mask"][i, t]:
                continue
            rho = reference_ratio(p, i, t, ratio)
            first = rho if ratio_cap is None else min(rho, ratio_cap)
            o = min(first * a, np.clip(rho, 1 - clip_low, 1 + clip_high) * a)
            if dual_clip is not None and a < 0:
                o = max(o, dual_clip * a)
            d = p["reference_log_probs"][i, t] - p["log_probs"][i, t]
            k = {"k1": -d, "k2": d * d / 2, "k3": np.exp(d) - d - 1}[kl]
            row.append(-o + kl_coefficient * k - entropy_coefficient * p["entropy"][i, t])
            low += a < 0 and rho < 1 - clip_low
            high += a > 0 and rho > 1 + clip_high
            tokens += 1
        rows.append(row)
    count = ROWS if count_empty else sum(bool(row) for row in rows)
    value = {
        "token-mean": lambda: sum(map(sum, rows)) / tokens,
        "seq-mean-token-mean": lambda: sum(np.mean(row) for row in rows if row) / count,
        "seq-mean-token-sum": lambda: sum(map(sum, rows)) / count,
        "seq-mean-token-scale": lambda: sum(map(sum, rows)) / count / scale_length,
    }[aggregation]()
    return value, low / tokens, high / tokens


@pytest.mark.parametrize("level", RATIOS)
def test_the_ratio_is_that_of_the_formula(level):
    p = problem()
    rho = ratio_of(**arrays(p, "log_probs", "old_log_probs", "mask"), level=level)
    for i, t in zip(*np.nonzero(p["mask"]), strict=True):
        np.testing.assert_allclose(rho[i, t], reference_ratio(p, i, t, level), rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kl_coefficient": 0.04},
        {"kl_coefficient": 0.3, "kl": "k1"},
        {"kl_coefficient": 0.3, "kl": "k2"},
        {"aggregation": "seq-mean-token-scale", "scale_length": 12.0},
        {"aggregation": "token-mean", "clip_high": 0.28},
        {"aggregation": "seq-mean-token-sum", "count_empty": True},
        {"ratio": "sequence", "clip_low": 0.03, "clip_high": 0.04},
        {"ratio": "sequence-token", "clip_low": 0.03, "clip_high": 0.04},
        {"ratio": "sequence-sum"},
        {"ratio": "on-policy", "aggregation": "seq-mean-token-sum"},
        {"dual_clip": 1.3},
        {"ratio_cap": 1.4},
        {"ratio_cap": 1.4, "dual_clip": 1.1, "clip_low": 0.05},
        {"entropy_coefficient": 0.1},
        {"clip_low": 0.0, "clip_high": 0.0},
    ],
    ids=str,
)
def test_value_and_clip_fractions_are_those_of_the_formulas(options):
    """For several draws, so that every branch of every minimum is met."""
    fractions = []
    for seed in range(4):
        p = problem(seed)
        objective = call(p, **options)
        value, low, high = reference_loss(p, **options)
        np.testing.assert_allclose(loss(objective), value, rtol=1e-12)
        means = metric_means(objective.metrics)
        np.testing.assert_allclose(means["clip_fraction_low"], low, rtol=1e-12)
        np.testing.assert_allclose(means["clip_fraction_high"], high, rtol=1e-12)
        np.testing.assert_allclose(means["clip_fraction"], low + high, rtol=1e-12)
        fractions.append((low, high))
    assert options.get("ratio") == "on-policy" or (np.max(fractions, axis=0) > 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {"kl_coefficient": 0.04},
        {"kl_coefficient": 0.2, "kl": "k2", "dual_clip": 1.3, "aggregation": "token-mean", "clip_high": 0.28},
        {"ratio": "sequence", "clip_low": 0.03, "clip_high": 0.04},
        {"ratio": "sequence-sum", "ratio_cap": 2.0},
    ],
    ids=str,
)
def test_the_gradient_is_that_of_the_formulas(options):
    """Against central differences of the loops."""
    p = problem(1)
    gradient = gradient_of(p, **options)
    step = 1e-6
    for i in range(ROWS):
        for t in range(TIME):
            values = []
            for sign in (1, -1):
                moved = p["log_probs"].copy()
                moved[i, t] += sign * step
                values.append(reference_loss(p | {"log_probs": moved}, **options)[0])
            np.testing.assert_allclose(gradient[i, t], (values[0] - values[1]) / (2 * step), atol=1e-8)


@pytest.mark.parametrize("level", RATIOS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_on_policy_the_ratio_is_exactly_one_and_the_gradient_alive(level, dtype):
    p = problem()
    log_probs, mask = (p[name].astype(dtype) for name in ("log_probs", "mask"))

    @jax.jit
    def ratios_and_gradients(log_probs):
        def value(x, old):
            return loss(policy_loss(x, p["advantages"], mask, old_log_probs=old, ratio=level))

        both = (None, log_probs)
        return [(importance_ratio(log_probs, old, mask, level), jax.grad(value)(log_probs, old)) for old in both]

    for ratio, gradient in ratios_and_gradients(log_probs):
        np.testing.assert_array_equal(ratio, 1)
        per_token = p["mask"] / np.maximum(p["mask"].sum(1, keepdims=True), 1)
        factor = p["mask"].sum(1, keepdims=True) if level == "sequence-sum" else 1
        expected = -p["advantages"][:, None] * per_token * factor / 5
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_gspo_by_sequence_and_by_token_have_the_same_gradient():
    """With one advantage per sequence and the mean over its tokens; with another aggregation they differ."""
    p = problem()

    def gradient(level, aggregation):
        options = {"clip_low": 0.03, "clip_high": 0.04, "aggregation": aggregation, "ratio": level}
        return gradient_of(p, **options)

    by_sequence, by_token = (gradient(level, "seq-mean-token-mean") for level in ("sequence", "sequence-token"))
    np.testing.assert_allclose(by_sequence, by_token, rtol=1e-12)
    assert (np.asarray(by_sequence) != 0).any()
    for level in ("sequence", "sequence-token"):
        assert np.ptp(np.asarray(gradient(level, "token-mean"))[0]) < 1e-12
    p["advantages"] = np.random.default_rng(0).normal(size=(ROWS, TIME))
    assert np.abs(gradient("sequence", "token-mean") - gradient("sequence-token", "token-mean")).max() > 1e-3


def test_reinforce_is_the_gradient_of_weighted_log_likelihood():
    """Whatever the old log-probs are, and summed over tokens."""
    p = problem()
    options = {"ratio": "on-policy", "aggregation": "seq-mean-token-sum"}
    gradient = gradient_of(p, **options)
    np.testing.assert_allclose(gradient, -p["advantages"][:, None] * p["mask"] / 5, rtol=1e-12)
    gradient = gradient_of(p, count_empty=True, **options)
    np.testing.assert_allclose(gradient, -p["advantages"][:, None] * p["mask"] / ROWS, rtol=1e-12)


def test_rloo_is_reinforce_on_policy():
    p = problem()
    rloo = gradient_of(p, old_log_probs=None, ratio="sequence-sum", aggregation="seq-mean-token-mean")
    plain = gradient_of(p, old_log_probs=None, ratio="on-policy", aggregation="seq-mean-token-sum")
    np.testing.assert_allclose(rloo, plain, rtol=1e-12)


def test_an_advantage_per_token_is_the_same_as_one_per_row():
    p = problem()
    per_token = p | {"advantages": np.repeat(p["advantages"][:, None], TIME, axis=1)}
    for a, b in zip(jax.tree.leaves(call(p)), jax.tree.leaves(call(per_token)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_only_log_probs_and_entropy_get_gradient(aggregation):
    p = problem()
    names = ("log_probs", "advantages", "old_log_probs", "reference_log_probs", "entropy")

    def value(inputs):
        log_probs, advantages = inputs.pop("log_probs"), inputs.pop("advantages")
        options = {"kl_coefficient": 0.1, "entropy_coefficient": 0.1, "aggregation": aggregation}
        return policy_loss(log_probs, advantages, p["mask"], **inputs, **options).total

    gradients = jax.jit(jax.grad(lambda inputs: value(dict(inputs))))(arrays(p, *names))
    alive = {name for name, gradient in gradients.items() if (np.asarray(gradient) != 0).any()}
    assert alive == {"log_probs", "entropy"}
    np.testing.assert_array_equal(np.asarray(gradients["log_probs"])[p["mask"] == 0], 0)


def test_a_clipped_token_has_no_gradient():
    up, down = np.log(1.5), np.log(0.5)
    p = {
        "log_probs": np.array([[up, down, 0.0], [up, down, 0.0]]),
        "old_log_probs": np.zeros((2, 3)),
        "advantages": np.array([1.0, -1.0]),
        "mask": np.ones((2, 3)),
    }

    @jax.jit
    def gradients(x):
        def value(x, **options):
            extra = arrays(p, "old_log_probs")
            return policy_loss(x, p["advantages"], p["mask"], **extra, aggregation="token-mean", **options).total

        limits = [{}, {"dual_clip": 1.4}, {"ratio_cap": 1.4}, {"clip_low": 0.0, "clip_high": 0.0}]
        return [jax.grad(lambda x, limit=limit: value(x, **limit))(x) for limit in limits]

    gradient, *limited, at_the_edge = gradients(p["log_probs"])
    np.testing.assert_allclose(gradient, [[0, -0.5, -1], [1.5, 0, 1]], rtol=1e-12)
    for gradient in limited:
        np.testing.assert_allclose(gradient, [[0, -0.5, -1], [0, 0, 1]], rtol=1e-12)
    # At the edge of the range the gradient is whole, not halved by a tie.
    np.testing.assert_allclose(at_the_edge[:, 2], [-1, 1], rtol=1e-12)


def test_a_ratio_that_overflows_where_it_is_clipped_or_unwanted_does_no_harm():
    """exp(800) is infinite: fine with A > 0 (clipped) and A = 0; with A < 0 it shows, unless limited."""

    @compiled
    def compute(advantages, **options):
        def total(x):
            return policy_loss(x, advantages, jnp.ones((1, 2)), old_log_probs=jnp.zeros((1, 2)), **options).total

        return jax.value_and_grad(total)(jnp.array([[800.0, 0.1]]))

    def value_and_gradient(advantage, **options):
        total, gradient = compute(np.array([advantage]), **options)
        return float(total), np.asarray(gradient)[0]

    value, gradient = value_and_gradient(1.0)
    np.testing.assert_allclose(value, -(1.2 + np.exp(0.1)) / 2)
    np.testing.assert_allclose(gradient, [0, -np.exp(0.1) / 2])
    value, gradient = value_and_gradient(0.0)
    np.testing.assert_array_equal([value, *gradient], 0)
    assert value_and_gradient(-1.0)[0] == np.inf
    value, gradient = value_and_gradient(-1.0, dual_clip=3.0)
    np.testing.assert_allclose(value, (3 + np.exp(0.1)) / 2)
    np.testing.assert_allclose(gradient, [0, np.exp(0.1) / 2])
    value, gradient = value_and_gradient(-1.0, log_ratio_clamp=2.0)
    np.testing.assert_allclose(value, (np.exp(2) + np.exp(0.1)) / 2)


@pytest.mark.parametrize("place", ["log_probs", "old_log_probs", "advantages", "reference_log_probs", "entropy"])
def test_a_nan_that_counts_is_not_hidden(place):
    p = problem()
    p[place] = p[place].copy()
    p[place][0] = np.nan
    assert np.isnan(call(p, kl_coefficient=0.1, entropy_coefficient=0.1).total)


def test_metrics_are_token_means_and_kl_is_reported_without_its_coefficient():
    p = problem()
    objective = call(p, kl="k1", kl_coefficient=0.0)
    assert set(objective.metrics) == {
        "clip_fraction", "clip_fraction_low", "clip_fraction_high", "ratio", "kl", "entropy"
    }  # fmt: skip
    means = metric_means(objective.metrics)
    counts = p["mask"] > 0
    d = (p["reference_log_probs"] - p["log_probs"])[counts]
    np.testing.assert_allclose(means["kl"], np.mean(np.exp(d) - d - 1), rtol=1e-12)
    np.testing.assert_allclose(means["entropy"], p["entropy"][counts].mean(), rtol=1e-12)
    np.testing.assert_allclose(means["ratio"], np.exp(p["log_probs"] - p["old_log_probs"])[counts].mean(), rtol=1e-12)
    few = jax.eval_shape(policy_loss, *(p[name] for name in ("log_probs", "advantages", "mask")))
    assert set(few.metrics) == {"clip_fraction", "clip_fraction_low", "clip_fraction_high", "ratio"}


def test_a_reference_far_away_does_no_harm_while_its_coefficient_is_zero():
    p = problem()
    p["reference_log_probs"] = p["reference_log_probs"] + 1e4
    assert np.isfinite(np.asarray(gradient_of(p))).all()
    assert np.isfinite(call(p, kl_coefficient=0.1, log_ratio_clamp=20.0, kl_value_clamp=10.0).total)


def test_coefficients_may_be_traced():
    p = problem()
    traced = jax.jit(lambda beta, c: call(p, kl_coefficient=beta, entropy_coefficient=c).total)
    np.testing.assert_allclose(traced(0.1, 0.2), call(p, kl_coefficient=0.1, entropy_coefficient=0.2).total, rtol=1e-12)


def test_mistakes_are_named():
    p = problem()
    x, a, m = (jnp.asarray(p[name]) for name in ("log_probs", "advantages", "mask"))
    for options, message in [
        ({"kl_coefficient": 0.1}, "needs reference_log_probs"),
        ({"entropy_coefficient": 0.1}, "needs the entropy"),
        ({"ratio": "row"}, "unknown level of the importance ratio 'row'"),
        ({"aggregation": "mean"}, "unknown aggregation"),
        ({"clip_low": -0.2}, "cannot be negative"),
        ({"dual_clip": 1.0}, "must be more than 1"),
        ({"ratio_cap": 1.2}, "ratio_cap=1.2 must be more than"),
        ({"kl_coefficient": 0.1, "kl": "k9", "reference_log_probs": x}, "unknown KL estimate"),
    ]:
        with pytest.raises(ValueError, match=message):
            policy_loss(x, a, m, **options)
    with pytest.raises(AssertionError):
        policy_loss(x, a[:3], m)
    with pytest.raises(AssertionError):
        policy_loss(x, a, m, old_log_probs=x[:, :3])
