"""Unit vectors and chunked rows against the plain computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.similarity import map_rows, row_numbers, sum_rows, unit


def test_unit_vectors_and_the_zero_vector():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]])
    np.testing.assert_allclose(unit(x)[:2], [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    gradient = jax.grad(lambda x: (unit(x) * jnp.array([1.0, 2.0])).sum())(x)
    assert np.isfinite(gradient[:2]).all() and (np.asarray(gradient[1]) == 0).all()
    assert unit(x.astype(jnp.bfloat16)).dtype == jnp.float32


def spread(anchors, candidates):
    """Per anchor: log-sum-exp over the candidates, and its similarity to candidate 0."""
    s = anchors["x"] @ candidates["x"].T + anchors["shift"][:, None]
    return {"lse": jax.nn.logsumexp(s, -1), "first": s[:, 0]}


@pytest.mark.parametrize("chunk", [1, 3, 4, 6, 7, 12, 100])
def test_chunks_change_neither_value_nor_gradient(chunk):
    random = np.random.default_rng(0)
    anchors = {"x": random.normal(size=(12, 5)), "shift": random.normal(size=12)}
    candidates = {"x": random.normal(size=(9, 5))}
    weights = random.normal(size=(2, 12))

    def total(anchors, candidates, chunk):
        found = map_rows(spread, anchors, candidates, chunk=chunk)
        return (weights[0] * found["lse"] + weights[1] * found["first"]).sum()

    with jax.enable_x64(True):
        want = jax.value_and_grad(total, argnums=(0, 1))(anchors, candidates, None)
        got = jax.value_and_grad(total, argnums=(0, 1))(anchors, candidates, chunk)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, want)


def judged(anchors, candidates):
    """Labelled anchors, so that some of the inputs are integers; and something to report."""
    s = anchors["x"] @ candidates["x"].T
    same = anchors["label"][:, None] == candidates["label"]
    return {"loss": jax.nn.logsumexp(jnp.where(same, s, -2.0 * s), -1), "largest": s.max(-1)}


@pytest.mark.parametrize("chunk", [1, 4, 5, 100])
def test_sums_in_chunks_have_the_value_and_gradient_of_all_at_once(chunk):
    random = np.random.default_rng(0)
    anchors = {"x": random.normal(size=(12, 5)), "label": random.integers(0, 3, 12)}
    candidates = {"x": random.normal(size=(9, 5)), "label": random.integers(0, 3, 9)}

    def values(x, y, chunk, compute=sum_rows):
        found = compute(judged, anchors | {"x": x}, candidates | {"x": y}, chunk=chunk)
        found = {name: jnp.sum(value) for name, value in found.items()}
        return 3 * found["loss"], found["largest"]

    with jax.enable_x64(True):
        given = anchors["x"], candidates["x"]
        want, slopes = jax.value_and_grad(values, (0, 1), has_aux=True)(*given, None, map_rows)
        got, found = jax.value_and_grad(values, (0, 1), has_aux=True)(*given, chunk)
        np.testing.assert_allclose(values(*given, chunk), want, rtol=1e-12)
        of_what_is_reported = jax.grad(lambda *given: values(*given)[1])(*given, chunk)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, slopes)
    assert not np.asarray(of_what_is_reported).any()


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


def test_row_numbers_over_devices():
    assert row_numbers(3).tolist() == [0, 1, 2]
    if len(jax.devices()) < 2:
        pytest.skip("needs several devices")
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    numbers = jax.shard_map(
        lambda: row_numbers(2, "data"), mesh=mesh, in_specs=(), out_specs=jax.sharding.PartitionSpec("data")
    )()
    assert numbers.tolist() == list(range(2 * len(jax.devices())))
