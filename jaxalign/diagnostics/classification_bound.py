"""How far the cross-entropy of a classifier of completions lies above the DPO loss of pairs (BCO's bound)."""

import jax
import jax.numpy as jnp
from jax.nn import softplus


def bound_report(
    reward_chosen: jax.Array, reward_rejected: jax.Array, shift: float | jax.Array = 0.0
) -> dict[str, jax.Array]:
    """The bound of every pair, with r the implicit rewards and delta the shift:

    dpo = -log sigmoid(r_w - r_l)  <  bce = -log sigmoid(r_w - delta) - log sigmoid(delta - r_l)
    gap = bce - dpo = log(1 + error_term / (1 + exp(r_l - r_w)))
    error_term = exp(delta - r_w) + exp(r_l - delta)

    which is least at delta = (r_w + r_l) / 2: 2 exp(-(r_w - r_l) / 2).

    Args:
      reward_chosen, reward_rejected: [...] beta (S - R).
      shift: delta; anything that broadcasts.

    Returns:
      {"dpo", "bce", "gap", "error_term"}, each [...] per pair. The gap is taken from its own formula, which does not
      cancel; the error term overflows to inf where a reward lies 88 below (or above) the shift in float32.

    arXiv 2404.04656, theorem 1; the gap and the least shift were derived for this page (docs/methods/bco.md).
    """
    r_w, r_l = jnp.asarray(reward_chosen), jnp.asarray(reward_rejected)
    shift = jnp.asarray(shift, jnp.result_type(r_w, r_l))
    log_error = jnp.logaddexp(shift - r_w, r_l - shift)
    return {
        "dpo": softplus(r_l - r_w),
        "bce": softplus(shift - r_w) + softplus(r_l - shift),
        "gap": softplus(log_error - softplus(r_l - r_w)),
        "error_term": jnp.exp(log_error),
    }
