"""Table policies of prompts whose completions are independent symbols by position; the right symbol is always 0."""

import jax
import jax.numpy as jnp


def log_probs_of(table: jax.Array, ids: jax.Array) -> jax.Array:
    """[P, ..., T] of completions [P, ..., T] under logits [P, T, V]."""
    log_policy = jax.nn.log_softmax(table).reshape(table.shape[0], *[1] * (ids.ndim - 2), *table.shape[1:])
    return jnp.take_along_axis(log_policy, ids[..., None], axis=-1)[..., 0]


def sampled(key: jax.Array, table: jax.Array, group_size: int) -> jax.Array:
    """[P, group_size, T]."""
    return jax.random.categorical(key, table[:, None], shape=(len(table), group_size, table.shape[1]))
