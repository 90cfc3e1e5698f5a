"""What each anchor finds among the candidates of all devices: gathered first, or passed round in a ring.

A loss says what it looks for in a set of candidates and how the findings of two sets become those of both: as a sum, a
maximum, or the logarithm of a sum of exponentials. It knows of no device.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.losses.similarity import as_of_one_device, map_rows, sum_rows

# The logit of a candidate that does not count. Beside any other its weight exp(NEVER - log_sum) is exactly 0; being
# finite it leaves no 0 / 0 in the gradient of a row without candidates, where -inf would.
NEVER = -1e30


class Join(NamedTuple):
    """How findings about two sets of candidates become one, and what is found where there are none."""

    both: Callable[[jax.Array, jax.Array], jax.Array]
    nothing: float


SUM = Join(jnp.add, 0.0)
MAX = Join(jnp.maximum, NEVER)
LOG_SUM = Join(jnp.logaddexp, NEVER)


def over_candidates(
    function: Callable[[Any, Any], dict[str, jax.Array]],
    joins: Mapping[str, Join],
    anchors: Any,
    candidates: Any,
    *,
    chunk: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    ring: bool = False,
) -> dict[str, jax.Array]:
    """`function(anchors, candidates)`, a dict of arrays [n, ...], over the candidates of all devices on `axis_name`.

    With P devices of n rows of width D each, forward, for one tree of candidates:

    | scheme | similarities held        | candidates held         | sent by a device      |
    |--------|--------------------------|-------------------------|-----------------------|
    | gather | n x P n (or chunk x P n) | P n D                   | (P - 1) n D           |
    | ring   | chunk x n                | P n D, for the way back | P n D, in P steps     |

    In the ring every device looks at one block of candidates while it passes it on; the similarities are computed
    again backward. Values and gradients are the same, up to the order of sums; gradient flows back to the device that
    a candidate came from.

    Args:
      function: gets anchors [k, ...] and any candidates, see `map_rows`.
      joins: for each name that `function` returns, how two sets of candidates are joined.
      anchors: tree of arrays [n, ...].
      candidates: tree of arrays [N, ...]: this device's part.
      chunk: anchors at a time. None: all at once; in a ring, where similarities are computed again anyway, 256.
      axis_name: axes of the mesh, inside `jax.shard_map`. None: the candidates are all there.
      ring: pass the candidates round instead of gathering them; needs `axis_name`.

    Raises ValueError: a ring without an axis; chunk below 1.
    """
    if not ring:
        return map_rows(function, anchors, candidates, chunk=chunk, axis_name=axis_name)
    if axis_name is None:
        raise ValueError("ring=True passes candidates from device to device along axis_name, which is missing")
    devices = jax.lax.axis_size(axis_name)
    onwards = [(device, (device + 1) % devices) for device in range(devices)]

    def look(block):
        return map_rows(function, anchors, block, chunk=256 if chunk is None else chunk)

    def step(carry, _):
        found, block = carry
        passed = jax.lax.ppermute(block, axis_name, onwards)  # under way while the block is looked at
        seen = look(block)
        return ({name: joins[name].both(found[name], seen[name]) for name in found}, passed), None

    shapes = jax.eval_shape(look, candidates)
    found = {name: jnp.full(shape.shape, joins[name].nothing, shape.dtype) for name, shape in shapes.items()}
    carry = as_of_one_device((found, candidates), (anchors, candidates, jax.lax.axis_index(axis_name)))
    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), carry, length=devices)[0][0]


def sum_over_candidates(
    function: Callable[[Any, Any], dict[str, jax.Array]],
    joins: Mapping[str, Join],
    finish: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]],
    anchors: Any,
    candidates: Any,
    *,
    chunk: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    ring: bool = False,
) -> dict[str, jax.Array]:
    """Sums over this device's anchors of what `finish` makes of the findings: {"loss": scalar, ...}, see `sum_rows`.

    `finish(anchors, found)` gets anchors and what was found for them over all candidates, and gives arrays [k]. Other
    arguments, and the errors, are those of `over_candidates`; in a ring the similarities are computed again backward.
    """
    if ring:
        found = over_candidates(function, joins, anchors, candidates, chunk=chunk, axis_name=axis_name, ring=True)
        return sum_rows(finish, anchors, found)
    return sum_rows(
        lambda anchors, candidates: finish(anchors, function(anchors, candidates)),
        anchors,
        candidates,
        chunk=chunk,
        axis_name=axis_name,
    )
