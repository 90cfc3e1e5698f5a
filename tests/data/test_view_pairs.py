"""Pairs of vectors share what they should, numbers are spelled right, splits do not meet."""

import numpy as np
import pytest

from jaxalign.data.sources import load_source
from jaxalign.data.view_pairs import in_words
from jaxalign.errors import UserError


def test_sides_of_a_pair_share_their_signal():
    train, held_out = load_source("view_pairs?split=train"), load_source("view_pairs?split=held_out")
    assert (len(train), len(held_out)) == (5000, 1000)
    assert train[0]["first"].shape == train[0]["second"].shape == (64,)
    assert {train[i]["id"] for i in (0, 4999)} | {held_out[i]["id"] for i in (0, 999)} == {0, 4999, 5000, 5999}
    # One side tells much of its partner linearly, and nothing of another pair's.
    first, second = (np.stack([train[i][side] for i in range(2000)]) for side in ("first", "second"))

    def explained(x, y):
        fit = np.linalg.lstsq(x[:1500], y[:1500], rcond=None)[0]
        return 1 - ((y[1500:] - x[1500:] @ fit) ** 2).sum() / (y[1500:] ** 2).sum()

    assert explained(first, second) > 0.3
    assert explained(first, np.roll(second, 1, axis=0)) < 0.05
    assert not np.array_equal(load_source("view_pairs?seed=1")[0]["first"], train[0]["first"])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"), (13, "thirteen"), (20, "twenty"), (42, "forty-two"), (100, "one hundred"),
        (119, "one hundred nineteen"), (1000, "one thousand"), (1047, "one thousand forty-seven"),
        (9999, "nine thousand nine hundred ninety-nine"),
    ],
)  # fmt: skip
def test_numbers_in_words(number, words):
    assert in_words(number) == words


def test_number_words_are_split_and_differ():
    train, held_out = load_source("number_words"), load_source("number_words?split=held_out")
    assert (len(train), len(held_out)) == (9000, 1000)
    numbers = [{source[i]["id"] for i in range(len(source))} for source in (train, held_out)]
    assert not numbers[0] & numbers[1] and len(numbers[0] | numbers[1]) == 10_000
    assert len({in_words(number) for number in numbers[0] | numbers[1]}) == 10_000
    assert held_out[0]["second"] == in_words(int(held_out[0]["first"]))


@pytest.mark.parametrize("kind", ["view_pairs", "number_words"])
def test_an_unknown_split(kind):
    with pytest.raises(UserError, match="split 'test' is not known; choose train or held_out"):
        load_source(f"{kind}?split=test")
