"""Devices as a mesh with the axes data, fsdp and tensor, and processes as one run.

`data` replicates the parameters, `fsdp` shards them, `tensor` splits heads, MLP width and vocabulary.
A batch is split over (data, fsdp). The axes always exist; an axis of size 1 costs nothing, so the same
program runs on one CPU device and on a pod.
"""

import glob
import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import UserError
from jaxalign.placement import BATCH_AXES

AXES = (*BATCH_AXES, "tensor")


class ProcessInfo(NamedTuple):
    """Which process of the run this is, and what it can see."""

    index: int
    count: int
    local_devices: int
    devices: int


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices` (default: all of them); at most one size is -1 and takes what is left.

    The axes are of type Auto: the compiler propagates shardings through the program, and
    `jax.lax.with_sharding_constraint` is a request. (`jax.make_mesh` alone gives Explicit axes.)

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    text = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"{text}: sizes are positive, and only one of them may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"{text} does not fit {len(devices)} device(s): "
            "the sizes must multiply to that number; use -1 for the axis that takes what is left"
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_shards(mesh: Mesh) -> int:
    """Into how many pieces the batch axis is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every batch array: leading axis over (data, fsdp), the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Host arrays of this process's rows -> global arrays sharded by `batch_sharding`.

    With several processes each passes its own rows, and the global batch is all of them in the order
    of the processes.

    Raises:
      UserError: the rows of an array do not divide over the devices of this process.
    """
    sharding = batch_sharding(mesh)
    local = max(batch_shards(mesh) // jax.process_count(), 1)

    def put(path, leaf):
        _check_rows(path, leaf, local)
        return jax.make_array_from_process_local_data(sharding, leaf)

    return jax.tree_util.tree_map_with_path(put, batch)


def spread(batch: Any, mesh: Mesh, *, fill: bool = False) -> Any:
    """Host arrays of the whole batch, equal in all processes -> global arrays sharded by `batch_sharding`.

    fill: rows are repeated, in order, until they divide over the devices.

    Raises:
      UserError: without `fill`, the rows of an array do not divide over the devices.
    """
    shards = batch_shards(mesh)

    def put(path, leaf):
        leaf = np.asarray(leaf)
        if fill:
            leaf = leaf[np.resize(np.arange(len(leaf)), -(-len(leaf) // shards) * shards)]
        _check_rows(path, leaf, shards)
        return jax.make_array_from_callback(leaf.shape, batch_sharding(mesh), leaf.__getitem__)

    return jax.tree_util.tree_map_with_path(put, batch)


def _check_rows(path, leaf, shards: int) -> None:
    if leaf.ndim == 0 or leaf.shape[0] % shards:
        raise UserError(
            f"batch{jax.tree_util.keystr(path)} has shape {leaf.shape}: its rows must divide over "
            f"{shards} device(s) of (data, fsdp); change the batch size or the mesh"
        )


def gather(tree: Any) -> Any:
    """Arrays on devices -> host arrays, whole and equal in all processes (all of which must call)."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def all_processes(array: Any) -> np.ndarray:
    """A host array of each process, of equal shapes -> all of them, stacked in the order of the processes."""
    if jax.process_count() == 1:
        return np.asarray(array)[None]
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(np.asarray(array))


def part_of_process(length: int) -> slice:
    """This process's part of `length` things: contiguous, in the order of the processes, together all of them."""
    count, index = jax.process_count(), jax.process_index()
    return slice(length * index // count, length * (index + 1) // count)


def join_parts(part: np.ndarray, length: int) -> np.ndarray:
    """The rows that each process has for its `part_of_process` -> all `length` rows, in every process."""
    room = -(-length // jax.process_count()) - len(part)
    padded = np.pad(part, ((0, room), *((0, 0),) * (part.ndim - 1)))
    parts = all_processes(padded)
    sizes = [length * (i + 1) // len(parts) - length * i // len(parts) for i in range(len(parts))]
    return np.concatenate([rows[:size] for rows, size in zip(parts, sizes, strict=True)])


def check_agreement(what: str, value: Mapping[str, Any]) -> None:
    """Raises UserError in every process unless `value` (of things that JSON can hold) is the same in all of them.

    Processes that run different programs would wait for each other for ever.
    """
    text = np.frombuffer(json.dumps(dict(value), sort_keys=True, default=str).encode(), np.uint8)
    room = int(all_processes(np.array(len(text))).max())
    texts = all_processes(np.pad(text, (0, room - len(text)), constant_values=ord(" ")))
    first, *others = (json.loads(row.tobytes()) for row in texts)
    for index, other in enumerate(others, 1):
        different = sorted(key for key in {*first, *other} if first.get(key) != other.get(key))
        if different:
            key = different[0]
            raise UserError(
                f"the processes of this run do not have the same {what}: {key} is {first.get(key)!r} in process 0 and "
                f"{other.get(key)!r} in process {index}; start all with the same files and command"
            )


def _cluster_announces_itself() -> bool:
    """Whether `jax.distributed.initialize()` without arguments finds several processes to join."""
    environment = os.environ
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 or "OMPI_MCA_orte_hnp_uri" in environment:
        return True
    tpu = importlib.util.find_spec("libtpu") is not None
    return tpu and bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def initialize_distributed(config: Mapping[str, Any] | None = None) -> ProcessInfo:
    """Joins the processes of one run; to be called before anything touches a device.

    Keys of `config`, all optional: `coordinator_address` ("host:port"), `num_processes`, `process_id`.
    Without an address nothing is needed on a Cloud TPU slice, under `srun` or `mpirun`: the runtime
    finds its neighbours. A lone process joins nothing. A second call only reports.

    Raises:
      UserError: an address without the number of processes or the id of this one.
    """
    config = config or {}
    address = config.get("coordinator_address") or None
    numbers = {key: config.get(key) for key in ("num_processes", "process_id")}
    if address and numbers["num_processes"] != 1:
        missing = [key for key, value in numbers.items() if value is None]
        if missing:
            raise UserError(
                f"distributed.coordinator_address={address!r} needs {' and '.join(missing)} too: "
                "give every process the same number of processes and its own id"
            )
    several = numbers["num_processes"] != 1 if address else _cluster_announces_itself()
    if several and not jax.distributed.is_initialized():
        # Only the CPU backend reads this; without it its devices know no other process.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, **numbers)
    return ProcessInfo(jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count())
