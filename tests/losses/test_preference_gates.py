"""Gates that leave out what two completions have in common, against a plain table of common subsequences."""

import functools

import jax
import numpy as np

from jaxalign.losses.preference_gates import common_token_gates


def longest(a, b):
    """The length of a longest common subsequence, by its recursion."""

    @functools.cache
    def of(i, j):
        if i == 0 or j == 0:
            return 0
        if a[i - 1] == b[j - 1]:
            return of(i - 1, j - 1) + 1
        return max(of(i - 1, j), of(i, j - 1))

    return of(len(a), len(b))


def test_what_is_left_out_is_a_longest_common_subsequence():
    random = np.random.default_rng(0)
    tokens = random.integers(0, 4, (40, 2, 9)).astype(np.int32)
    lengths = random.integers(0, 10, (40, 2))
    mask = (np.arange(9) < lengths[..., None]).astype(np.float32)
    gates = np.asarray(jax.jit(common_token_gates)(tokens, mask))
    assert gates.dtype == np.float32
    for pair, length, gate in zip(tokens, lengths, gates, strict=True):
        common = [ids[:n][g[:n] == 0].tolist() for ids, n, g in zip(pair, length, gate, strict=True)]
        assert common[0] == common[1]
        assert len(common[0]) == longest(tuple(pair[0, : length[0]]), tuple(pair[1, : length[1]]))
        assert all((g[n:] == 1).all() for n, g in zip(length, gate, strict=True))


def test_a_word_in_the_middle():
    tokens = np.array([[[5, 6, 7, 8], [5, 9, 7, 8]]])
    np.testing.assert_array_equal(common_token_gates(tokens, np.ones_like(tokens)), [[[0, 1, 0, 0], [0, 1, 0, 0]]])
