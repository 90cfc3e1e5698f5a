"""So many classes, so many examples of each, the same at every call and shared by the processes."""

import numpy as np
import pytest

from jaxalign.data.class_batches import ClassBatches
from jaxalign.data.order import BatchIterator
from jaxalign.errors import UserError

LABELS = [0, 0, 0, 1, 1, 1, 1, 2, 2, -1, 3]


def test_classes_and_examples_of_a_batch():
    batches = ClassBatches(LABELS, 3, 2, seed=1)
    seen = set()
    for position in range(40):
        rows = batches.indices(position)
        labels = np.asarray(LABELS)[rows]
        assert (labels[::2] == labels[1::2]).all() and len(set(labels)) == 3 and -1 not in labels
        for first, second in zip(rows[::2], rows[1::2], strict=True):
            assert first != second or LABELS[first] == 3  # the one example of class 3 comes twice
        assert rows == batches.indices(position)
        seen |= set(rows)
    assert seen == set(range(len(LABELS))) - {9}
    assert batches.indices(0) != batches.indices(1)


def test_processes_share_a_batch():
    whole = ClassBatches(LABELS, 2, 2).indices(7)
    parts = [ClassBatches(LABELS, 2, 2, process_index=p, process_count=2).indices(7) for p in range(2)]
    assert parts[0] + parts[1] == whole


def test_the_position_is_saved_with_what_it_means():
    batches = ClassBatches(LABELS, 2, 2)
    state = BatchIterator(batches, 5).get_state()
    other = BatchIterator(ClassBatches(LABELS, 2, 2))
    other.set_state(state)
    assert other.position == 5
    with pytest.raises(UserError, match="classes=2, now classes=3"):
        BatchIterator(ClassBatches(LABELS, 3, 2)).set_state(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((LABELS, 5, 2), "5 classes with 2 examples each cannot be drawn from 4 classes"), ((LABELS, 0, 2), "0 classes")],
)
def test_impossible_batches(arguments, message):
    with pytest.raises(UserError, match=message):
        ClassBatches(*arguments)
    with pytest.raises(UserError, match="2 x 1 examples cannot be shared by 3 processes"):
        ClassBatches(LABELS, 2, 1, process_count=3)
