"""Entanglement of pairs: the paper's exact cases, the first-order forecast, and reports of many pairs at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.diagnostics.entanglement import (
    CASES,
    NOT_FINITE,
    Products,
    entanglement,
    pair_and_batch_products,
    pair_metrics,
    products,
)
from jaxalign.diagnostics.token_gradients import token_cosines, token_products
from jaxalign.training.mesh import make_mesh
from tests.compiled import compiled

report_of = compiled(entanglement)
TINY = np.finfo(np.float32).tiny  # what is smaller may be taken for 0


def head_scores(params, rows):
    """[B, 2] log-probs of one token each, under a linear head with a softmax."""
    log_p = jax.nn.log_softmax(rows["features"] @ params["head"].T)
    return jnp.take_along_axis(log_p, rows["tokens"], axis=-1)


@pytest.mark.parametrize("vocabulary", [2, 7])
def test_one_token_that_differs_is_always_ideal(vocabulary):
    """N_w - <g_w, g_l> = |h|^2 (1 - p_w + p_l), and with p_w and p_l swapped for N_l; cosine -1 for two tokens."""
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        params = {"head": random.normal(size=(vocabulary, 5))}
        rows = {"features": random.normal(size=(4, 5)), "tokens": np.array([[0, 1], [1, 0], [0, 1], [1, 0]])}
        found, _ = compiled(pair_and_batch_products)(head_scores, params, rows, np.ones((4, 2)))
        report = report_of(found)
        assert found.inner.dtype == report.cosine.dtype == jnp.float64
    logits = rows["features"] @ params["head"].T
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen, rejected = np.take_along_axis(p, rows["tokens"], axis=-1).T
    square = (rows["features"] ** 2).sum(-1)
    np.testing.assert_allclose(found.inner, square * ((p**2).sum(-1) - chosen - rejected), rtol=1e-12)
    np.testing.assert_allclose(found.chosen - found.inner, square * (1 - chosen + rejected), rtol=1e-12)
    np.testing.assert_allclose(found.rejected - found.inner, square * (1 - rejected + chosen), rtol=1e-12)
    assert set(report.case.tolist()) == {CASES.index("ideal")}
    if vocabulary == 2:
        np.testing.assert_allclose(report.cosine, -1, rtol=1e-12)


@pytest.mark.parametrize("tokens", [2, 12])
def test_a_long_shared_suffix_turns_both_down(tokens):
    """Without context, for i in place of j: up if T (p_i - p_j) - n < 1, down if T (p_i - p_j) - n > -1.

    n is how often i stands in the shared tokens, minus how often j does.
    """
    logits = np.array([0.9, -0.4, 0.2, 0.0])
    p = np.exp(logits) / np.exp(logits).sum()
    shared = np.array([2, 3] * tokens)[: tokens - 1]

    @jax.jit
    def case_of(logits, ids):
        g = [jax.grad(lambda x, row=row: jax.nn.log_softmax(x)[row].sum())(logits) for row in ids]
        return entanglement(products(*g)).case

    cases = set()
    for i, j in ((0, 1), (1, 0), (2, 3)):
        ids = np.stack([np.r_[i, shared], np.r_[j, shared]])
        with jax.enable_x64(True):
            case = CASES[int(case_of(logits, ids))]
        pull = tokens * (p[i] - p[j]) - ((shared == i).sum() - (shared == j).sum())
        up, down = pull < 1, pull > -1
        cases.add(case)
        assert case == {(True, True): "ideal", (False, True): "both_down", (True, False): "both_up"}[up, down]
    assert cases == ({"ideal"} if tokens == 2 else {"ideal", "both_down", "both_up"})


def scores(params, rows):
    """[B, 2] of something curved in two leaves."""
    return jnp.sin(rows["x"] @ params["a"]) @ params["b"]


def problem(size=3):
    random = np.random.default_rng(2)
    params = {"a": random.normal(size=(4, 8)).astype(np.float32), "b": random.normal(size=(8, 2)).astype(np.float32)}
    return params, {"x": random.normal(size=(size, 4)).astype(np.float32)}


def flat_gradients(params, rows):
    """[B, 2, D]"""
    jacobian = jax.jit(jax.jacobian(scores))(params, rows)
    return np.concatenate([np.asarray(j).reshape(*j.shape[:2], -1) for j in jax.tree.leaves(jacobian)], axis=-1)


def test_pairs_and_batch_are_those_of_the_jacobian():
    params, rows = problem()
    g = flat_gradients(params, rows)
    weights = np.array([[0.5, 0.25], [0.0, -1.0], [2.0, 1.0]], np.float32)
    pairs, batch = jax.jit(pair_and_batch_products, static_argnums=0)(scores, params, rows, weights)
    whole = np.einsum("bs,bsd->sd", weights, g)
    for found, w, r in ((pairs, g[:, 0], g[:, 1]), (batch, whole[0], whole[1])):
        wanted = [(w * r).sum(-1), (w * w).sum(-1), (r * r).sum(-1)]
        np.testing.assert_allclose(np.stack(found), np.stack(wanted), rtol=1e-4, atol=1e-5)


def test_the_forecast_is_what_a_small_step_does():
    with jax.enable_x64(True):
        params, rows = jax.tree.map(lambda x: x.astype(np.float64), problem(1))

        @jax.jit
        def report_and_change(params):
            g = jax.jacobian(scores)(params, rows)
            chosen, rejected = (jax.tree.map(lambda j, s=s: j[0, s], g) for s in range(2))
            moved = jax.tree.map(lambda p, w, r: p + 1e-6 * (0.7 * w + 0.3 * r), params, chosen, rejected)
            change = (scores(moved, rows) - scores(params, rows))[0]
            return entanglement(products(chosen, rejected), 0.7, -0.3, step_size=1e-6), change

        report, change = jax.device_get(report_and_change(params))
    np.testing.assert_allclose([report.delta_chosen, report.delta_rejected], change, rtol=1e-4)
    np.testing.assert_allclose(report.delta_margin, change[0] - change[1], rtol=1e-4)


@given(st.lists(st.floats(-3, 3, width=32), min_size=6, max_size=6))
@settings(max_examples=50)
def test_equal_sensitivities_never_reverse(numbers):
    w, r = np.array(numbers[:3]), np.array(numbers[3:])
    found = Products(*(np.float32(x) for x in (w @ r, w @ w, r @ r)))
    report = report_of(found)
    assert CASES[int(report.case)] != "reversed"
    assert (float(report.condition_ratio) > 1) == (CASES[int(report.case)] != "ideal") or min(found[1:]) < TINY
    assert report.delta_margin >= -1e-4


def test_special_pairs():
    zero, same, bad = Products(0.0, 4.0, 0.0), Products(4.0, 4.0, 4.0), Products(np.nan, 4.0, np.nan)
    found = Products(*(np.array(column) for column in zip(zero, same, bad, Products(3.0, 2.0, 9.0), strict=True)))
    report = jax.device_get(report_of(found))
    assert report.case.tolist() == [0, 0, NOT_FINITE, CASES.index("both_down")]
    np.testing.assert_array_equal(report.condition_ratio[[0, 1, 3]], [0, 1, 1.5])
    np.testing.assert_array_equal(report.cosine[:2], [0, 1])
    np.testing.assert_array_equal([report.delta_chosen[1], report.delta_rejected[1]], 0)
    metrics = compiled(pair_metrics)(found, report, np.array([0, 1, 1, 1]))
    assert metrics["both_down"] == (1, 2)
    assert metrics["not_finite"] == (1, 3)
    assert metrics["condition_ratio"] == (2.5, 2)
    assert metrics["norm_rejected"] == (5, 2)


def test_parameters_may_lie_over_devices():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params, rows = problem()
    places = {"a": PartitionSpec("fsdp", "tensor"), "b": PartitionSpec("tensor")}
    sharded = {name: jax.device_put(params[name], NamedSharding(mesh, place)) for name, place in places.items()}
    function = jax.jit(pair_and_batch_products, static_argnums=0)
    one, eight = (function(scores, p, rows, np.ones((3, 2))) for p in (params, sharded))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_products_of_tokens_are_those_of_the_jacobian():
    """Through a backward pass of its own, which has no forward-mode derivative."""

    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, d: (d * jnp.cos(x),))
    params, rows = problem()

    def values(params):
        return (sine(rows["x"] @ params["a"]) @ params["b"]).reshape(-1) * np.array([1, 1, 1, 0, 1, 1])

    g = flat_gradients(params, rows).reshape(6, -1) * np.array([1, 1, 1, 0, 1, 1])[:, None]
    found = jax.jit(token_products, static_argnums=0)(values, params)
    np.testing.assert_allclose(found, g @ g.T, rtol=1e-4, atol=1e-4)
    norms = np.linalg.norm(g, axis=1) + (np.arange(6) == 3)
    np.testing.assert_allclose(token_cosines(found), (g @ g.T) / norms[:, None] / norms, atol=1e-5)
