"""Mixtures against scipy and a fine grid, coefficients against their geometry, special cases, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from jaxalign.gradients import conflict_averse as ca
from tests.compiled import compiled


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


mixture, shortest = compiled(ca.cagrad_mixture), compiled(ca.min_norm_mixture)
gram_matrix, raco_coefficients, combine = map(compiled, (ca.gram_matrix, ca.raco_coefficients, ca.combine))
conflict_averse = compiled(ca.conflict_averse)
SHARES = {1: (1.0,), 2: (0.8, 0.2), 3: (0.5, 0.2, 0.3), 4: (0.1, 0.2, 0.3, 0.4)}


@jax.jit
def clipped(gram, weights):
    return ca.raco_coefficients(gram, weights, 0.7)


@jax.jit
def unclipped(gram, weights):
    return ca.raco_coefficients(gram, weights, 0.7, clip=False)


def gradients_of(seed, m, size=5, scale=1.0):
    random = np.random.default_rng(seed)
    return scale * random.normal(size=(m, size)) * np.exp(random.normal(size=(m, 1)))


def phi(g, w, c, p):
    """From the definition, with vectors."""
    g0, mixed = w @ g, p @ g
    return mixed @ g0 + c * np.linalg.norm(g0) * np.linalg.norm(mixed)


def by_scipy(g, function):
    """The least value over the simplex, from several starts."""
    m = len(g)
    starts = [np.full(m, 1 / m), *(0.8 * np.eye(m) + 0.2 / m)]
    simplex = {"type": "eq", "fun": lambda p: p.sum() - 1}
    found = [
        minimize(function, start, bounds=[(0, 1)] * m, constraints=simplex, method="SLSQP", options={"ftol": 1e-14}).fun
        for start in starts
    ]
    return min(found)


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_the_mixture_is_the_least(m, scale):
    w = np.array(SHARES[m])
    for seed in range(12):
        g = gradients_of(seed, m, size=max(m - seed % 2, 2))  # with and without a linear dependence
        p, value = mixture((scale * g) @ (scale * g).T, SHARES[m], 0.6)
        p = np.asarray(p)
        assert (p >= 0).all()
        np.testing.assert_allclose(p.sum(), 1, atol=1e-12)
        np.testing.assert_allclose(value / scale**2, phi(g, w, 0.6, p), rtol=1e-9, atol=1e-7)
        assert value / scale**2 <= by_scipy(g, lambda p, g=g: phi(g, w, 0.6, p)) + 1e-7 * (g**2).sum()


def test_two_objectives_against_a_grid_in_single_precision():
    grid = np.linspace(0, 1, 20001)
    w = np.array(SHARES[2])
    for seed in range(20):
        g = gradients_of(seed, 2, scale=10.0 ** -(seed % 5))
        mixed = np.stack([grid, 1 - grid], 1) @ g
        g0 = w @ g
        values = mixed @ g0 + 0.4 * np.linalg.norm(g0) * np.linalg.norm(mixed, axis=1)
        p, value = mixture(np.float32(g @ g.T), SHARES[2], 0.4)
        assert p.dtype == value.dtype == np.float32
        assert abs(float(value) - values.min()) < 2e-6 * (g**2).sum()


def test_many_objectives_by_descent():
    w = (0.125,) * 8
    for seed in range(3):
        g = gradients_of(seed, 8, size=6)
        _, value = mixture(g @ g.T, w, 0.5)
        least = by_scipy(g, lambda p, g=g: phi(g, np.array(w), 0.5, p))
        assert abs(float(value) - least) < 1e-4 * (g**2).sum() / 8


def test_descent_and_faces_agree():
    for seed in range(3):
        g = gradients_of(seed, 4)
        gram, w = g @ g.T, np.array(SHARES[4])
        given = (gram, gram @ w, 0.5 * np.sqrt(w @ gram @ w), np.array([True, True, False, True]))
        (p, value), (other, least) = compiled(ca._by_faces)(*given), compiled(ca._by_descent)(*given)
        assert p[2] == other[2] == 0
        np.testing.assert_allclose(value, least, atol=1e-5 * (g**2).sum())


def test_the_shortest_mixture():
    for seed in range(8):
        g = gradients_of(seed, 3, size=2 + seed % 2)
        p = np.asarray(shortest(g @ g.T))
        length = np.linalg.norm(p @ g)
        assert length**2 <= by_scipy(g, lambda p, g=g: (p @ g) @ (p @ g)) + 1e-8 * (g**2).sum()
        assert (g @ (p @ g) >= length**2 - 1e-8 * (g**2).sum()).all()  # a common descent direction


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), m=st.sampled_from([2, 3]), exponent=st.integers(-6, 3))
def test_geometry(seed, m, exponent):
    g = gradients_of(seed, m, scale=10.0**exponent)
    w = np.random.default_rng(seed).dirichlet(np.ones(m))
    g0, c = w @ g, 0.7
    size = np.linalg.norm(g0)
    for solve in (clipped, unclipped):
        a, found = solve(g @ g.T, w)
        combined, rho = np.asarray(combine(g, a)), float(found.rho)
        np.testing.assert_allclose(found.weighted_norm, size, rtol=1e-6)
        np.testing.assert_allclose(combined @ g0, size**2 * (1 + c * rho), rtol=1e-6)
        np.testing.assert_allclose(combined @ combined, size**2 * (1 + c**2 + 2 * c * rho), rtol=1e-6)
        mixed = np.asarray(found.p_clipped) @ g
        np.testing.assert_allclose(combined, g0 + c * size * mixed / np.linalg.norm(mixed), rtol=1e-6, atol=1e-9 * size)
    np.testing.assert_array_equal(clipped(g @ g.T, w)[1].p_clipped, np.minimum(found.p, w))
    if m == 2:  # only there is it a theorem
        assert clipped(g @ g.T, w)[1].rho >= found.rho - 1e-7


def test_scale_does_not_matter():
    """Where absolute tolerances would take a small quadratic for a linear equation."""
    w = np.asarray(SHARES[2])
    for seed in range(10):
        g = gradients_of(seed, 2)
        expected = clipped(g @ g.T, w)[0]
        for scale in (1e-8, 1e-3, 1e6):
            np.testing.assert_allclose(clipped((scale * g) @ (scale * g).T, w)[0], expected, rtol=1e-6)


def test_special_cases():
    c, g = 0.4, gradients_of(0, 3)
    w = np.array(SHARES[3])

    @compiled
    def direction(g, w, c, clip=True):
        a, found = ca.raco_coefficients(ca.gram_matrix(g), w, c, clip=clip)
        return ca.combine(g, a), found

    np.testing.assert_allclose(direction(g, w, 0.0)[0], w @ g, rtol=1e-12)
    np.testing.assert_allclose(direction(g[:1], (1.0,), c)[0], (1 + c) * g[0], rtol=1e-12)
    for clip in (True, False):
        same = np.repeat(g[:1], 3, axis=0)
        np.testing.assert_allclose(direction(same, w, c, clip=clip)[0], (1 + c) * g[0], rtol=1e-6)
        colinear = np.array([[1.0], [2.0], [4.0]]) * g[0]
        np.testing.assert_allclose(direction(colinear, w, c, clip=clip)[0], (1 + c) * w @ colinear, rtol=1e-6)
        opposite = np.stack([g[0], -g[0]])
        np.testing.assert_array_equal(direction(opposite, np.full(2, 0.5), c, clip=clip)[0], 0)
    np.testing.assert_array_equal(direction(np.zeros((3, 5)), w, c)[0], 0)
    without = np.stack([g[0], 0 * g[0], g[1]])
    combined, found = direction(without, w, c)
    np.testing.assert_allclose(combined, w @ without, rtol=1e-12)
    assert float(found.rho) == 0
    cosines = np.asarray(found.cosines)
    np.testing.assert_array_equal(cosines[1], 0)
    expected = g[0] @ g[1] / np.linalg.norm(g[0]) / np.linalg.norm(g[1])
    np.testing.assert_allclose(cosines[0, 2], expected, rtol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite(bad):
    g = gradients_of(1, 3)
    g[1, 2] = bad
    a, found = raco_coefficients(gram_matrix(g), SHARES[3], 0.4, drop_non_finite=True)
    assert int(found.dropped) == 1
    assert found.p[1] == a[1] == 0
    rest, w = g[[0, 2]], np.array([0.5, 0.3]) / 0.8
    expected = combine(rest, raco_coefficients(gram_matrix(rest), w, 0.4)[0])
    np.testing.assert_allclose(combine(g, a), expected, rtol=1e-6)
    assert np.isnan(raco_coefficients(gram_matrix(g), SHARES[3], 0.4)[0]).all()
    nothing = raco_coefficients(gram_matrix(g * bad), SHARES[3], 0.4, drop_non_finite=True)
    np.testing.assert_array_equal(nothing[0], 0)
    assert int(nothing[1].dropped) == 3
    for kind in ("raco", "min_norm"):  # nothing that a train step would take for a gradient
        assert not np.isfinite(conflict_averse(g, SHARES[3], 0.4, kind)[0]).any()


def test_trees_of_gradients():
    random = np.random.default_rng(0)
    params = {"w": random.normal(size=(3, 2)), "b": random.normal(size=2)}
    x = random.normal(size=(4, 3))

    def losses(params):
        return jnp.tanh(x @ params["w"] + params["b"]).sum(axis=1)

    values, gradients = jax.jit(lambda params: ca.objective_gradients(losses, params))(params)
    expected = np.tanh(x @ params["w"] + params["b"])
    np.testing.assert_allclose(values, expected.sum(axis=1), rtol=1e-12)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *gradients)
    np.testing.assert_allclose(stacked["b"], 1 - expected**2, rtol=1e-12)
    np.testing.assert_allclose(stacked["w"], x[:, :, None] * (1 - expected**2)[:, None], rtol=1e-12)
    flat = np.concatenate([leaf.reshape(4, -1) for leaf in jax.tree.leaves(stacked)], axis=1)
    np.testing.assert_allclose(gram_matrix(gradients), flat @ flat.T, rtol=1e-12)
    a = np.array([0.1, 0.0, 2.0, -1.0])
    combined = combine(gradients, a)
    np.testing.assert_allclose(combined["w"], np.einsum("i,ijk->jk", a, stacked["w"]), rtol=1e-12)
    half = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), gradients)
    assert gram_matrix(half).dtype == jnp.float32
    assert combine(half, a)["b"].dtype == jnp.bfloat16


def test_every_way_in_one():
    g, w, c = gradients_of(2, 3), SHARES[3], 0.4
    gram = gram_matrix(g)
    wanted = {
        "raco": raco_coefficients(gram, w, c)[0],
        "cagrad": raco_coefficients(gram, w, c, clip=False)[0],
        "min_norm": shortest(gram),
    }
    for kind, a in wanted.items():
        found, correction = conflict_averse(g, w, c, kind)
        np.testing.assert_allclose(found, a @ g, rtol=1e-9)
        np.testing.assert_array_equal(correction.coefficients, a)
    mixed, g0 = wanted["min_norm"] @ g, np.array(w) @ g
    np.testing.assert_allclose(correction.rho, mixed @ g0 / np.linalg.norm(mixed) / np.linalg.norm(g0), rtol=1e-9)
    with pytest.raises(ValueError, match="unknown way 'mean'"):
        conflict_averse(g, w, c, "mean")


def test_what_is_refused():
    gram = jnp.eye(2)
    for weights in ((0.5, 0.6), (1.5, -0.5), (1.0,), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="sum is 1"):
            raco_coefficients(gram, weights, 0.4)
    for radius in (-0.1, 1.0):
        with pytest.raises(ValueError, match="radius"):
            ca.cagrad_mixture(gram, (0.5, 0.5), radius)
