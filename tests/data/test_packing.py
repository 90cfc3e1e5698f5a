"""Packing: every token once and in order, no mixed segments, targets and masks from lengths."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data.packing import PackedSource, pad_prompts, plan_rows, stack_rows
from jaxalign.errors import UserError

ROW = 12
EXAMPLES = st.lists(
    st.tuples(st.lists(st.integers(0, 9), max_size=6), st.lists(st.integers(0, 9), max_size=6)),
    min_size=1,
    max_size=30,
).filter(lambda examples: any(len(c) - (not p) >= 1 for p, c in examples))


def examples_of(row):
    """Reads a row back, token by token: [(ids, which of them are learned)]."""
    found = collections.defaultdict(lambda: ([], []))
    for t in range(len(row.tokens)):
        if row.segments[t]:
            ids, learned = found[row.segments[t]]
            assert row.positions[t] == len(ids)
            ids.append(int(row.tokens[t]))
            learned.append(bool(t and row.target_mask[t - 1]))
    return [(tuple(ids), tuple(learned)) for ids, learned in found.values()]


@settings(deadline=None, max_examples=60)
@given(EXAMPLES, st.integers(1, 4))
def test_invariants(examples, open_rows):
    packed = PackedSource(examples, ROW, open_rows=open_rows, empty="drop")
    rows = [packed[i] for i in range(len(packed))]
    kept = [(p, c) for p, c in examples if len(c) - (not p) >= 1]
    expected = [((*p, *c), tuple([False] * max(len(p), 1) + [True] * (len(c) - (not p)))) for p, c in kept]
    assert collections.Counter(e for row in rows for e in examples_of(row)) == collections.Counter(expected)
    for row in rows:
        used = int((row.segments > 0).sum())
        assert (row.segments[:used] > 0).all()  # padding only at the end
        assert set(np.diff(row.segments[:used])) <= {0, 1}  # contiguous, in order
        learned = np.flatnonzero(row.target_mask)
        # a target is the next token, of the same example, and a completion token
        assert (row.targets[learned] == row.tokens[learned + 1]).all()
        assert (row.segments[learned] == row.segments[learned + 1]).all()
        assert row.completion_mask[learned + 1].all()
        assert (row.targets[row.target_mask == 0] == 0).all()
    statistics = packed.statistics
    assert statistics.examples == len(kept)
    assert statistics.dropped_empty == len(examples) - len(kept)
    assert statistics.tokens == sum(int((row.segments > 0).sum()) for row in rows)
    assert statistics.target_tokens == sum(int(row.target_mask.sum()) for row in rows)
    assert statistics.fill == pytest.approx(statistics.tokens / (len(rows) * ROW))
    assert sum(int(row.completion_mask.sum()) for row in rows) == sum(len(c) for _, c in kept)


def test_a_row_by_hand():
    packed = PackedSource([([5, 6], [7, 8]), ([1], [2, 3])], 9, pad_id=4)
    batch = stack_rows([packed[0]], batch_size=2)
    np.testing.assert_array_equal(batch.tokens[0], [5, 6, 7, 8, 1, 2, 3, 4, 4])
    np.testing.assert_array_equal(batch.positions[0], [0, 1, 2, 3, 0, 1, 2, 0, 0])
    np.testing.assert_array_equal(batch.segments[0], [1, 1, 1, 1, 2, 2, 2, 0, 0])
    np.testing.assert_array_equal(batch.completion_mask[0], [0, 0, 1, 1, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(batch.targets[0], [0, 7, 8, 0, 2, 3, 0, 0, 0])
    np.testing.assert_array_equal(batch.target_mask[0], [0, 1, 1, 0, 1, 1, 0, 0, 0])
    assert not batch.segments[1].any() and not batch.target_mask[1].any()


def test_the_mask_does_not_look_at_ids():
    # pad id = end id = 2, and the prompt holds it too
    row = PackedSource([([2, 2], [2, 2])], 6, pad_id=2)[0]
    np.testing.assert_array_equal(row.target_mask, [0, 1, 1, 0, 0, 0])


def test_first_fit_with_a_window():
    assert plan_rows([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    # A window of one row is next-fit: the row with 6 is closed by 5, so 4 finds room beside 5 only.
    assert plan_rows([6, 5, 4, 3, 2], 10, open_rows=1) == [[0], [1, 2], [3, 4]]


def test_fill_is_better_than_one_example_a_row():
    random = np.random.default_rng(0)
    lengths = random.integers(5, 60, 500)
    packed = PackedSource([([1], [2] * (n - 1)) for n in lengths], 128)
    assert packed.statistics.fill > 0.95


def test_overlong_examples():
    examples = [([1, 2], [3]), ([1] * 4, [2] * 4), ([1] * 9, [2])]
    with pytest.raises(UserError, match=r"example 1 has 4 \+ 4 tokens.*raise it to 8"):
        PackedSource(examples, 6)
    with pytest.raises(UserError, match=r"9 \+ 1 tokens.*the prompt alone fills the window of 6"):
        PackedSource(examples[2:], 6)
    packed = PackedSource(examples, 6, overlong="drop")
    assert packed.statistics.dropped_overlong == 2 and packed.statistics.examples == 1
    with pytest.raises(UserError, match=r"no example is left.*2 were longer"):
        PackedSource(examples[1:], 6, overlong="drop")
    with pytest.raises(UserError, match="overlong='cut'"):
        PackedSource(examples, 6, overlong="cut")


@pytest.mark.parametrize("example", [([1, 2], []), ([], [3])])
def test_examples_without_anything_to_learn(example):
    with pytest.raises(UserError, match=r"example 0 .* no token to learn from"):
        PackedSource([example], 6)


def test_pad_prompts():
    ids, lengths = pad_prompts([[5, 6, 7], [8]], 4, pad_id=9)
    np.testing.assert_array_equal(ids, [[5, 6, 7, 9], [8, 9, 9, 9]])
    np.testing.assert_array_equal(lengths, [3, 1])
    with pytest.raises(UserError, match=r"prompt 1 has 3 tokens.*window is 2 \(1 of 2.*raise the"):
        pad_prompts([[1], [1, 2, 3]], 2)
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        pad_prompts([[1], []], 2)


def test_stack_rows_limits():
    row = PackedSource([([1], [2])], 4)[0]
    with pytest.raises(ValueError, match="2 rows"):
        stack_rows([row, row], batch_size=1)
    with pytest.raises(ValueError, match="0 rows"):
        stack_rows([])
