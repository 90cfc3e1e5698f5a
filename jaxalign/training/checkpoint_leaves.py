"""The arrays of a checkpoint: what they are called, what tells that they are whole, and how they are read.

A tree of any classes is stored as nested plain dicts, one array per leaf under the name of its path, readable without
this project; typed random keys as the integers they are made of.
"""

import contextlib
import errno
import os
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxalign.training.sharding import path_name

# Leaves are read in groups of about this size: reading all at once would hold the state twice.
_GROUP_BYTES = 2**27
_BLOCK_BYTES = 2**16  # of a checksum


class BrokenCheckpoint(Exception):
    """A checkpoint that cannot be read as it was written."""


def read_leaves(manager, step: int, wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The leaves `wanted` of a step, compared with the checksums in `stored`. Raises BrokenCheckpoint."""
    arrays: dict[str, jax.Array] = {}
    for group in _groups(wanted):
        tree = nest({name: wanted[name] for name in group})
        restore_args = ocp.checkpoint_utils.construct_restore_args(tree)
        part = ocp.args.PyTreeRestore(tree, restore_args=restore_args, partial_restore=True)
        with reading():
            read = manager.restore(step, args=ocp.args.Composite(state=part))["state"]
        for name, leaf in named_leaves(read).items():
            _compare_checksum(name, leaf, stored[name])
            arrays[name] = leaf
    return arrays


@contextlib.contextmanager
def reading():
    """Whatever a damaged file makes the libraries below raise, it means a broken checkpoint."""
    try:
        yield
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise BrokenCheckpoint(cause(error)) from error


def cause(error: BaseException) -> str:
    """The line of a library's error that says what happened."""
    text = " ".join(str(error).split()) or type(error).__name__
    for number in (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EDQUOT):
        if os.strerror(number) in text:
            return os.strerror(number) if not isinstance(error, OSError) else text
    return text if len(text) <= 200 else f"{text[:200]}..."


def named_leaves(tree: Any) -> dict[str, Any]:
    """{"path/of/leaf": leaf}."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}: plain dicts, readable without this project's classes."""
    nested: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return nested


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def plain(leaf: Any) -> Any:
    """What is stored of a leaf: of a typed random key its integers."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def wanted_leaves(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What to read for a tree of arrays or ShapeDtypeStructs, by name."""
    return {name: _abstract(leaf) for name, leaf in named_leaves(tree).items()}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """What to read for `leaf`; without a sharding of its own it goes to the first device."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stored = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding)


def like(array: jax.Array, leaf: Any) -> jax.Array:
    """The stored `array` as `leaf` is: a typed random key again, if that is one."""
    if not _is_key(leaf):
        return array
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)  # takes abstract keys too
    return jax.random.wrap_key_data(array, impl=found[0])


def _checksum(leaf: Any) -> int | None:
    """CRC-32 of the sums of 64-bit words in blocks of 64 KiB, row-major; None where this process sees only a part.

    What goes wrong on disks (a block that is missing, zero, old or in another place, a flipped bit) changes it, at ten
    times the speed of a CRC of all bytes, which took as long as writing them.
    """
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return None
    content = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    whole = content.size // _BLOCK_BYTES * _BLOCK_BYTES
    sums = content[:whole].view(np.uint64).reshape(-1, _BLOCK_BYTES // 8).sum(axis=1)
    return zlib.crc32(content[whole:], zlib.crc32(sums))


def description(leaf: Any) -> dict[str, Any]:
    """Shape, dtype and checksum, as JSON takes them."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "checksum": _checksum(leaf)}


def _compare_checksum(name: str, leaf: jax.Array, stored: Mapping[str, Any]) -> None:
    if stored["checksum"] is None or str(leaf.dtype) != stored["dtype"]:
        return
    found = _checksum(leaf)
    if found is not None and found != stored["checksum"]:
        raise BrokenCheckpoint(f"{name} is not what was written")


def _groups(leaves: Mapping[str, jax.ShapeDtypeStruct]) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name, leaf in leaves.items():
        size = leaf.size * leaf.dtype.itemsize
        if not groups or size > room:
            groups.append([])
            room = _GROUP_BYTES
        groups[-1].append(name)
        room -= size
    return groups
