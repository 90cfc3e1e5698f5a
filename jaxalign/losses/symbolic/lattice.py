"""The order of losses by entailment, its lattice, and the enumeration of all losses that tables can define."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxalign.losses.symbolic.structures import Preference, Verdict, from_verdicts, ordered
from jaxalign.losses.symbolic.tables import included

# From more constrained to less; "both" and "excluded" are not comparable.
VERDICTS: tuple[Verdict, ...] = ("loses", "both", "excluded", "wins")


def entails(first: Preference, second: Preference) -> bool:
    """Whether T_1 entails T_2 and B_2 entails B_1.

    Then the log-ratio of the first is at most that of the second, and its loss at least that of the second under a link
    that falls (logistic, hinge, perceptron), whatever the probabilities are. Entailment of the core formulas says
    nothing of the kind. arXiv 2412.17696.
    """
    variables = ordered(first.variables + second.variables)
    first, second = first.over(variables), second.over(variables)
    return included(first.winning, second.winning) and included(second.losing, first.losing)


def entailment(preferences: Sequence[Preference]) -> np.ndarray:
    """[k, k] bool: whether i entails j. Every preference entails itself."""
    return np.array([[entails(first, second) for second in preferences] for first in preferences], bool)


def cover_edges(order: np.ndarray) -> list[tuple[int, int]]:
    """The pairs (i, j) with i < j and nothing in between, of an order as `entailment` gives it.

    Raises:
      ValueError: two elements entail each other, so that they are one and the same loss.
    """
    strict = order & ~np.eye(len(order), dtype=bool)
    if (strict & strict.T).any():
        first, second = np.argwhere(strict & strict.T)[0]
        raise ValueError(f"elements {first} and {second} entail each other: keep one of the two")
    between = (strict.astype(np.int64) @ strict.astype(np.int64)) > 0
    return [(int(i), int(j)) for i, j in np.argwhere(strict & ~between)]


def heights(order: np.ndarray) -> list[int]:
    """Of each element the length of the longest chain below it."""
    strict = order & ~np.eye(len(order), dtype=bool)
    height = np.zeros(len(order), np.int64)
    for _ in range(len(order)):
        height = np.where(strict, height[:, None] + 1, 0).max(axis=0, initial=0)
    return height.tolist()


def enumerate_losses(variables: Sequence[str], *, degenerate: bool = True) -> Iterator[Preference]:
    """Every pair of tables over the variables: 4^(2^n) of them, 256 for two predictions.

    Args:
      variables: names of the n predictions.
      degenerate: also those in which nothing wins or nothing loses; without them there are (2^(2^n) - 1)^2.
    """
    for verdicts in itertools.product(VERDICTS, repeat=2 ** len(variables)):
        preference = from_verdicts(variables, verdicts)
        if degenerate or (any(preference.winning) and any(preference.losing)):
            yield preference


def single_model_losses() -> list[Preference]:
    """The sixteen losses of (chosen, rejected) in which "only chosen is valid" wins and "only rejected is valid" loses.

    They differ in the verdicts on "both are valid" and "neither is valid". arXiv 2412.17696.
    """
    return [
        from_verdicts(("chosen", "rejected"), (both, "wins", "loses", neither))
        for both, neither in itertools.product(VERDICTS, repeat=2)
    ]
