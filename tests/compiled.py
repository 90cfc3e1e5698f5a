"""Functions of the library as programs: called as they stand, each of their operations would be compiled for itself."""

import functools

import jax
import numpy as np


def compiled(function):
    """`function` as one program for each set of shapes and options; whatever is no array is an option."""

    @functools.wraps(function)
    def call(*arguments, **options):
        leaves, tree = jax.tree.flatten((arguments, options), is_leaf=lambda leaf: leaf is None)
        arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, (np.ndarray, np.generic, jax.Array))}
        rest = tuple((type(leaf), leaf) for i, leaf in enumerate(leaves) if i not in arrays)  # 1, 1.0 and True differ
        return _program(function, tree, tuple(arrays), rest)(arrays)

    return call


@functools.cache
def _program(function, tree, places, rest):
    others = [i for i in range(tree.num_leaves) if i not in places]

    def run(arrays):
        leaves = arrays | {i: leaf for i, (_, leaf) in zip(others, rest, strict=True)}
        arguments, options = jax.tree.unflatten(tree, [leaves[i] for i in range(tree.num_leaves)])
        return function(*arguments, **options)

    return jax.jit(run)
