"""Devices as a mesh with the axes data, fsdp and tensor, and processes as one run.

`data` replicates the parameters, `fsdp` shards them, `tensor` splits heads, MLP width and vocabulary.
A batch is split over (data, fsdp). The axes always exist; an axis of size 1 costs nothing, so the same
program runs on one CPU device and on a pod.
"""

import glob
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


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
        if leaf.ndim == 0 or leaf.shape[0] % local:
            raise UserError(
                f"batch{jax.tree_util.keystr(path)} has shape {leaf.shape}: its rows must divide over "
                f"{local} device(s) of (data, fsdp); change the batch size or the mesh"
            )
        return jax.make_array_from_process_local_data(sharding, leaf)

    return jax.tree_util.tree_map_with_path(put, batch)


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
