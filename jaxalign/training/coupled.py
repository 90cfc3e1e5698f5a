"""Losses of interacting rows over a mesh: all rows one pool, or pools of groups of devices, in one or several passes.

A loss of embeddings (`jaxalign.losses.contrastive`) gives one device's part; here the parts become the whole. Which
axes of the mesh share their rows is the choice of the pool:

  all of the rows' axes   every row is a candidate of every other: the usual global batch
  some of them            grouped aggregation (M2-Encoder, arXiv 2401.15896): rows meet within groups of devices, and
                          gathers stay on the links of a group. The groups' axis should be the fast one.

In micro-batches the rows of a device meet across them too (`CoupledLoss`): with K micro-batches of b rows and groups
of g devices a pool has g b K rows. Consecutive rows of the global batch lie on one device: shuffle across groups.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from jaxalign.errors import UserError
from jaxalign.objective import Objective
from jaxalign.placement import BATCH_AXES
from jaxalign.training.accumulation import CoupledLoss

Axes = tuple[str, ...]
# (rows, shared, axis_name) -> Objective of this device's anchors
PartialLoss = Callable[[Any, Any, Axes | None], Objective]


def over_mesh(
    loss_fn: PartialLoss, mesh: Mesh | None, *, rows_axes: Axes = BATCH_AXES, pool_axes: Axes | None = None
) -> Callable[..., Objective]:
    """`(rows, shared) -> Objective` of all rows, from a loss that knows one device's rows.

    The gradient is to be taken of the result, outside: by `rows` and by `shared`, and it is that of one device that
    holds everything.

    Args:
      loss_fn: `loss_fn(rows, shared, axis_name)`: `rows` is a tree of arrays with this device's rows in front, `shared`
        a tree that is the same everywhere (a temperature, class vectors), `axis_name` the axes to gather over.
      mesh: None: no devices to spread over, `loss_fn` is called with axis_name None.
      rows_axes: axes of the mesh that rows lie over; the other axes repeat the computation.
      pool_axes: those of `rows_axes` whose rows meet. None: all.

    Raises UserError (the returned function): rows that do not divide over the devices, or a pool of a single row. Here:
    an axis in `pool_axes` that no rows lie over.
    """
    pool_axes = rows_axes if pool_axes is None else pool_axes
    strange = [axis for axis in pool_axes if axis not in rows_axes]
    if strange:
        raise UserError(f"pool_axes={pool_axes} must be some of rows_axes={rows_axes}; {strange[0]!r} is not")
    if mesh is None:
        return lambda rows, shared=None: loss_fn(rows, shared, None)

    def part(rows, shared):
        return jax.lax.psum(loss_fn(rows, shared, pool_axes), rows_axes)

    def whole(rows, shared=None):
        check_pools(jax.tree.leaves(rows)[0].shape[0], mesh, rows_axes, pool_axes)
        specs = (PartitionSpec(rows_axes), PartitionSpec())
        return jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(rows, shared)

    return whole


def coupled_over_mesh(
    outputs: Callable[[Any, Any, jax.Array, Any], Any],
    loss_fn: PartialLoss,
    mesh: Mesh | None,
    *,
    shared: Callable[[Any], Any] = lambda params: {},
    columns: tuple[str, ...] = (),
    keyed: bool = False,
    rows_axes: Axes = BATCH_AXES,
    pool_axes: Axes | None = None,
) -> CoupledLoss:
    """The same as a loss that a train step can take in micro-batches, without changing its value or gradient.

    Args:
      outputs: (params, batch, key, extra) -> a dict of arrays with the rows in front, each row from its own row alone.
      loss_fn: as in `over_mesh`; its `rows` are `outputs`' and the named columns of the batch.
      shared: params -> a tree of what the loss learns by itself (a log-scale, class vectors).
      columns: names of arrays of the batch that the loss reads (valid, ids, labels).
      keyed: the loss draws something: what is shared is a dict, and has the key of the step under "key".
      mesh, rows_axes, pool_axes: see `over_mesh`.
    """
    sharded = over_mesh(loss_fn, mesh, rows_axes=rows_axes, pool_axes=pool_axes)

    def objective(given, batch, key, extra):
        del extra
        rows, learned = given
        if keyed:
            learned = {**learned, "key": key}
        return sharded(rows | {name: batch[name] for name in columns}, learned)

    return CoupledLoss(outputs, objective, shared=shared)


def check_pools(rows: int, mesh: Mesh, rows_axes: Axes = BATCH_AXES, pool_axes: Axes | None = None) -> None:
    """Raises UserError: rows that do not divide over the devices of `rows_axes`, or a pool of a single row."""
    devices = math.prod(mesh.shape[axis] for axis in rows_axes)
    group = math.prod(mesh.shape[axis] for axis in (rows_axes if pool_axes is None else pool_axes))
    if rows % devices:
        raise UserError(
            f"{rows} rows do not divide over the {devices} devices of {rows_axes}; change the batch size or the mesh, "
            "or pad the batch with rows that are not valid"
        )
    if rows * group // devices < 2:
        raise UserError(
            f"a pool holds {rows * group // devices} row(s): {rows} rows over {devices} devices in groups of {group}; "
            "a contrastive loss needs at least 2 rows that meet"
        )


def comm_cost(
    devices: int, group: int, rows: int, width: int, *, micro_batches: int = 1, bytes_per_number: int = 4
) -> dict[str, int]:
    """What a two-tower softmax loss costs a device forward in a step: bytes received by gathers, logits held at once.

    With g devices in a group, b rows of a device in each of K micro-batches and embeddings of width d:

      gather_bytes = 2 K (g - 1) b d bytes_per_number,    logit_entries = 2 (K b) (g b K)

    Against one pool of all P devices that is (g - 1) / (P - 1) of the bytes and g / P of the logits. Backward the
    reduce-scatters have the same size as the gathers. In a ring the bytes are 2 K g b d and the logits 2 (K b)^2.

    Raises UserError: devices that do not divide into groups, or a pool of a single row.
    """
    if group < 1 or devices % group:
        raise UserError(f"{devices} devices do not divide into groups of {group}")
    pool = group * rows * micro_batches
    if pool < 2:
        raise UserError(f"groups of {group} device(s) with {rows} row(s) make pools of 1; at least 2 rows must meet")
    return {
        "gather_bytes": 2 * micro_batches * (group - 1) * rows * width * bytes_per_number,
        "logit_entries": 2 * micro_batches * rows * pool,
    }
