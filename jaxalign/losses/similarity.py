"""What every loss of embeddings stands on: unit vectors, and rows of similarities that are never held all at once.

A loss here is a function of one anchor and all candidates. `map_rows` applies it to all anchors, a few at a time, and
to candidates that lie on other devices; the loss itself knows of neither. `sum_rows` adds up what it gives, and is
faster by the similarities that it does not compute again.
"""

import functools
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
    if not _is_cut(anchors, chunk):
        return function(anchors, candidates)
    part = jax.checkpoint(lambda some: function(some, candidates), prevent_cse=False)
    stacked, rest = _cut(anchors, chunk)
    found = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), jax.lax.map(part, stacked))
    return found if rest is None else _joined(found, part(rest))


def sum_rows(
    function: Callable[[Any, Any], dict[str, jax.Array]],
    anchors: Any,
    candidates: Any,
    *,
    chunk: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> dict[str, jax.Array]:
    """The sums over all anchors of what `function` gives for each: {"loss": [k], ...} -> {"loss": scalar, ...}.

    Gradient flows through the sum of "loss" alone. With a chunk it is taken along with the value: where similarities of
    some anchors are at hand their part of the gradient follows, up to the factor that comes from behind, and what is
    kept for the way back is of the size of `anchors` and `candidates`. Nothing is computed twice, against one product
    and one pass over the similarities more in `map_rows`. Second derivatives exist without a chunk only.

    Args: as of `map_rows`. All that the loss learns by must be in `anchors` or `candidates`.

    Raises ValueError: chunk below 1.
    """
    candidates = gathered(candidates, axis_name)

    def sums(some, candidates):
        return {
            name: (x if name == "loss" else jax.lax.stop_gradient(x)).sum()
            for name, x in function(some, candidates).items()
        }

    if not _is_cut(anchors, chunk):
        return sums(anchors, candidates)
    # In `shard_map` a gradient must differ over the same axes as its array: what is equal on some devices is taken as a
    # copy of each, and the gradients of the copies are added up.
    return _in_chunks(sums, chunk, *as_of_one_device((anchors, candidates), (anchors, candidates)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_chunks(sums, chunk, anchors, candidates):
    stacked, rest = _cut(anchors, chunk)
    found = jax.tree.map(lambda x: x.sum(), jax.lax.map(lambda some: sums(some, candidates), stacked))
    return found if rest is None else jax.tree.map(jnp.add, found, sums(rest, candidates))


def _with_gradient(sums, chunk, anchors, candidates):
    """(sums, gradients of the loss's sum by the floats of anchors and candidates)"""
    learning, fixed = _floats(candidates)

    def part(some):
        moving, still = _floats(some)

        def loss(moving, learning):
            found = sums(_both(moving, still), _both(learning, fixed))
            return found["loss"], found

        (_, found), (of_some, of_candidates) = jax.value_and_grad(loss, (0, 1), has_aux=True)(moving, learning)
        return found, of_some, of_candidates

    def step(carry, some):
        found, of_some, of_candidates = part(some)
        return jax.tree.map(jnp.add, carry, (found, of_candidates)), of_some

    stacked, rest = _cut(anchors, chunk)
    shapes = jax.eval_shape(part, jax.tree.map(lambda a: a[0], stacked))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[2]))
    carry, of_anchors = jax.lax.scan(step, as_of_one_device(zeros, (anchors, candidates)), stacked)
    of_anchors = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), of_anchors)
    if rest is not None:
        carry, of_rest = step(carry, rest)
        of_anchors = _joined(of_anchors, of_rest)
    return carry[0], (of_anchors, carry[1])


def _times_gradient(sums, chunk, gradients, cotangents):
    return jax.tree.map(lambda x: cotangents["loss"].astype(x.dtype) * x, gradients)


_in_chunks.defvjp(_with_gradient, _times_gradient)


def as_of_one_device(tree: Any, like: Any) -> Any:
    """`tree` itself, for a loop that will make it depend on all that `like` depends on.

    `shard_map` knows over which axes of the mesh an array differs, and wants to know that of a loop's carry beforehand.
    A choice between x and x that depends on `like` is x with the axes of both.
    """
    anything = sum(jnp.where(jnp.ravel(leaf)[0] == 0, 0, 0) for leaf in jax.tree.leaves(like))
    return jax.tree.map(lambda x: jnp.where(anything == 0, x, x), tree)


def _is_cut(anchors: Any, chunk: int | None) -> bool:
    """Whether there are several chunks."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    return chunk is not None and chunk < jax.tree.leaves(anchors)[0].shape[0]


def _cut(anchors: Any, chunk: Any) -> tuple[Any, Any]:
    """(the whole chunks [chunks, chunk, ...], what is left [rows, ...] or None)"""
    rows = jax.tree.leaves(anchors)[0].shape[0]
    whole = rows // chunk * chunk
    stacked = jax.tree.map(lambda a: a[:whole].reshape(-1, chunk, *a.shape[1:]), anchors)
    return stacked, None if whole == rows else jax.tree.map(lambda a: a[whole:], anchors)


def _joined(one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, other)


def _floats(tree: Any) -> tuple[Any, Any]:
    """(the tree with None for what is no float, the tree with None for what is)"""
    kinds = jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jnp.floating), tree)
    return tuple(
        jax.tree.map(lambda x, kind, keep=keep: x if kind == keep else None, tree, kinds) for keep in (True, False)
    )


def _both(floats: Any, others: Any) -> Any:
    return jax.tree.map(lambda x, y: y if x is None else x, floats, others, is_leaf=lambda x: x is None)
