"""Group whitening by its property and against NumPy, its gradient, and the loss of several views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxalign.losses import whitening

ROWS, WIDTH, GROUPS, TAU = 16, 6, 2, 0.2
VALID = np.arange(ROWS) % 5 != 3


def vectors(seed=0, rows=ROWS):
    """Correlated channels of different size; NaN in rows that do not count."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, WIDTH)) @ random.normal(size=(WIDTH, WIDTH)) * (1 + np.arange(WIDTH)) + 3
    x[~VALID[:rows]] = np.nan
    return x


def permutation(seed=0):
    return np.random.default_rng(seed).permutation(WIDTH)


def by_numpy(x, order, groups, epsilon):
    """Rows that all count; symmetric roots by the singular values."""
    y = np.empty_like(x)
    for channels in np.split(order, groups):
        part = x[:, channels] - x[:, channels].mean(0)
        covariance = part.T @ part / len(x)
        covariance += epsilon * np.trace(covariance) / len(channels) * np.eye(len(channels))
        u, s, _ = np.linalg.svd(covariance)
        y[:, channels] = part @ (u / np.sqrt(s)) @ u.T
    return y


def test_groups_are_white_and_channels_stay_in_place():
    x, order = vectors(), permutation()
    whiten = jax.jit(whitening.shuffled_group_whiten, static_argnums=2, static_argnames="epsilon")
    with jax.enable_x64(True):
        y, white = (np.asarray(whiten(x, order, GROUPS, epsilon=e, valid=VALID)) for e in (0.01, 0.0))
    np.testing.assert_allclose(y[VALID], by_numpy(x[VALID], order, GROUPS, 0.01), rtol=1e-9, atol=1e-12)
    assert (y[~VALID] == 0).all()
    for channels in np.split(order, GROUPS):
        part = white[VALID][:, channels]
        np.testing.assert_allclose(part.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(part.T @ part / len(part), np.eye(len(channels)), atol=1e-9)


def test_one_group_forgets_affine_maps_and_the_order_and_single_channels_are_standardised():
    x = np.nan_to_num(vectors(), nan=1.0)
    random = np.random.default_rng(1)
    other = x @ random.normal(size=(WIDTH, WIDTH)) + random.normal(size=WIDTH)
    whiten = jax.jit(whitening.shuffled_group_whiten, static_argnums=2, static_argnames="epsilon")
    with jax.enable_x64(True):
        first = np.asarray(whiten(x, permutation(), 1, epsilon=0.0))
        second = np.asarray(whiten(other, permutation(1), 1, epsilon=0.0))
        single = np.asarray(whiten(x, permutation(), WIDTH, epsilon=0.0))
    np.testing.assert_allclose(first @ first.T, second @ second.T, atol=1e-8)
    np.testing.assert_allclose(single, (x - x.mean(0)) / x.std(0), rtol=1e-9)


def test_gradient_flows_through_centring_and_product_only():
    x, order = vectors(), permutation()
    cotangent = np.random.default_rng(2).normal(size=x.shape)

    def total(x):
        return (cotangent * whitening.shuffled_group_whiten(x, order, GROUPS, epsilon=0.01, valid=VALID)).sum()

    with jax.enable_x64(True):
        gradient = np.asarray(jax.jit(jax.grad(total))(x))
    expected = np.zeros_like(x)
    for channels in np.split(order, GROUPS):
        part = x[VALID][:, channels]
        covariance = np.cov(part.T, ddof=0)
        covariance += 0.01 * np.trace(covariance) / len(channels) * np.eye(len(channels))
        values, u = np.linalg.eigh(covariance)
        back = cotangent[VALID][:, channels] @ (u / np.sqrt(values)) @ u.T
        expected[np.ix_(VALID, channels)] = back - back.mean(0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 1e-4])
def test_fewer_rows_than_channels_and_a_constant_channel_are_finite(epsilon):
    x = np.nan_to_num(vectors(rows=3), nan=1.0).astype(np.float32)
    x[:, 2] = 7
    loss = jax.jit(
        jax.value_and_grad(lambda x: (whitening.shuffled_group_whiten(x, jnp.arange(6), 1, epsilon=epsilon) ** 3).sum())
    )
    for some in (x, np.full_like(x, 2.0)):
        value, gradient = loss(some)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def views():
    return np.stack([vectors(seed) for seed in range(3)]), np.stack([permutation(seed) for seed in range(3)])


