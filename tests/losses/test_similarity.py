"""Unit vectors and chunked rows against the plain computation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.similarity import map_rows, row_numbers, sum_rows, unit


def test_unit_vectors_and_the_zero_vector():
    x = np.float32([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]])

    @jax.jit
    def both(x):
        return unit(x), jax.grad(lambda x: (unit(x) * np.array([1.0, 2.0])).sum())(x)

    found, gradient = both(x)
    np.testing.assert_allclose(found[:2], [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert np.isfinite(gradient[:2]).all() and (np.asarray(gradient[1]) == 0).all()
    assert jax.eval_shape(unit, x.astype(jnp.bfloat16)).dtype == jnp.float32


def spread(anchors, candidates):
    """Per anchor: log-sum-exp over the candidates, and its similarity to candidate 0."""
    s = anchors["x"] @ candidates["x"].T + anchors["shift"][:, None]
    return {"lse": jax.nn.logsumexp(s, -1), "first": s[:, 0]}


def test_chunks_change_neither_value_nor_gradient():
    """Of one row, divisors of 12 and others, all rows and more than there are."""
    random = np.random.default_rng(0)
    anchors = {"x": random.normal(size=(12, 5)), "shift": random.normal(size=12)}
    candidates = {"x": random.normal(size=(9, 5))}
    weights = random.normal(size=(2, 12))
    chunks = (None, 1, 4, 7, 12, 100)

    def total(anchors, candidates, chunk):
        found = map_rows(spread, anchors, candidates, chunk=chunk)
        return (weights[0] * found["lse"] + weights[1] * found["first"]).sum()

    @jax.jit
    def totals(*given):
        return [jax.value_and_grad(total, argnums=(0, 1))(*given, chunk) for chunk in chunks]

    with jax.enable_x64(True):
        want, *found = totals(anchors, candidates)
    for got, chunk in zip(found, chunks[1:], strict=True):
        close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12, err_msg=f"chunk={chunk}")
        jax.tree.map(close, got, want)


def judged(anchors, candidates):
    """Labelled anchors, so that some of the inputs are integers; and something to report."""
    s = anchors["x"] @ candidates["x"].T
    same = anchors["label"][:, None] == candidates["label"]
    return {"loss": jax.nn.logsumexp(jnp.where(same, s, -2.0 * s), -1), "largest": s.max(-1)}


@pytest.mark.parametrize("chunk", [4, 5])
def test_sums_in_chunks_have_the_value_and_gradient_of_all_at_once(chunk):
    random = np.random.default_rng(0)
    anchors = {"x": random.normal(size=(12, 5)), "label": random.integers(0, 3, 12)}
    candidates = {"x": random.normal(size=(9, 5)), "label": random.integers(0, 3, 9)}

    def values(x, y, chunk, compute=sum_rows):
        found = compute(judged, anchors | {"x": x}, candidates | {"x": y}, chunk=chunk)
        found = {name: jnp.sum(value) for name, value in found.items()}
        return 3 * found["loss"], found["largest"]

    @jax.jit
    def everything(*given):
        return (
            jax.value_and_grad(values, (0, 1), has_aux=True)(*given, None, map_rows),
            jax.value_and_grad(values, (0, 1), has_aux=True)(*given, chunk),
            values(*given, chunk),
            jax.grad(lambda *given: values(*given, chunk)[1], (0, 1))(*given),
        )

    with jax.enable_x64(True):
        (want, slopes), (got, found), values_alone, of_what_is_reported = everything(anchors["x"], candidates["x"])
    np.testing.assert_allclose(values_alone, want, rtol=1e-12)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, slopes)
    assert not any(np.asarray(x).any() for x in of_what_is_reported)


@pytest.mark.optimised
def test_a_chunk_needs_less_memory():
    x = jax.ShapeDtypeStruct((2048, 16), jnp.float32)

    def memory(chunk):
        def total(x):
            return map_rows(lambda a, b: jax.nn.logsumexp(a @ b.T, -1), x, x, chunk=chunk).sum()

        return jax.jit(jax.grad(total)).lower(x).compile().memory_analysis().temp_size_in_bytes

    assert memory(64) < 0.1 * memory(None)


def test_impossible_chunk():
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        map_rows(lambda a, b: a, jnp.ones((3, 2)), jnp.ones((3, 2)), chunk=0)


@pytest.mark.devices(2)
def test_row_numbers_over_devices():
    assert row_numbers(3).tolist() == [0, 1, 2]
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    numbers = jax.shard_map(
        lambda: row_numbers(2, "data"), mesh=mesh, in_specs=(), out_specs=jax.sharding.PartitionSpec("data")
    )()
    assert numbers.tolist() == list(range(2 * len(jax.devices())))
