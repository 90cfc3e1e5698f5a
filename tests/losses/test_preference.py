"""Losses of pairs against their formulas in plain Python, at ordinary and at extreme inputs."""

import functools
import math
from typing import get_args

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxalign.losses.preference import PairLogProbs, PreferenceLoss, is_batch_coupled, margin_sensitivities
from jaxalign.losses.preference import preference_loss as compute
from jaxalign.losses.preference_table import PREFERENCE_LOSSES
from jaxalign.objective import loss as value_of
from jaxalign.objective import metric_means

every_loss = pytest.mark.parametrize("name", PREFERENCE_LOSSES)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


ROWS = 256  # of every problem once it is padded, so that all tests share one compiled program


def problem(seed=0, pairs=7, scale=3.0) -> PairLogProbs:
    """One pair does not count, one has an empty completion."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 9, (2, pairs)).astype(float)
    sums = -random.uniform(0.2, 2, (2, pairs)) * lengths
    references = sums + scale * random.normal(size=sums.shape)
    mask = np.ones(pairs)
    if pairs > 3:
        mask[2] = 0
        lengths[1, 3] = 0
    return PairLogProbs(*sums, *references, *lengths, mask)


def offsets(pairs):
    return np.linspace(-0.5, 1.0, len(pairs.mask))


def padded(x):
    return np.pad(x, (0, ROWS - len(x)))


DEFAULTS = tuple((name, ()) for name in PREFERENCE_LOSSES)


@functools.cache
def compiled(cases):
    """Objectives and gradients of all cases (loss, options) in one program, which compiles faster than one of each."""

    def run(pairs, offset):
        def total(sums, name, options):
            arrays = {"offset": offset} if name == "odpo" else {}
            result = compute(pairs._replace(chosen=sums[0], rejected=sums[1]), loss=name, **arrays, **dict(options))
            return result.total, result

        found = [jax.grad(total, has_aux=True)((pairs.chosen, pairs.rejected), *case) for case in cases]
        return [(result, gradient) for gradient, result in found]

    return jax.jit(run)


def run_all(pairs, cases=DEFAULTS, offset=None):
    """{loss: (objective, gradients of chosen and rejected)} of any number of pairs."""
    arguments = PairLogProbs(*map(padded, pairs)), padded(offsets(pairs) if offset is None else offset)
    results = jax.device_get(compiled(cases)(*arguments))
    return dict(zip((name for name, _ in cases), results, strict=True))


def run(name, pairs, **options):
    return run_all(pairs, ((name, tuple(options.items())),) if options else DEFAULTS)[name][0]


@functools.cache
def solved(seed, scale, given=False):
    """`run_all` of a problem, at the losses' own options or, if `given`, of those in `OPTIONS` at the ones there."""
    cases = tuple((name, tuple(o.items())) for name, o in OPTIONS.items()) if given else DEFAULTS
    return run_all(problem(seed, scale=scale), cases)


# -- the formulas, pair by pair -------------------------------------------------------------------------------------


