import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.losses.kl import kl_estimate
from jaxalign.rewards.shaping import kl_penalty, overlong_penalty


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


MASK = np.array([[1, 1, 1], [0, 1, 0], [0, 0, 0]], np.float64)


def test_the_kl_penalty_is_the_sum_of_k1():
    old, reference = np.random.default_rng(0).normal(size=(2, 3, 3))
    k1 = np.asarray(kl_estimate(jnp.asarray(old), jnp.asarray(reference), "k1"))
    actual = kl_penalty(*(np.where(MASK, x, np.nan) for x in (old, reference)), MASK, 0.05)
    np.testing.assert_allclose(actual, -0.05 * (k1 * MASK).sum(axis=1), rtol=1e-12)
    single = kl_penalty(old.astype(np.float32), reference.astype(np.float32), MASK.astype(bool), 0.05)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, actual, rtol=1e-5)


def test_the_kl_penalty_gets_no_gradient():
    x = jnp.ones((3, 3))
    gradients = jax.grad(lambda *x: kl_penalty(*x, MASK, 0.1).sum(), argnums=(0, 1))(x, 2 * x)
    np.testing.assert_array_equal(gradients, 0)


def test_overlong_penalty_has_three_pieces():
    """Free up to 15, then one quarter for every token of the buffer of 4... and -1 from 20 on."""
    lengths = np.array([0, 15, 16, 17, 18, 19, 20, 21, 1000])
    expected = []
    for n in lengths:
        if n <= 20 - 4:
            expected.append(0.0)
        elif n <= 20:
            expected.append((16 - n) / 4)
        else:
            expected.append(-1.0)
    np.testing.assert_allclose(overlong_penalty(lengths, 20, 4), expected)
    with pytest.raises(UserError, match="buffer of 21 tokens"):
        overlong_penalty(lengths, 20, 21)
