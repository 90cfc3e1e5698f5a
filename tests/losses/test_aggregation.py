import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.aggregation import aggregate, float_sums, masked

MODES = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-scale"]


def problem(seed=0, rows=7, time=5):
    random = np.random.default_rng(seed)
    mask = (random.uniform(size=(rows, time)) < 0.6).astype(np.float64)
    mask[2] = 0
    mask[3] = [0, 1, 1, 0, 0]  # starts late
    return random.normal(size=(rows, time)), mask


def reference(x, mask, mode, scale_length=None, count_empty=False):
    """The table of the docstring as loops; (total, weight)."""
    total, rows, tokens = 0.0, 0, 0
    for i in range(x.shape[0]):
        n = sum(mask[i])
        s = sum(x[i, t] for t in range(x.shape[1]) if mask[i, t])
        tokens += n
        rows += count_empty or n > 0
        if mode == "seq-mean-token-mean":
            s = s / n if n else 0.0
        elif mode == "seq-mean-token-scale":
            s = s / scale_length
        total += s
    return total, tokens if mode == "token-mean" else rows


@pytest.mark.parametrize("count_empty", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_totals_and_weights_are_those_of_the_loops(mode, count_empty):
    x, mask = problem()
    scale_length = 12.0 if mode == "seq-mean-token-scale" else None
    expected = reference(x, mask, mode, scale_length, count_empty)
    with jax.enable_x64(True):
        actual = aggregate(jnp.asarray(x), jnp.asarray(mask), mode, scale_length=scale_length, count_empty=count_empty)
        np.testing.assert_allclose(actual, expected, rtol=1e-12)
        assert actual[0].dtype == actual[1].dtype == np.float64


@pytest.mark.parametrize("mode", MODES)
def test_what_is_masked_has_no_effect_on_value_or_gradient(mode):
    x, mask = problem()
    scale_length = 12.0 if mode == "seq-mean-token-scale" else None

    def total(x):
        return aggregate(x, jnp.asarray(mask, jnp.float32), mode, scale_length=scale_length)[0]

    clean = jax.value_and_grad(total)(jnp.asarray(x, jnp.float32))
    for poison in (np.nan, np.inf, -np.inf):
        value, gradient = jax.value_and_grad(total)(jnp.asarray(np.where(mask, x, poison), jnp.float32))
        np.testing.assert_array_equal(value, clean[0])
        np.testing.assert_array_equal(gradient, clean[1])
    assert (np.asarray(clean[1]) != 0).sum() == mask.sum()


def test_a_nan_that_counts_is_not_hidden():
    x, mask = problem()
    assert np.isnan(aggregate(jnp.asarray(np.where(mask, np.nan, x)), jnp.asarray(mask), "token-mean")[0])


def test_bfloat16_counts_beyond_256():
    """bfloat16 has no number between 256 and 258."""
    ones = jnp.ones((3, 337), jnp.bfloat16)
    total, weight = aggregate(ones, ones, "token-mean")
    assert (float(total), float(weight)) == (1011.0, 1011.0)
    assert total.dtype == weight.dtype == np.float32
    assert float_sums(jnp.ones(2, jnp.int32)).dtype == np.float32


def test_masked_weighs_and_silences():
    x = jnp.array([[1.0, np.nan, 3.0, np.inf]])
    np.testing.assert_array_equal(masked(x, jnp.array([[0.5, 0, 2, 0]])), [[0.5, 0, 6, 0]])


def test_the_padded_width_is_no_part_of_the_result():
    x, mask = problem()
    wider = [np.pad(a, ((0, 0), (0, 9))) for a in (x, mask)]
    for mode in MODES:
        scale_length = 12.0 if mode == "seq-mean-token-scale" else None
        narrow = aggregate(jnp.asarray(x), jnp.asarray(mask), mode, scale_length=scale_length)
        wide = aggregate(*map(jnp.asarray, wider), mode, scale_length=scale_length)
        np.testing.assert_allclose(wide, narrow, rtol=1e-6)


def test_mistakes_are_named():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="unknown aggregation 'mean'"):
        aggregate(x, x, "mean")
    with pytest.raises(ValueError, match="give the generation budget"):
        aggregate(x, x, "seq-mean-token-scale")
    with pytest.raises(ValueError, match="leave it out"):
        aggregate(x, x, "token-mean", scale_length=3.0)
    with pytest.raises(ValueError, match="must be a positive number of tokens"):
        aggregate(x, x, "seq-mean-token-scale", scale_length=0.0)
    with pytest.raises(AssertionError):
        aggregate(x, x[:, :2], "token-mean")