def sig(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def ls(x):
    return -math.log1p(math.exp(-x)) if x > -700 else x


def relu(x):
    return max(x, 0.0)


def odds(m):
    return math.log(math.exp(m) / (1 - math.exp(m)))


def formula(name, s_w, s_l, r_w, r_l, n_w, n_l, offset, o):
    a_w, a_l, m_w, m_l = s_w - r_w, s_l - r_l, s_w / n_w, s_l / n_l
    beta, e = o.get("beta"), o.get("label_smoothing", 0.0)
    delta = a_w - a_l
    z = (beta or 0) * delta

    def smooth(x):
        return -(1 - e) * ls(x) - e * ls(-x)

    def power(m):
        return (1 - math.exp(-o["power"] * m)) / o["power"]

    return {
        "dpo": lambda: smooth(z),
        "robust_dpo": lambda: (-(1 - e) * ls(z) + e * ls(-z)) / (1 - 2 * e),
        "dpo_norm": lambda: smooth(beta * (a_w / n_w - a_l / n_l)),
        "hinge": lambda: relu(1 - z),
        "ipo": lambda: (delta - 1 / (2 * beta)) ** 2,
        "ipo_norm": lambda: (a_w / n_w - a_l / n_l - 1 / (2 * beta)) ** 2,
        "exo": lambda: sig(z) * (ls(z) - math.log(1 - e)) + sig(-z) * (ls(-z) - math.log(e)),
        "discopop": lambda: -ls(z) * (1 - sig(z / o["temperature"])) + math.exp(-z) * sig(z / o["temperature"]),
        "exponential": lambda: math.exp(-z),
        "squared": lambda: (1 - z) ** 2,
        "truncated_quadratic": lambda: relu(1 - z) ** 2,
        "savage": lambda: 1 / (1 + math.exp(z)) ** 2,
        "odpo": lambda: -ls(z - offset),
        "rdpo": lambda: -ls(z + o["length_penalty"] * (n_w - n_l)),
        "dpop": lambda: -ls(beta * (delta - o["chosen_penalty"] * relu(r_w - s_w))),
        "nca": lambda: -ls(beta * a_w) - 0.5 * ls(-beta * a_w) - 0.5 * ls(-beta * a_l),
        "bco_pair": lambda: -ls(beta * a_w - o["reward_shift"]) - ls(-(beta * a_l - o["reward_shift"])),
        "sppo": lambda: (a_w - 1 / (2 * beta)) ** 2 + (a_l + 1 / (2 * beta)) ** 2,
        "apo_zero": lambda: 1 - sig(beta * a_w) + sig(beta * a_l),
        "apo_down": lambda: sig(beta * a_w) + 1 - sig(z),
        "mpo": lambda: (
            0.8 * smooth(z) + 0.2 * (-ls(beta * a_w - o["reward_shift"]) - ls(o["reward_shift"] - beta * a_l))
        ),
        "cpo": lambda: smooth(beta * (s_w - s_l)),
        "slic": lambda: relu(o["target_margin"] - s_w + s_l),
        "simpo": lambda: smooth(beta * (m_w - m_l) - o["target_margin"]),
        "alphapo": lambda: smooth(beta * (power(m_w) - power(m_l)) - o["target_margin"]),
        "rrhf": lambda: relu(m_l - m_w),
        "orpo": lambda: -beta * ls(odds(m_w) - odds(m_l)),
    }[name]()


def reference(name, pairs, likelihood="token-mean", **given):
    """The mean over the pairs that count, likelihood term included."""
    row = PREFERENCE_LOSSES[name]
    o = {**row.options, **given}
    columns = np.asarray(pairs)[:6].T
    offsets = np.linspace(-0.5, 1.0, len(columns))
    rows = [(*c, f) for c, f, m in zip(columns, offsets, np.asarray(pairs.mask), strict=True) if m and min(c[4:]) > 0]
    if name in ("aot", "aot_unpaired"):
        s_w, s_l, r_w, r_l = np.array(rows).T[:4]
        paired = np.sort(s_w - s_l) - np.sort(r_w - r_l)
        u = paired if name == "aot" else np.sort(s_w - r_w) - np.sort(s_l - r_l)
        e = o["label_smoothing"]
        terms = [-(1 - e) * ls(o["beta"] * x) - e * ls(-o["beta"] * x) for x in u]
    else:
        terms = [formula(name, *row, o) for row in rows]
    nll = {
        "token-mean": lambda: -sum(r[0] for r in rows) / sum(r[4] for r in rows),
        "sequence-mean": lambda: -np.mean([r[0] / r[4] for r in rows]),
        "sequence-sum": lambda: -np.mean([r[0] for r in rows]),
    }[likelihood]()
    return np.mean(terms) + row.likelihood_weight * nll


OPTIONS = {
    "dpo": {"beta": 0.5, "label_smoothing": 0.2},
    "robust_dpo": {"label_smoothing": 0.3},
    "aot": {"label_smoothing": 0.2},
    "rdpo": {"length_penalty": 0.5},
    "dpop": {"beta": 0.1, "chosen_penalty": 2.0},
    "bco_pair": {"reward_shift": 0.7},
    "exo": {"label_smoothing": 0.1},
    "discopop": {"temperature": 0.7, "beta": 0.3},
    "simpo": {"label_smoothing": 0.1, "target_margin": 1.5},
    "alphapo": {"power": -0.5},
    "slic": {"target_margin": 4.0},
    "orpo": {"likelihood": "sequence-mean"},
    "cpo": {"likelihood": "sequence-sum"},
}


@pytest.mark.parametrize(
    ("name", "given"), [(name, given) for name in PREFERENCE_LOSSES for given in (False, True)[: 1 + (name in OPTIONS)]]
)
def test_values_are_those_of_the_formulas(name, given):
    options = OPTIONS[name] if given else {}
    for seed in range(4):
        for scale in (0.5, 12.0):  # both sides of every kink
            found = value_of(solved(seed, scale, given)[name][0])
            np.testing.assert_allclose(found, reference(name, problem(seed, scale=scale), **options), rtol=1e-9)


@every_loss
def test_gradients_are_those_of_the_formulas(name):
    """Central differences of the plain formulas, in every sum of every pair."""
    pairs = problem(1, scale=3.0)
    _, gradients = solved(1, 3.0)[name]
    count = 5.0  # pairs that count
    for field, gradient in zip(("chosen", "rejected"), gradients, strict=True):
        for i in range(len(pairs.mask)):
            step = 1e-5 * (np.arange(len(pairs.mask)) == i)
            ends = [reference(name, pairs._replace(**{field: getattr(pairs, field) + h})) for h in (step, -step)]
            np.testing.assert_allclose(gradient[i] / count, (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-7)


def test_sensitivities_are_the_closed_forms():
    pairs = problem(2)
    counts = np.asarray(pairs.mask * (pairs.rejected_length > 0))
    s_w, s_l, r_w, r_l, n_w, n_l, _ = map(np.asarray, pairs)
    a_w, a_l = s_w - r_w, s_l - r_l
    down = np.vectorize(sig)(-0.1 * (a_w - a_l))
    expected = {
        "dpo": (0.1 * down, 0.1 * down),
        "ipo": (-2 * (a_w - a_l - 5), -2 * (a_w - a_l - 5)),
        "sppo": (-2 * (a_w - 500), 2 * (a_l + 500)),
    }

    @jax.jit
    def found(pairs):
        options = {name: {} for name in (*expected, "simpo")} | {"cpo": {"likelihood": "sequence-sum"}}
        return {name: margin_sensitivities(pairs, loss=name, **given) for name, given in options.items()}

    found = found(pairs)
    for name, both in expected.items():
        for actual, wanted in zip(found[name], both, strict=True):
            np.testing.assert_allclose(actual, wanted * counts, rtol=1e-12)
    down = np.vectorize(sig)(-(2 * (s_w / n_w - s_l / np.maximum(n_l, 1)) - 0.5))
    d_w, d_l = found["simpo"]
    np.testing.assert_allclose(d_w, counts * 2 * down / n_w, rtol=1e-12)
    np.testing.assert_allclose(d_l, counts * 2 * down / np.maximum(n_l, 1), rtol=1e-12)
    d_w, d_l = found["cpo"]
    np.testing.assert_allclose(d_w - d_l, counts, rtol=1e-12)


# -- special points ---------------------------------------------------------------------------------------------------


EXTREMES = (-1e4, -30.0, -1e-3, 0.0)


@functools.cache
def at_extremes(dtype):
    grid = np.array([(w, x, r, q) for w in EXTREMES for x in EXTREMES for r in EXTREMES for q in EXTREMES], dtype).T
    lengths = np.resize(np.array([0, 1, 3, 100], dtype), (2, ROWS))
    return run_all(PairLogProbs(*grid, *lengths, np.ones(ROWS, dtype)))


@every_loss
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_inputs_stay_finite(name, dtype):
    """Log-probs of -1e4, zero margins, empty completions, identical pairs; value and gradient."""
    result, gradients = at_extremes(dtype)[name]
    assert result.total.dtype == dtype
    assert all(np.isfinite(x).all() for x in (result.total, *gradients))
    assert all(np.isfinite(total / weight) for total, weight in result.metrics.values())


DIVERGENT = ("dpo", "robust_dpo", "dpo_norm", "hinge", "ipo", "ipo_norm", "exo", "discopop")


@functools.cache
def with_divergence(divergence):
    """`run_all` of a problem and of one far from the reference, with losses of this divergence."""
    options = (("divergence", divergence), *((("divergence_alpha", 0.3),) if divergence == "alpha" else ()))
    cases = tuple((name, options) for name in (DIVERGENT if divergence != "reverse_kl" else ["dpo"]))
    pairs = problem(3)
    return [run_all(x, cases) for x in (pairs, pairs._replace(chosen=np.full(7, -1e4), rejected=np.full(7, -2.0)))]


@pytest.mark.parametrize(
    ("name", "divergence"),
    [("dpo", "reverse_kl"), *((name, other) for name in DIVERGENT for other in ("forward_kl", "js", "alpha"))],
)
def test_divergences(name, divergence):
    """f-DPO is the same loss of scores in place of log-ratios, and finite where their exponents are not."""
    pairs = problem(3)
    scores = {
        "reverse_kl": lambda a: a,
        "forward_kl": lambda a: -np.exp(-a),
        "js": lambda a: a - np.log1p(np.exp(a)),
        "alpha": lambda a: (1 - np.exp(-0.3 * a)) / 0.3,
    }[divergence]
    zeros = np.zeros_like(pairs.chosen)
    changed = pairs._replace(
        chosen=scores(pairs.chosen - pairs.reference_chosen),
        rejected=scores(pairs.rejected - pairs.reference_rejected),
        reference_chosen=zeros,
        reference_rejected=zeros,
    )
    near, far = with_divergence(divergence)
    np.testing.assert_allclose(value_of(near[name][0]), value_of(run(name, changed)), rtol=1e-10)
    result, gradients = far[name]
    assert np.isfinite(result.total) and np.isfinite(gradients).all()
    if divergence in ("forward_kl", "alpha"):
        assert metric_means(result.metrics)["score_clip_fraction"] == 0.5  # every chosen, no rejected one


def test_alpha_near_zero_is_dpo():
    pairs = problem(4)
    dpo = value_of(run("dpo", pairs))
    np.testing.assert_allclose(value_of(run("dpo", pairs, divergence="alpha", divergence_alpha=0.0)), dpo, rtol=1e-14)
    np.testing.assert_allclose(value_of(run("dpo", pairs, divergence="alpha", divergence_alpha=1e-7)), dpo, rtol=1e-5)


def test_at_the_reference_dpo_is_log_2_with_margin_0():
    pairs = problem(5)
    pairs = pairs._replace(reference_chosen=pairs.chosen, reference_rejected=pairs.rejected)
    result = run("dpo", pairs)
    np.testing.assert_allclose(value_of(result), math.log(2), rtol=1e-15)
    means = metric_means(result.metrics)
    assert means["margin"] == means["accuracy"] == means["reward_chosen"] == 0


@pytest.mark.parametrize("z", [-3.0, 0.0, 2.0])
def test_the_robust_loss_is_unbiased_under_flips(z):
    """(1 - e) L(z) + e L(-z) = -log sigmoid(z)."""

    def at(z, name, **options):
        zero, one = np.zeros(1), np.ones(1)
        return value_of(run(name, PairLogProbs(np.full(1, z), zero, zero, zero, one, one, one), beta=1.0, **options))

    mixed = 0.7 * at(z, "robust_dpo", label_smoothing=0.3) + 0.3 * at(-z, "robust_dpo", label_smoothing=0.3)
    np.testing.assert_allclose(mixed, at(z, "dpo"), rtol=1e-12)


@hypothesis.settings(max_examples=20)
@hypothesis.given(shift=st.floats(-50, 50), seed=st.integers(0, 100))
def test_losses_of_the_difference_ignore_a_common_shift(shift, seed):
    pairs = problem(seed)
    found = run_all(pairs._replace(chosen=pairs.chosen + shift, rejected=pairs.rejected + shift))
    expected = run_all(pairs)
    for name in ("dpo", "hinge", "ipo", "exo", "discopop", "squared", "savage", "odpo", "rdpo", "aot"):
        totals = found[name][0].total, expected[name][0].total
        np.testing.assert_allclose(*totals, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_sorted_losses_of_one_pair_are_cdpo(name):
    pairs = problem(6, pairs=1)
    options = {"beta": 0.4, "label_smoothing": 0.2}
    np.testing.assert_allclose(
        value_of(run(name, pairs, **options)), value_of(run("dpo", pairs, **options)), rtol=1e-12
    )


@hypothesis.settings(max_examples=10)
@hypothesis.given(seed=st.integers(0, 1000))
def test_padding_and_order_are_irrelevant(seed):
    """Pairs of weight 0 enter no sort and no mean, wherever they stand and whatever they hold."""
    pairs = problem(seed)
    places = np.random.default_rng(seed).permutation(ROWS)[:7]

    def scattered(x, filler):
        x, values = np.full(ROWS, filler), x
        x[places] = values
        return x

    grown = PairLogProbs(*map(scattered, pairs, [np.nan] * 4 + [1.0] * 2 + [0.0]))
    found, expected = run_all(grown, offset=scattered(offsets(pairs), np.nan)), run_all(pairs)
    for name, (result, _) in expected.items():
        np.testing.assert_allclose(found[name][0].total, result.total, rtol=1e-9, err_msg=name)
        assert found[name][0].weight == result.weight


@pytest.mark.parametrize("likelihood", ["token-mean", "sequence-mean"])
def test_coupling_is_what_the_table_says(likelihood):
    """Halves of the batch add up to the whole exactly where pairs do not interact."""
    pairs = problem(8, pairs=12, scale=10.0)
    # Without a likelihood term there is no such option to take: one loss stands for all of them.
    names = [name for name, row in PREFERENCE_LOSSES.items() if row.likelihood_weight or name in ("dpo", "aot")]
    cases = tuple((name, (("likelihood", likelihood),)) for name in names)
    cases = DEFAULTS if likelihood == "token-mean" else cases
    parts = [
        run_all(PairLogProbs(*(x[part] for x in pairs)), cases, offset=offsets(pairs)[part])
        for part in (slice(0, 12), slice(0, 6), slice(6, 12))
    ]
    for name, _ in cases:
        whole, *halves = (part[name][0].total for part in parts)
        assert np.isclose(sum(halves), whole, rtol=1e-9) != is_batch_coupled(name, likelihood=likelihood), name


def test_a_row_uses_lengths_exactly_if_it_says_so():
    pairs = problem(9)
    other = pairs._replace(chosen_length=pairs.chosen_length + 1, rejected_length=pairs.rejected_length * 2)
    without = tuple((n, (("likelihood_weight", 0.0),)) for n, row in PREFERENCE_LOSSES.items() if row.likelihood_weight)
    first, second = (run_all(x) | run_all(x, without) for x in (pairs, other))
    for name, row in PREFERENCE_LOSSES.items():
        assert (value_of(first[name][0]) != value_of(second[name][0])) == row.uses_lengths, name


def test_weights_of_pairs_do_not_enter_the_divisor():
    pairs = problem(10)
    weights = np.arange(7.0)
    single = [run("dpo", PairLogProbs(*(x[i : i + 1] for x in pairs))).total for i in range(7)]
    result = jax.jit(functools.partial(compute, loss="dpo"))(pairs, weights=weights)
    np.testing.assert_allclose(result.total, np.dot(single, weights), rtol=1e-12)
    assert result.weight == 5


def test_metrics():
    pairs = problem(11)
    keep = np.asarray(pairs.mask * (pairs.rejected_length > 0), bool)
    s_w, s_l, r_w, r_l, n_w, _, _ = (np.asarray(x)[keep] for x in pairs)
    means = metric_means(run("dpo", pairs).metrics)
    margins = 0.1 * ((s_w - r_w) - (s_l - r_l))
    np.testing.assert_allclose(means["margin"], margins.mean(), rtol=1e-12)
    np.testing.assert_allclose(means["accuracy"], (margins > 0).mean(), rtol=1e-12)
    np.testing.assert_allclose(means["reward_chosen"], 0.1 * (s_w - r_w).mean(), rtol=1e-12)
    np.testing.assert_allclose(means["log_prob_rejected"], s_l.mean(), rtol=1e-12)
    np.testing.assert_allclose(means["chosen_token_nll"], -s_w.sum() / n_w.sum(), rtol=1e-12)


def test_the_table_and_the_type_name_the_same_losses():
    assert set(get_args(PreferenceLoss)) == set(PREFERENCE_LOSSES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "dppo"}, "unknown preference loss 'dppo'"),
        ({"beta": 0.0}, "beta=0.0 of loss 'dpo' must be more than 0"),
        ({"label_smoothing": 0.5}, r"label_smoothing=0.5 .* must be in \[0, 0.5\)"),
        ({"loss": "exo", "label_smoothing": 0.0}, "more than 0"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "loss 'hinge' has no option 'label_smoothing'"),
        ({"loss": "simpo", "divergence": "js"}, "loss 'simpo' has no option 'divergence'"),
        ({"divergence": "kl"}, "divergence=kl"),
        ({"loss": "odpo"}, "belong together"),
        ({"offset": jnp.zeros(7)}, "belong together"),
        ({"loss": "discopop", "temperature": 2.0}, "temperature=2.0"),
        ({"loss": "aot", "weights": jnp.ones(7)}, "takes no weights"),
        ({"loss": "cpo", "likelihood": "mean"}, "unknown likelihood 'mean'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        compute(problem(), **options)


def test_a_missing_reference_is_named():
    pairs = problem()._replace(reference_chosen=None, reference_rejected=None)
    with pytest.raises(ValueError, match="loss 'dpo' needs the log-probs of a reference"):
        compute(pairs)
    names = [name for name, row in PREFERENCE_LOSSES.items() if not row.needs_reference]
    assert np.isfinite(jax.jit(lambda pairs: [compute(pairs, loss=name).total for name in names])(pairs)).all()
