"""Preference structures: what a loss says about its models, and which rows win and lose by it.

A structure is written `P given C also A`: the core formula P, of which only the worlds of C are looked at and in which
the worlds of A count for both sides. Its meaning is two truth tables, those of the winning and of the losing worlds.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

from jaxalign.losses.symbolic import tables
from jaxalign.losses.symbolic.syntax import (
    BOTTOM,
    TOP,
    Formula,
    parse_until,
    reading_error,
    tokens,
    variables_of,
)
from jaxalign.losses.symbolic.tables import Table

PREDICTIONS = ("chosen", "rejected", "reference_chosen", "reference_rejected")

Verdict = Literal["loses", "both", "excluded", "wins"]


class Structure(NamedTuple):
    """(P, P_C, P_A) of arXiv 2412.17696; an absent P_C is true and an absent P_A is false."""

    core: Formula
    condition: Formula = TOP
    addition: Formula = BOTTOM

    @property
    def variables(self) -> tuple[str, ...]:
        """The predictions it names: those of the policy, those of the reference, then all others as they are met."""
        return ordered(variables_of(*self))

    def __str__(self) -> str:
        condition = "" if self.condition == TOP else f" given {self.condition}"
        return f"{self.core}{condition}" + ("" if self.addition == BOTTOM else f" also {self.addition}")


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Without repetition, `PREDICTIONS` first, each with its copies behind it."""

    def place(name: str) -> tuple[int, int]:
        original = name.rstrip("'")
        known = original in PREDICTIONS
        return (PREDICTIONS.index(original), len(name) - len(original)) if known else (len(PREDICTIONS), 0)

    return tuple(sorted(dict.fromkeys(names), key=place))


def parse_structure(text: str) -> Structure:
    """`P`, `P given C`, `P also A` or `P given C also A`; formulas as in `syntax`.

    Raises:
      UserError: the text is no structure; the message marks the place.
    """
    words = tokens(text)
    core, token = parse_until(text, words)
    found: dict[str, Formula] = {}
    while token.sign != "end":
        if token.sign not in ("given", "also"):
            raise reading_error(text, token.position, f"an operator is missing before '{token.text}'")
        if token.sign in found or "also" in found:
            raise reading_error(text, token.position, f"'{token.text}' comes too late; the form is: P given C also A")
        words.pop(0)
        found[token.sign], token = parse_until(text, words)
    return Structure(core, found.get("given", TOP), found.get("also", BOTTOM))


class Preference(NamedTuple):
    """The meaning of a structure: which rows over `variables` win and which lose; a row may do both or neither.

    Losses with the same ratio are equal as preferences over the same variables. Hashable, and static under jit.
    """

    variables: tuple[str, ...]
    winning: Table  # T
    losing: Table  # B

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Row by row: loses, both, excluded or wins."""
        return tuple(
            ("both" if wins and loses else "wins" if wins else "loses" if loses else "excluded")
            for wins, loses in zip(self.winning, self.losing, strict=True)
        )

    def over(self, variables: Sequence[str]) -> "Preference":
        """The same preference over more variables. ValueError if one of its own is not among them."""
        missing = set(self.variables) - set(variables)
        if missing:
            raise ValueError(f"the preference depends on {', '.join(sorted(missing))}, which cannot be left out")
        places = [tuple(variables).index(name) for name in self.variables]
        row_of = {row: index for index, row in enumerate(tables.rows(len(self.variables)))}
        indices = [row_of[tuple(row[place] for place in places)] for row in tables.rows(len(variables))]
        winning, losing = (tuple(table[index] for index in indices) for table in self[1:])
        return Preference(tuple(variables), winning, losing)


def from_verdicts(variables: Sequence[str], verdicts: Sequence[Verdict]) -> Preference:
    """The preference in which each row has the given verdict. ValueError for an unknown one."""
    for verdict in verdicts:
        if verdict not in get_args(Verdict):
            raise ValueError(f"unknown verdict {verdict!r}; choose one of {get_args(Verdict)}")
    winning = tuple(verdict in ("wins", "both") for verdict in verdicts)
    losing = tuple(verdict in ("loses", "both") for verdict in verdicts)
    if tables.number_of_variables(winning) != len(variables):
        raise ValueError(f"{len(verdicts)} verdicts are not those of {len(variables)} variables")
    return Preference(tuple(variables), winning, losing)


def preference_of(structure: Structure, variables: Sequence[str] | None = None) -> Preference:
    """T = (P or A) and C, B = (not P or A) and C, over the structure's own variables or the given ones.

    Raises:
      ValueError: a variable of the structure is not among `variables`, or there are more than 8.

    arXiv 2412.17696.
    """
    variables = structure.variables if variables is None else tuple(variables)
    core, condition, addition = (tables.truth_table(formula, variables) for formula in structure)
    winning = tables.both(tables.either(core, addition), condition)
    losing = tables.both(tables.either(tables.complement(core), addition), condition)
    return Preference(variables, winning, losing)
