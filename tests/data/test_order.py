"""Order: each example once an epoch, by position alone, the same for any number of processes."""

import json

import pytest

from jaxalign.data.order import Batches, BatchIterator
from jaxalign.errors import UserError


def source(n):
    return [{"i": i} for i in range(n)]


def flat(batches, start, stop):
    return [e["i"] for position in range(start, stop) for e in batches[position]]


@pytest.mark.parametrize(("n", "batch_size"), [(12, 4), (10, 4), (3, 5)])
def test_each_example_once_an_epoch(n, batch_size):
    batches = Batches(source(n), batch_size, seed=1)
    epochs = 4 * batch_size  # whole epochs in whole batches
    line = flat(batches, 0, n * epochs // batch_size)
    orders = [line[k * n : (k + 1) * n] for k in range(epochs)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1  # epochs differ


def test_order_is_a_function_of_seed_and_position():
    a, b, other = (Batches(source(50), 8, seed=seed) for seed in (5, 5, 6))
    assert flat(a, 0, 20) == flat(b, 0, 20) != flat(other, 0, 20)
    assert [e["i"] for e in a[17]] == flat(b, 17, 18)  # no need to have read the ones before
    assert a.indices(17) == [e["i"] for e in a[17]]
    assert flat(Batches(source(5), 2, shuffle=False), 0, 5) == [0, 1, 2, 3, 4] * 2


@pytest.mark.parametrize("epochs", [None, 3])
def test_processes_share_the_same_global_batches(epochs):
    whole = Batches(source(13), 6, seed=2, epochs=epochs)
    for count in (2, 3):
        parts = [
            Batches(source(13), 6, seed=2, epochs=epochs, process_index=p, process_count=count) for p in range(count)
        ]
        assert {len(part) for part in parts} == {len(whole)}
        for position in range(6):
            joined = [e for part in parts for e in part[position]]
            assert joined == whole[position]
            assert [i for part in parts for i in part.indices(position)] == [e["i"] for e in joined]


def test_finite_epochs_end_with_the_last_whole_batch():
    batches = Batches(source(7), 4, epochs=3)
    assert len(batches) == 21 // 4 == len(list(batches))
    for position in (5, -1):
        with pytest.raises(IndexError):
            batches[position]


def test_resuming_is_a_seek():
    straight = BatchIterator(Batches(source(23), 4, seed=9))
    first = [next(straight) for _ in range(8)]
    state = json.loads(json.dumps(straight.get_state()))  # as in the checkpoint
    assert state["position"] == 8
    resumed = BatchIterator(Batches(source(23), 4, seed=9))
    resumed.set_state(state)
    rest = [next(straight) for _ in range(8)]
    assert [next(resumed) for _ in range(8)] == rest != first


@pytest.mark.parametrize(
    ("changed", "name"),
    [({"seed": 8}, "seed"), ({"n": 24}, "source_length"), ({"size": 5}, "batch_size")],
)
def test_a_position_of_other_data_is_refused(changed, name):
    def make(n=23, size=4, seed=9):
        return iter(Batches(source(n), size, seed=seed))

    with pytest.raises(UserError, match=name):
        make(**changed).set_state(make().get_state())


@pytest.mark.parametrize(
    ("n", "size", "options", "message"),
    [
        (0, 2, {}, "no examples"),
        (4, 6, {"epochs": 1}, "do not fill one batch"),
        (9, 3, {"process_count": 2}, "cannot be shared by 2"),
        (9, 0, {}, "positive"),
        (9, 2, {"process_index": 1}, "process index 1"),
        (9, 2, {"seed": -1}, "seed"),
    ],
)
def test_bad_input(n, size, options, message):
    with pytest.raises(UserError, match=message):
        Batches(source(n), size, **options)
