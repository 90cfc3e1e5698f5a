"""What every loss of embeddings stands on: unit vectors, and rows of similarities that are never held all at once.

A loss here is a function of one anchor and all candidates. `map_rows` applies it to all anchors, a few at a time, and
to candidates that lie on other devices; the loss itself knows of neither.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def unit(x: jax.Array) -> jax.Array:
    """x / ||x|| along the last axis, in float32 or better; 0, with zero gradient, where x is 0."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squared = jnp.sum(x * x, -1, keepdims=True)
    # The root is taken of 1 where the norm is 0: its derivative at 0 would be infinite. A NaN stays one.
    nothing = squared == 0
    return jnp.where(nothing, 0, x * jax.lax.rsqrt(jnp.where(nothing, 1, squared)))


def gathered(tree: Any, axis_name: str | tuple[str, ...] | None) -> Any:
    """The rows of all devices along `axis_name` (inside `jax.shard_map`), in the order of the global batch.

    Gradient flows back to the device that a row came from. None: the tree itself.
    """
    if axis_name is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis_name, tiled=True), tree)


def row_numbers(rows: int, axis_name: str | tuple[str, ...] | None = None) -> jax.Array:
    """[rows] positions of this device's rows in the global batch: device index * rows + row."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
    return first + jnp.arange(rows)


def map_rows(
    function: Callable[[Any, Any], Any],
    anchors: Any,
    candidates: Any,
    *,
    chunk: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Any:
    """`function(anchors, candidates)`, a tree of arrays [n, ...] with one row an anchor, `chunk` anchors at a time.

    Args:
      function: gets a tree of anchors [k, ...] and all candidates; what it gives for an anchor must depend on that
        anchor and the candidates only. Its intermediate arrays, such as similarities [k, N], are computed again
        backward, so that at most one chunk of them exists at any time.
      anchors: tree of arrays [n, ...].
      candidates: tree of arrays [N, ...]; with `axis_name` this device's part of them.
      chunk: anchors at a time; need not divide n. None: all at once, and nothing is computed again.
      axis_name: axes of the mesh over which candidates are gathered first, inside `jax.shard_map`.

    Raises ValueError: chunk below 1.
    """
    candidates = gathered(candidates, axis_name)
    rows = jax.tree.leaves(anchors)[0].shape[0]
    if chunk is None or chunk >= rows:
        return function(anchors, candidates)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    whole = rows // chunk * chunk
    part = jax.checkpoint(lambda some: function(some, candidates), prevent_cse=False)
    stacked = jax.tree.map(lambda a: a[:whole].reshape(-1, chunk, *a.shape[1:]), anchors)
    found = jax.lax.map(part, stacked)
    found = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), found)
    if whole == rows:
        return found
    rest = part(jax.tree.map(lambda a: a[whole:], anchors))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), found, rest)
