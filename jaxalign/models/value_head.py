"""A value function on top of a decoder: one linear map of its hidden states, kept among its parameters.

The decoder knows nothing of the entry, and neither do export and sampling.
"""

import jax
import jax.numpy as jnp

NAME = "value_head"


def init_value_head(embed_dim: int) -> dict:
    """{"kernel" [D], "bias" []}: zeros, so that all values are 0 before the first step."""
    return {"kernel": jnp.zeros((embed_dim,)), "bias": jnp.zeros(())}


def head_values(params: dict, hidden: jax.Array, *, detached: bool) -> jax.Array:
    """[...] float32 values of hidden states [..., D], in units of reward.

    `detached` stops the gradient at the hidden states: the value function is then a linear reading of what the policy
    computes, and its error does not move the policy.
    """
    hidden = jax.lax.stop_gradient(hidden) if detached else hidden
    head = params[NAME]
    return jnp.einsum("...d,d->...", hidden.astype(jnp.float32), head["kernel"]) + head["bias"]


def without_value_head(params: dict) -> dict:
    """The decoder's own parameters."""
    return {name: tree for name, tree in params.items() if name != NAME}
