"""Two views of one thing, to be matched by small towers: as vectors, and numbers in digits and in words."""

import numpy as np

from jaxalign.data.rows import Rows
from jaxalign.errors import UserError

SHARED, OWN, SEEN = 24, 24, 64
_SPLITS = {"train": 5000, "held_out": 1000}


def two_views(seed: int, count: int) -> np.ndarray:
    """[2, count, 64] float32: both sides of each pair.

    A pair shares 24 numbers; each side has 24 of its own, and shows all 48 through a random matrix and a tanh.
    """
    random = np.random.default_rng(seed)
    signal = random.normal(size=(count, SHARED))
    sides = []
    for _ in range(2):
        inside = np.concatenate([signal, random.normal(size=(count, OWN))], 1)
        sides.append(np.tanh(inside @ random.normal(size=(SHARED + OWN, SEEN)) / (SHARED + OWN) ** 0.5))
    return np.stack(sides).astype(np.float32)


class ViewPairs(Rows):
    """A source of {'first': [64], 'second': [64], 'id': int}.

    Args:
        split: "train" (5,000 pairs) or "held_out" (1,000).
        seed: of the world; both splits of one seed are of one world.

    Raises UserError: unknown split.
    """

    def __init__(self, split: str = "train", seed: int = 0):
        if split not in _SPLITS:
            raise UserError(f"view_pairs split {split!r} is not known; choose {' or '.join(_SPLITS)}")
        pairs = two_views(seed, sum(_SPLITS.values()))
        train, every = _SPLITS["train"], range(pairs.shape[1])
        chosen = every[:train] if split == "train" else every[train:]
        rows = ({"first": pairs[0, number], "second": pairs[1, number], "id": number} for number in chosen)
        super().__init__(rows, f"view_pairs ({split})", "pair")


class ViewGroups(Rows):
    """A source of {'first': [64], 'second': [2 to 8 vectors of 64], 'id': int}: partners of three kinds, one rare.

    A kind shows the 24 shared numbers through a matrix of its own; 85, 10 and 5 % of partners are of the three kinds.

    Args:
        split: "train" (900 groups) or "held_out" (100).
        seed: of the world.

    Raises UserError: unknown split.
    """

    def __init__(self, split: str = "train", seed: int = 0):
        if split not in _SPLITS:
            raise UserError(f"view_groups split {split!r} is not known; choose {' or '.join(_SPLITS)}")
        random = np.random.default_rng((seed, 1))
        maps = random.normal(size=(4, SHARED + OWN, SEEN)) / (SHARED + OWN) ** 0.5
        groups = []
        for _ in range(1000):
            signal = random.normal(size=SHARED)
            kinds = random.choice(3, random.integers(2, 9), p=(0.85, 0.10, 0.05))
            views = []
            for number in (3, *kinds):
                views.append(np.tanh(np.concatenate([signal, random.normal(size=OWN)]) @ maps[number]))
            groups.append(np.asarray(views, np.float32))
        rows = [{"first": group[0], "second": list(group[1:]), "id": number} for number, group in enumerate(groups)]
        super().__init__(rows[:900] if split == "train" else rows[900:], f"view_groups ({split})", "group")


_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int) -> str:
    """0 <= number < 10,000 as English words: 1047 is "one thousand forty-seven"."""
    if number >= 1000:
        rest = number % 1000
        return f"{_ONES[number // 1000]} thousand" + (f" {in_words(rest)}" if rest else "")
    if number >= 100:
        rest = number % 100
        return f"{_ONES[number // 100]} hundred" + (f" {in_words(rest)}" if rest else "")
    if number >= 20:
        return _TENS[number // 10 - 2] + (f"-{_ONES[number % 10]}" if number % 10 else "")
    return _ONES[number]


class NumberWords(Rows):
    """A source of {'first': "1047", 'second': "one thousand forty-seven", 'id': 1047}: text pairs without a download.

    Args:
        split: "train" or "held_out"; every tenth of the shuffled numbers below 10,000 is held out.
        seed: of the division.

    Raises UserError: unknown split.
    """

    def __init__(self, split: str = "train", seed: int = 0):
        if split not in _SPLITS:
            raise UserError(f"number_words split {split!r} is not known; choose {' or '.join(_SPLITS)}")
        order = np.random.default_rng(seed).permutation(10_000)
        held_out = np.arange(len(order)) % 10 == 0
        numbers = order[held_out if split == "held_out" else ~held_out].tolist()
        rows = ({"first": str(number), "second": in_words(number), "id": number} for number in numbers)
        super().__init__(rows, f"number_words ({split})")
