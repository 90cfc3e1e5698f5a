"""A short number for the content of a tree of arrays: which weights were these?"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

_ODD = (0x9E3779B1, 0x85EBCA77)  # multipliers of the two halves


def fingerprint(tree: Any) -> str:
    """16 hex digits that change with any bit, dtype, shape or name of the tree's arrays, wherever they lie.

    Per leaf the sum over its elements of mixed (bits, position), modulo 2^32, twice; integer sums are the same in
    every order, hence on every mesh. It guards against mistakes, not against forgery. Every process of a run must call.
    """
    total = [0, 0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}"
        found = [int(part) for part in jax.device_get(_sums(leaf))]
        for half in range(2):
            mixed = zlib.crc32(f"{name} {found[half]} {half}".encode())
            total[half] = (total[half] + mixed * _ODD[half]) % 2**32
    return f"{total[0]:08x}{total[1]:08x}"


@jax.jit
def _sums(leaf):
    bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
    position = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)

    def mix(odd):
        x = (bits ^ (position * jnp.uint32(odd))) * jnp.uint32(0xC2B2AE35)
        x = (x ^ (x >> 15)) * jnp.uint32(odd)
        return jnp.sum(x ^ (x >> 13), dtype=jnp.uint32)

    return [mix(odd) for odd in _ODD]
