import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxalign.evaluation.best_of_n import best_of_n_win_rate, calibrated_reward
from jaxalign.rewards.inference_aware import (
    calibrate,
    calibrate_with_table,
    kl_of_density,
    optimal_density,
    quantile_table,
    transform,
    win_rate_of_density,
)
from tests.compiled import compiled

calibrate, calibrate_with_table, quantile_table, transform = map(
    compiled, (calibrate, calibrate_with_table, quantile_table, transform)
)
CELLS = 4000
U = (np.arange(CELLS) + 0.5) / CELLS


def tilted(phi, kl):
    """The density proportional to exp(phi / beta) with that KL, by bisection over 1 / beta."""
    low, high = 1e-6, 1e6
    for _ in range(200):
        middle = np.sqrt(low * high)
        f = np.exp((phi - phi.max()) * middle)
        f /= f.mean()
        low, high = (middle, high) if kl_of_density(f) < kl else (low, middle)
    return f


def rates(f):
    return [win_rate_of_density(f, *procedure) for procedure in ((1, "best"), (4, "best"), (4, "worst"))]


@hypothesis.settings(deadline=None, max_examples=30, derandomize=True)
@hypothesis.given(st.integers(0, 1000))
def test_calibration_is_the_share_beaten_and_sees_the_order_only(seed):
    random = np.random.default_rng(seed)
    r, z = random.integers(-3, 4, (3, 4)) / 2, random.integers(-3, 4, (3, 5)) / 2
    found = calibrate(r, z)
    np.testing.assert_allclose(found, calibrated_reward(r, z), rtol=1e-6)
    np.testing.assert_array_equal(calibrate(np.exp(r), np.exp(z)), found)


