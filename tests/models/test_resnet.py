"""Batch statistics, running statistics and the residual network against plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models.resnet import ResNet, _batch_statistics

NETWORK = ResNet((4, 4, 2), widths=(3, 4), feature_dim=5, classes=3)


def batch(rows=6, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, 4, 4, 2)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("network", "mode"))  # compiled once for all tests
def applied(params, statistics, images, *, mode, valid=None, network=NETWORK):
    return network.apply(params, statistics, images, mode=mode, valid=valid)


def started(network=NETWORK):
    return network.init(jax.random.key(0)), network.init_statistics()


def test_batch_statistics_leave_padding_out():
    images = batch()
    padded = np.concatenate([images, np.full((2, 4, 4, 2), 1e3, np.float32)])
    got = _batch_statistics(jnp.asarray(padded), jnp.arange(8) < 6, None)
    np.testing.assert_allclose(got["mean"], images.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["variance"], images.var((0, 1, 2)), rtol=1e-5)


def test_padding_changes_no_prediction_whatever_it_holds():
    params, statistics = started()
    images = batch()
    padded = np.concatenate([images, np.full((2, 4, 4, 2), np.nan, np.float32)])
    want = applied(params, statistics, images, mode="train")
    got = applied(params, statistics, padded, mode="train", valid=jnp.arange(8) < 6)
    np.testing.assert_allclose(got.logits[:6], want.logits, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got.statistics, want.statistics)
    function = jax.grad(
        lambda p: NETWORK.apply(p, statistics, padded, mode="batch", valid=np.arange(8) < 6).logits[:6].sum()
    )
    gradient = jax.jit(function)(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_modes():
    params, statistics = started()
    images = batch()
    trained = applied(params, statistics, images, mode="train")
    again = applied(params, statistics, images, mode="batch")
    np.testing.assert_array_equal(trained.logits, again.logits)  # both normalise by the batch
    jax.tree.map(np.testing.assert_array_equal, again.statistics, statistics)
    kernel = params["stage0"]["kernel"]
    first = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    moved = trained.statistics["stage0"]
    np.testing.assert_allclose(moved["mean"], 0.1 * np.asarray(first).mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved["variance"], 0.9 + 0.1 * np.asarray(first).var((0, 1, 2)), rtol=1e-5)
    one, all_rows = (applied(params, trained.statistics, x, mode="running").logits for x in (images[:1], images))
    np.testing.assert_allclose(one, all_rows[:1], rtol=1e-4, atol=1e-5)  # rows do not meet
    assert np.abs(all_rows - again.logits).max() > 1e-2
    with pytest.raises(ValueError, match="unknown mode 'eval'"):
        applied(params, statistics, images, mode="eval")
    with pytest.raises(ValueError, match="the network takes"):
        applied(params, statistics, images[:, :3], mode="batch")


def test_residual_blocks_add_to_what_they_get():
    network = ResNet((4, 4, 2), widths=(3, 4), blocks=1, feature_dim=5, classes=3)
    params, statistics = started(network)
    silent = {  # the second normalisation of every block gives 0
        name: layer | {"norm": jax.tree.map(jnp.zeros_like, layer["norm"])} if name.endswith("0b") else layer
        for name, layer in params.items()
    }
    plain = {name: layer for name, layer in params.items() if "block" not in name}
    got = applied(silent, statistics, batch(), mode="batch", network=network).logits
    np.testing.assert_allclose(got, applied(plain, started()[1], batch(), mode="batch").logits, rtol=1e-5)
    assert np.abs(applied(params, statistics, batch(), mode="batch", network=network).logits - got).max() > 1e-2


@pytest.mark.devices(4)
def test_statistics_over_devices_are_those_of_the_whole_batch():
    params, statistics = started()
    images, valid = batch(8), np.arange(8) % 4 != 1
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ("data",))
    rows, everywhere = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def of_part(images, valid):
        out = NETWORK.apply(params, statistics, images, mode="train", valid=valid, axis_name="data")
        return out.logits, out.statistics

    logits, moved = jax.jit(jax.shard_map(of_part, mesh=mesh, in_specs=(rows, rows), out_specs=(rows, everywhere)))(
        images, valid
    )
    want = applied(params, statistics, images, mode="train", valid=valid)
    np.testing.assert_allclose(logits[valid], want.logits[valid], rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved, want.statistics)
