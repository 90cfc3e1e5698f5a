"""Weighted model counting against sums over rows, and at the ends of the scale."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.losses.symbolic.counting import log1mexp, log_weighted_count
from jaxalign.losses.symbolic.syntax import parse
from jaxalign.losses.symbolic.tables import truth_table
from tests.losses.symbolic.random_formulas import NAMES, tables, weighted_count

log_probs = st.floats(-20, -1e-3)


@given(st.integers(1, 4).flatmap(lambda n: st.tuples(tables(n), st.tuples(*[log_probs] * n))))
def test_it_is_the_sum_over_rows(case):
    table, values = case
    with jax.enable_x64(True):
        count = float(log_weighted_count(table, [jnp.float64(value) for value in values]))
    expected = weighted_count(table, [math.exp(value) for value in values])
    # plain sums of 1 - p lose digits where the count itself is small
    assert math.exp(count) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_all_two_variable_tables_partition():
    """A table and its complement count to 1."""
    with jax.enable_x64(True):
        for table in itertools.product((True, False), repeat=4):
            p = [jnp.float64(-0.3), jnp.float64(-1.7)]
            other = tuple(not value for value in table)
            total = jnp.exp(log_weighted_count(table, p)) + jnp.exp(log_weighted_count(other, p))
            assert float(total) == pytest.approx(1, abs=1e-14)


def test_conjunctions_are_plain_sums():
    """No rounding and no 1 - p: DPO's count is exact even where a probability is 1."""
    table = truth_table(parse("chosen & reference_rejected"), NAMES)
    values = [np.float32(x) for x in (0.0, 0.0, 0.0, -12345.5)]
    assert float(log_weighted_count(table, values)) == -12345.5
    gradient = jax.grad(lambda x: log_weighted_count(table, list(x)))(jnp.asarray(values))
    np.testing.assert_array_equal(gradient, [1, 0, 0, 1])


def test_the_full_and_the_empty_table():
    x = [jnp.zeros((3, 2)), jnp.zeros((3, 2))]
    np.testing.assert_array_equal(log_weighted_count((True,) * 4, x), np.zeros((3, 2)))
    np.testing.assert_array_equal(log_weighted_count((False,) * 4, x), np.full((3, 2), -np.inf))


def test_every_table_is_finite_at_the_ends():
    """Values and gradients at log-probs from -1e4 to 0, in float32."""
    ends = jnp.asarray(list(itertools.product((-1e4, -200.0, -1.0, -1e-6, 0.0), repeat=2)), jnp.float32)
    all_tables = [table for table in itertools.product((True, False), repeat=4) if any(table)]

    def counts(x):
        return jnp.stack([log_weighted_count(table, [x[0], x[1]]) for table in all_tables])

    values, gradients = jax.jit(jax.vmap(lambda x: (counts(x), jax.jacrev(counts)(x))))(ends)
    assert values.shape == (25, 15)
    assert bool(jnp.isfinite(values).all())
    assert bool(jnp.isfinite(gradients).all())


@pytest.mark.parametrize("x", [-1e-12, -1e-5, -0.5, -math.log(2), -1.0, -30.0, -700.0])
def test_log1mexp_keeps_relative_precision(x):
    with jax.enable_x64(True):
        value, slope = jax.value_and_grad(log1mexp)(jnp.float64(x))
    assert float(value) == pytest.approx(math.log(-math.expm1(x)) if x > -0.7 else math.log1p(-math.exp(x)), rel=1e-12)
    assert float(slope) == pytest.approx(math.exp(x) / math.expm1(x), rel=1e-9)


def test_log1mexp_stops_before_infinity():
    value, slope = jax.vmap(jax.value_and_grad(log1mexp))(jnp.float32([0.0, 3.0]))
    assert np.isfinite(value).all() and (np.asarray(value) < -13).all()
    np.testing.assert_array_equal(slope, [0, 0])


def test_a_table_of_another_size_is_refused():
    with pytest.raises(ValueError, match="table of 4 rows is not one of 1"):
        log_weighted_count((True,) * 4, [jnp.zeros(3)])