def test_calibration_leaves_out_what_is_not_scorable():
    r = np.array([[1.0, np.nan], [1.0, 2.0]])
    z = np.array([[0.0, np.nan, 1.0], [np.nan, np.nan, np.nan]])
    np.testing.assert_array_equal(calibrate(r, z), [[0.75, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(calibrate(np.full((1, 2), 0.1), np.full((1, 3), 0.1)), [[0.5, 0.5]])


def test_the_table_approximates_the_calibration():
    random = np.random.default_rng(0)
    z = random.lognormal(size=(3, 400)) * np.array([[1.0], [10], [0.1]]) + np.array([[0.0], [-5], [2]])
    r = np.concatenate([z[:, :40] + 1e-4, z.min(axis=1, keepdims=True) - 1, z.max(axis=1, keepdims=True) + 1], axis=1)
    table = quantile_table(z)
    assert table.shape == (3, 11)
    error = np.abs(calibrate_with_table(r, table) - calibrate(r, z))
    assert error.max() < 0.1  # the distance of two anchors
    assert error.mean() < 0.015
    np.testing.assert_array_equal(calibrate_with_table(r, table)[:, -2:], [[0, 1]] * 3)
    ties = quantile_table(np.array([[0.0] * 50 + [1.0] * 50]), 3)  # 0, 1/2, 1
    np.testing.assert_array_equal(calibrate_with_table(np.array([[-1.0, 0.25, np.nan, 2.0]]), ties)[0, [0, 3]], [0, 1])
    constant = quantile_table(np.full((1, 10), 7.0))
    np.testing.assert_array_equal(calibrate_with_table(np.array([[7.0]]), constant), [[0.5]])


@pytest.mark.parametrize(("kind", "strength"), [("identity", 1), ("exp", 5), ("exp", 10), ("neg_exp", 10), ("log", 1)])
def test_transforms_are_rescaled_by_their_moments(kind, strength):
    with jax.enable_x64(True):
        values = np.asarray(transform(U, kind, strength=float(strength)))
        np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=2e-3)
        assert (np.diff(values) > 0).all()
        plain = np.asarray(transform(U, kind, strength=float(strength), rescale=False))
        reference = {
            "identity": U,
            "exp": np.exp(strength * U),
            "neg_exp": -np.exp(-strength * U),
            "log": np.log(U),
        }[kind]
        np.testing.assert_allclose(plain, reference, rtol=1e-9)


def test_transforms_at_their_edges():
    for kind in ("exp", "neg_exp"):
        np.testing.assert_array_equal(transform(U, kind, strength=0.0), transform(U, "identity"))
    assert np.isfinite(transform(np.array([0.0, 1.0]), "log")).all()
    assert np.isnan(transform(np.array([np.nan]), "exp"))


def test_the_power_family_is_exact():
    """f = a u^(a-1) (best-of-a of the reference): KL = log a - (a-1)/a and win rate a/(a+1) at EVERY n."""
    for a in (1.0, 2.0, 3.5):
        f = np.diff(np.linspace(0, 1, CELLS + 1) ** a) * CELLS
        for n in (1, 2, 4, 8):
            np.testing.assert_allclose(win_rate_of_density(f, n, "best"), a / (a + 1), atol=1e-5)
        np.testing.assert_allclose(kl_of_density(f), np.log(a) - (a - 1) / a, atol=1e-4)
    beta = 0.5  # the solution for Phi = log u is the family with a = 1 + 1 / beta
    f = np.exp(np.asarray(transform(U, "log", rescale=False), np.float64) / beta)
    np.testing.assert_allclose(rates(f / f.mean())[:2], 3 / 4, atol=1e-4)


def test_win_rates_are_those_of_samples():
    random = np.random.default_rng(0)
    f = np.exp(2 * U)
    f /= f.mean()
    a = random.choice(U, p=f / CELLS, size=(400, 16)) + random.uniform(0, 1 / CELLS, (400, 16))
    b = random.random((400, 16))
    for n, best in ((1, True), (4, True), (4, False)):
        sampled = best_of_n_win_rate(a, b, n, best)
        error = sampled.std() / np.sqrt(len(sampled))
        assert abs(sampled.mean() - win_rate_of_density(f, n, "best" if best else "worst")) < 4 * error


TABLE = {  # standard, best-of-4 and worst-of-4 win rate at KL 1/2
    ("identity", 1): (0.774, 0.800, 0.886),
    ("exp", 5): (0.746, 0.857, 0.747),
    ("exp", 10): (0.712, 0.872, 0.676),
    ("neg_exp", 5): (0.754, 0.723, 0.944),
    ("neg_exp", 10): (0.736, 0.686, 0.948),
}


def test_the_frontier_at_equal_kl():
    """Figures made once by quadrature, to 0.002."""
    for (kind, strength), expected in TABLE.items():
        phi = np.asarray(transform(U, kind, strength=float(strength)), np.float64)
        np.testing.assert_allclose(rates(tilted(phi, 0.5)), expected, atol=0.002)


def optimum_at(kl, n, procedure):
    low, high = 1e-2, 10.0
    for _ in range(30):
        beta = np.sqrt(low * high)
        f = optimal_density(n, procedure, beta, cells=1000)
        low, high = (low, beta) if kl_of_density(f) < kl else (beta, high)
    return f


def test_exponential_transforms_are_nearly_optimal():
    best, worst = (win_rate_of_density(optimum_at(0.5, 4, kind), 4, kind) for kind in ("best", "worst"))
    np.testing.assert_allclose([best, worst], [0.873, 0.948], atol=0.002)
    assert best - TABLE["exp", 10][1] < 0.01
    assert worst - TABLE["neg_exp", 10][2] < 0.01


def test_the_optimum_is_one():
    """No small tilt of it does better, and for one sample it is the tilt by u itself."""
    beta = 0.3
    random = np.random.default_rng(0)
    for n, procedure in ((1, "best"), (4, "best"), (4, "worst")):
        f = optimal_density(n, procedure, beta, cells=500)
        value = win_rate_of_density(f, n, procedure) - beta * kl_of_density(f)
        for _ in range(10):
            wave = np.cos(np.arange(1, 5)[:, None] * np.pi * (np.arange(500) + 0.5) / 500).T @ random.normal(size=4)
            other = f * np.exp(0.05 * wave)
            other /= other.mean()
            assert win_rate_of_density(other, n, procedure) - beta * kl_of_density(other) < value
    plain = np.exp(U / beta)
    np.testing.assert_allclose(optimal_density(1, "best", beta, cells=CELLS), plain / plain.mean(), rtol=1e-3)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least one reference reward"):
        calibrate(jnp.zeros((1, 2)), jnp.zeros((1, 0)))
    with pytest.raises(ValueError, match="transform 'square'"):
        transform(jnp.zeros(1), "square")
    with pytest.raises(ValueError, match="strength=-1"):
        transform(jnp.zeros(1), "exp", strength=-1.0)
    with pytest.raises(ValueError, match="procedure 'median'"):
        win_rate_of_density(np.ones(3), 2, "median")
    with pytest.raises(ValueError, match="mean 1"):
        win_rate_of_density(np.zeros(3), 2)
    with pytest.raises(ValueError, match="beta=0"):
        optimal_density(4, "best", 0.0)