def head(y):
    return jnp.tanh(y @ jnp.asarray(np.random.default_rng(5).normal(size=(WIDTH, 4)), y.dtype))


def test_loss_equals_loops_over_views_and_rows():
    x, orders = views()
    z = [
        np.tanh(by_numpy(v[VALID], o, GROUPS, 1e-4) @ np.random.default_rng(5).normal(size=(WIDTH, 4)))
        for v, o in zip(x, orders, strict=True)
    ]
    z = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in z]
    total, apart = 0.0, 0.0
    for weight, other in zip((1.0, 0.5), z[1:], strict=True):
        s = z[0] @ other.T / TAU
        total += weight * (np.log(np.exp(s).sum(1)) - np.diag(s)).sum()
        apart += ((z[0] - other) ** 2).sum()
    with jax.enable_x64(True):
        loss = jax.jit(
            lambda x: whitening.whitened_cse_loss(
                x, orders, groups=GROUPS, temperature=TAU, head=head, view_weights=(1.0, 0.5), valid=VALID
            )
        )
        found = jax.tree.map(float, loss(x))
    np.testing.assert_allclose(found.total, total, rtol=1e-9)
    assert found.weight == VALID.sum()
    np.testing.assert_allclose(found.metrics["alignment"], (apart, 2 * VALID.sum()), rtol=1e-9)


@pytest.mark.devices(8)
def test_devices_share_statistics_and_candidates():
    x, orders = views()
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("data",))
    options = dict(groups=GROUPS, temperature=TAU, head=head)

    def spread(x):
        def part(x, valid):
            found = whitening.whitened_cse_loss(x, orders, valid=valid, axis_name="data", **options)
            return jax.lax.psum(found, "data")

        specs = (PartitionSpec(None, "data"), PartitionSpec("data"))
        found = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(x, VALID)
        return found.total, found

    def whole(x, **more):
        found = whitening.whitened_cse_loss(x, orders, valid=VALID, **options, **more)
        return found.total, found

    with jax.enable_x64(True):
        expected, *others = (
            jax.jit(jax.value_and_grad(form, has_aux=True))(x) for form in (whole, lambda x: whole(x, chunk=3), spread)
        )
        for found in others:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), found, expected)


def test_running_moments_are_those_of_all_rows():
    x = np.nan_to_num(vectors(rows=16), nan=2.0)
    with jax.enable_x64(True):
        state = whitening.init_moments(WIDTH)
        update = jax.jit(whitening.update_moments)
        for part in np.split(x, 4):
            state = update(state, part)
        np.testing.assert_allclose(state.mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(state.covariance, np.cov(x.T, ddof=0), rtol=1e-10)
        whole = jax.jit(whitening.whiten_with, static_argnames="epsilon")(state, x, epsilon=0.0)
        np.testing.assert_allclose(whole, by_numpy(x, np.arange(WIDTH), 1, 0.0), rtol=1e-8, atol=1e-10)
        # With decay the earlier rows count less: weights 1/2 and 1 of two batches.
        state = update(update(whitening.init_moments(WIDTH), x[:8]), x[8:], 0.5)
        np.testing.assert_allclose(state.mean, (0.5 * x[:8].mean(0) + x[8:].mean(0)) / 1.5, rtol=1e-12)


def test_each_view_has_an_order_of_its_own():
    orders = np.asarray(whitening.view_permutations(jax.random.key(0), 3, 20))
    assert (np.sort(orders, axis=1) == np.arange(20)).all()
    assert (orders[0] != orders[1]).any() and (orders[1] != orders[2]).any()


def test_impossible_arguments():
    x, orders = (jnp.asarray(array) for array in views())
    with pytest.raises(ValueError, match="groups=4 must divide the 6 channels"):
        whitening.shuffled_group_whiten(x[0], orders[0], 4)
    with pytest.raises(ValueError, match="not 1 of 16"):
        whitening.whitened_cse_loss(x[:1], orders[:1], groups=2)
    with pytest.raises(ValueError, match="not 3 of 1"):
        whitening.whitened_cse_loss(x[:, :1], orders, groups=2)
    with pytest.raises(ValueError, match="view_weights has 1"):
        whitening.whitened_cse_loss(x, orders, groups=2, view_weights=(1.0,))
    with pytest.raises(ValueError, match="temperature=0"):
        whitening.whitened_cse_loss(x, orders, groups=2, temperature=0)
