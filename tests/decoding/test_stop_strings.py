"""The token automaton against searching the decoded bytes after each token."""

import random

import numpy as np
import pytest

from jaxalign.decoding.stop_strings import MAX_ENTRIES, stop_table
from jaxalign.errors import UserError


def first_stop(table, ids):
    """Number of tokens after which the automaton stops, or None."""
    state = 0
    for count, token in enumerate(ids, start=1):
        state = table[state, token]
        if state == len(table) - 1:
            return count
    return None


def first_stop_by_search(stop_strings, token_bytes, ids):
    text = b""
    for count, token in enumerate(ids, start=1):
        text += token_bytes[token] if token < len(token_bytes) else b""
        if any(string.encode() in text for string in stop_strings):
            return count
    return None


@pytest.mark.parametrize("seed", range(30))
def test_equals_searching_the_text(seed):
    """Few letters and short strings: matches straddle tokens, overlap, nest, share beginnings."""
    rng = random.Random(seed)
    letters = "ab" if seed % 2 else "abé"
    strings = ["".join(rng.choices(letters, k=rng.randint(2, 6))) for _ in range(rng.randint(1, 4))]
    pool = "".join(rng.choices(letters, k=500)).encode()
    starts = [rng.randrange(len(pool) - 4) for _ in range(12)]
    # One-byte tokens make every string reachable; of the others, some cut é in two.
    singles = [bytes([byte]) for byte in sorted(set(pool))]
    token_bytes = [b"", *singles, *(pool[start : start + rng.randint(1, 4)] for start in starts)]
    table = stop_table(strings, token_bytes, vocab_size=len(token_bytes) + 2)
    assert table.dtype == np.int32 and table.shape[1] == len(token_bytes) + 2
    found = 0
    for _ in range(200):
        ids = rng.choices(range(len(token_bytes) + 2), k=rng.randint(1, 25))
        if rng.random() < 0.3:  # long strings are rare by chance: spell one out
            place = rng.randrange(len(ids))
            ids[place:place] = [1 + singles.index(bytes([byte])) for byte in rng.choice(strings).encode()]
        expected = first_stop_by_search(strings, token_bytes, ids)
        assert first_stop(table, ids) == expected, (strings, token_bytes, ids)
        found += expected is not None
    assert found > 20  # the comparison is about something


def test_a_stop_string_spread_over_three_tokens_and_one_in_the_middle_of_a_token():
    token_bytes = [b"x", b"\n", b"Ques", b"tion:", b"say Question: now", b"Quest"]
    table = stop_table(["\nQuestion:"], token_bytes, 6)
    assert first_stop(table, [0, 1, 2, 3, 0]) == 4
    assert first_stop(table, [1, 1, 2, 3]) == 4  # the second newline begins anew
    assert first_stop(table, [0, 4, 1, 2, 0, 3]) is None
    assert first_stop(stop_table(["Question:"], token_bytes, 6), [0, 4, 0]) == 2


def test_specials_do_not_interrupt_and_the_stopped_state_is_never_left():
    table = stop_table(["ab"], [b"a", b"b", b""], 3)
    assert first_stop(table, [0, 2, 1]) == 3
    stopped = len(table) - 1
    np.testing.assert_array_equal(table[stopped], stopped)


def test_bad_input_is_named():
    with pytest.raises(UserError, match="empty string"):
        stop_table(["a", ""], [b"a"], 1)
    with pytest.raises(UserError, match="3 tokens, the model's vocabulary 2"):
        stop_table(["a"], [b"a", b"b", b"c"], 2)
    with pytest.raises(UserError, match="fewer or shorter"):
        stop_table(["a" * 2000], [b"a"], MAX_ENTRIES // 1000)
