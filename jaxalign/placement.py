"""Which devices the program being traced is for, as code without a mesh of its own can know it.

Who compiles a program for a mesh traces it under that mesh: `make_train_step` does so by itself, everybody else by
`under_mesh_of`. Inside, shapes stay global and the code stays free of meshes; it may ask how many devices there are
(`device_count`), of which kind (`platform`), and request that the rows of a batch lie over them (`spread_rows`). With
no mesh these are the devices at hand. The devices need not exist: a program can be traced for a topology.
"""

import contextlib
import itertools
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")  # the mesh axes that rows of a batch lie over


def _mesh() -> AbstractMesh | None:
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def device_count() -> int:
    """How many devices the program is spread over."""
    mesh = _mesh()
    return jax.device_count() if mesh is None else mesh.size


def platform() -> str:
    """ "cpu", "gpu" or "tpu"."""
    mesh = _mesh()
    device = None if mesh is None else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def compute_capability() -> tuple[int, int] | None:
    """That of the NVIDIA GPU at hand, e.g. (9, 0); None without one."""
    if platform() != "gpu" or jax.default_backend() != "gpu":
        return None
    major, _, minor = str(getattr(jax.local_devices()[0], "compute_capability", "")).partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def under_mesh_of(tree: Any):
    """A context in which programs are traced for the mesh that the arrays (or shapes) of `tree` lie on, if any."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree))
    meshes = (sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding))
    mesh = next(meshes, None)
    return contextlib.nullcontext() if mesh is None else under_mesh(mesh)


def under_mesh(mesh: Any):
    """A context in which programs are traced for `mesh`."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def spread_rows(x: jax.Array, *, rest: Any = None) -> jax.Array:
    """Requests that axis 0 of `x` lie over the batch axes of the mesh, over as many of them as divide it.

    Left to itself the compiler may follow the parameters, split the embedding dimension over `fsdp`, and have every
    device of that axis work on all rows. The other axes are whole, or left to the compiler with
    `rest=PartitionSpec.UNCONSTRAINED`. Values are unchanged, and so is everything where there is no such mesh.
    """
    mesh = _mesh()
    if mesh is None or mesh.size == 1:
        return x
    axes = [axis for axis in BATCH_AXES if axis in mesh.shape]
    choices = [chosen for n in range(len(axes), 0, -1) for chosen in itertools.combinations(axes, n)]
    sizes = {chosen: math.prod(mesh.shape[axis] for axis in chosen) for chosen in choices}
    fitting = [chosen for chosen in choices if x.shape[0] % sizes[chosen] == 0]
    if not fitting:
        return x
    return _request(x, max(fitting, key=sizes.__getitem__), *[rest] * (x.ndim - 1))


def spread_looked_up(x: jax.Array) -> jax.Array:
    """Requests for rows [B, ..., D] of a table whose columns lie over `fsdp`: B over `data`, columns as in the table.

    A `spread_rows` behind it is then an exchange within the fsdp axis, and so is the way back of the gradient. Without
    it the compiler gathers the gradients of all rows on every device to add them into the table.
    """
    mesh = _mesh()
    if mesh is None or not {"data", "fsdp"} <= set(mesh.shape):
        return x
    rows = "data" if x.shape[0] % mesh.shape["data"] == 0 else None
    columns = "fsdp" if x.shape[-1] % mesh.shape["fsdp"] == 0 else None
    return _request(x, rows, *[None] * (x.ndim - 2), columns)


def _request(x: jax.Array, *spec: Any) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
