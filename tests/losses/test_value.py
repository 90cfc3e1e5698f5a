import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.value import value_loss
from jaxalign.objective import loss, metric_means


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def reference_value_loss(v, old, returns, mask, clip):
    total = 0.0
    for i, t in zip(*np.nonzero(mask), strict=True):
        plain = (v[i, t] - returns[i, t]) ** 2
        limited = min(max(v[i, t], old[i, t] - clip), old[i, t] + clip) if clip is not None else v[i, t]
        total += 0.5 * max(plain, (limited - returns[i, t]) ** 2)
    return total / mask.sum()


@pytest.mark.parametrize("clip", [0.2, None])
def test_the_value_loss_is_that_of_the_formula(clip):
    random = np.random.default_rng(0)
    v, old, returns = random.normal(size=(3, 4, 5))
    mask = (np.arange(5) < np.array([5, 1, 0, 3])[:, None]).astype(np.float64)
    poison = np.where(mask, 0, np.nan)
    inputs = [jnp.asarray(x + poison) for x in (v, old, returns)]
    objective = value_loss(*inputs, jnp.asarray(mask), clip=clip)
    np.testing.assert_allclose(loss(objective), reference_value_loss(v, old, returns, mask, clip), rtol=1e-12)
    means = metric_means(objective.metrics)
    np.testing.assert_allclose(means["value"], v[mask > 0].mean(), rtol=1e-12)
    np.testing.assert_allclose(means["return"], returns[mask > 0].mean(), rtol=1e-12)
    assert (float(means["value_clip_fraction"]) > 0) == (clip is not None)
    gradients = jax.grad(lambda *x: value_loss(*x, jnp.asarray(mask), clip=clip).total, argnums=(0, 1, 2))(*inputs)
    assert np.isfinite(np.asarray(gradients[0])).all()
    assert (np.asarray(gradients[0]) != 0).any()
    np.testing.assert_array_equal(gradients[1:], 0)
