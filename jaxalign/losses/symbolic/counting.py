"""Weighted model counting in logarithms: how probable it is that a formula comes out true.

The sum over the true rows of a table is not taken row by row. The table is folded into its reduced decision diagram,
in which a variable that makes no difference does not appear. A conjunction of variables is then the plain sum of their
log-probs: DPO's ratio takes four terms, without rounding of its own, and no 1 - p where the formula has none.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxalign.losses.symbolic.tables import Table, number_of_variables


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x <= 0, with relative precision at both ends.

    x is held at most -8 units of rounding (about -1e-6 in float32), where the result and its gradient are still finite;
    no gradient flows beyond.
    """
    x = jnp.minimum(x, -8 * jnp.finfo(x.dtype).eps)
    return jnp.where(x > -jnp.log(2.0), jnp.log(-jnp.expm1(x)), jnp.log1p(-jnp.exp(x)))


def log_weighted_count(table: Table, log_probs: Sequence[jax.Array]) -> jax.Array:
    """log of the sum over the true rows of prod_{i true} p_i prod_{i false} (1 - p_i).

    Args:
      table: 2^n booleans, see `tables`. Static: it shapes the program.
      log_probs: n arrays of one shape, log p_i in nats, at most 0. A positive one is taken as it is where only p
        occurs, and as 0 where 1 - p does.

    Returns:
      An array of that shape; 0 for the full table and -inf for the empty one. Finite log-probs give finite gradients
      (log-probs of -1e4 too).

    Raises:
      ValueError: the table is not one of n variables.
    """
    if number_of_variables(table) != len(log_probs):
        raise ValueError(f"a table of {len(table)} rows is not one of {len(log_probs)} variables")
    shape, dtype = jnp.broadcast_shapes(*map(jnp.shape, log_probs)), jnp.result_type(*log_probs)
    known: dict[Table, jax.Array | None] = {}

    def count(part: Table) -> jax.Array | None:
        """The count of a subtable, whose length tells which variables are left; None if it is empty."""
        if all(part):
            return jnp.zeros(shape, dtype)
        if not any(part):
            return None
        if part not in known:
            half = len(part) // 2
            if part[:half] == part[half:]:
                return count(part[:half])
            log_prob = log_probs[len(log_probs) - number_of_variables(part)]
            if_true, if_false = count(part[:half]), count(part[half:])
            if if_false is None:
                assert if_true is not None
                known[part] = log_prob + if_true
            elif if_true is None:
                known[part] = log1mexp(log_prob) + if_false
            else:
                known[part] = jnp.logaddexp(log_prob + if_true, log1mexp(log_prob) + if_false)
        return known[part]

    result = count(table)
    return jnp.full(shape, -jnp.inf, dtype) if result is None else result
