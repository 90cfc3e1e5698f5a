"""Truth tables, and the short formula of a table.

A table is a tuple of 2^n booleans, one for each row of `rows(n)`: the first variable changes slowest and true comes
before false. For (chosen, rejected) the rows are TT, TF, FT, FF.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import reduce

import numpy as np

from jaxalign.losses.symbolic.syntax import (
    TOP,
    And,
    Binary,
    Constant,
    Formula,
    Iff,
    Implies,
    Not,
    Or,
    Variable,
    Xor,
    conjunction,
    disjunction,
    parts,
    variables_of,
)

Table = tuple[bool, ...]

MAX_VARIABLES = 8

_MEANING: dict[type[Binary], Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    Iff: lambda a, b: a == b,
    Implies: lambda a, b: ~a | b,
    Or: lambda a, b: a | b,
    Xor: lambda a, b: a ^ b,
    And: lambda a, b: a & b,
}


def rows(count: int) -> Iterator[tuple[bool, ...]]:
    """The assignments of `count` variables, in the order of a table."""
    return itertools.product((True, False), repeat=count)


def truth_table(formula: Formula, variables: Sequence[str]) -> Table:
    """The value of `formula` in each row over `variables`.

    Raises:
      ValueError: a variable of the formula is not among `variables`, one appears twice, or there are more than 8.
    """
    if len(variables) > MAX_VARIABLES:
        raise ValueError(
            f"{len(variables)} variables ({', '.join(variables)}) make a table of 2^{len(variables)} rows; "
            f"at most {MAX_VARIABLES} are allowed"
        )
    if len(set(variables)) != len(variables):
        raise ValueError(f"a variable appears twice in ({', '.join(variables)})")
    unknown = [name for name in variables_of(formula) if name not in variables]
    if unknown:
        raise ValueError(f"variable {unknown[0]!r} of the formula is not one of ({', '.join(variables)})")
    grid = np.asarray(list(rows(len(variables))), bool)
    columns = dict(zip(variables, grid.T, strict=True))
    return tuple(_values(formula, columns, len(grid)).tolist())


def _values(formula: Formula, columns: dict[str, np.ndarray], size: int) -> np.ndarray:
    match formula:
        case Variable(name):
            return columns[name]
        case Constant(value):
            return np.full(size, value)
        case Not(argument):
            return ~_values(argument, columns, size)
        case Binary(left, right):
            return _MEANING[type(formula)](_values(left, columns, size), _values(right, columns, size))
    raise TypeError(f"{formula!r} is no formula")


def both(first: Table, second: Table) -> Table:
    return tuple(a and b for a, b in zip(first, second, strict=True))


def either(first: Table, second: Table) -> Table:
    return tuple(a or b for a, b in zip(first, second, strict=True))


def complement(table: Table) -> Table:
    return tuple(not a for a in table)


def included(first: Table, second: Table) -> bool:
    """Whether every row of the first is one of the second: the first entails the second."""
    return all(b for a, b in zip(first, second, strict=True) if a)


def number_of_variables(table: Table) -> int:
    """n of a table of 2^n rows. ValueError if its length is no such number, or n > 8."""
    count = len(table).bit_length() - 1
    if len(table) != 2**count or count > MAX_VARIABLES:
        raise ValueError(f"a table has 2^n rows with n at most {MAX_VARIABLES}, not {len(table)}")
    return count


def formula_of(table: Table, variables: Sequence[str]) -> Formula:
    """A short formula with that table; the shortest of four forms.

    The forms are a disjunction of prime implicants (chosen greedily, then thinned), a conjunction of clauses made the
    same way from the complement, and a parity. A clause with negated and other parts is written as an implication. The
    result is compared with the table before it is returned. It is short, not always the shortest there is.

    Raises:
      ValueError: the table does not have 2^n rows for n variables.
    """
    if number_of_variables(table) != len(variables):
        raise ValueError(f"a table of {len(table)} rows is not one of {len(variables)} variables")
    letters = [Variable(name) for name in variables]
    candidates = [disjunction_of_cubes(_cover(table), letters)]
    clauses = [disjunction_of_cubes(_negated(cube), letters) for cube in _cover(complement(table))]
    candidates.append(conjunction(clauses))
    needed: list[Formula] = [letter for axis, letter in enumerate(letters) if _matters(table, axis)]
    parity = reduce(Xor, needed[1:], needed[0]) if needed else TOP
    candidates += [parity, Not(parity)] if len(needed) != 2 else [parity, Iff(*needed)]
    right = [formula for formula in candidates if truth_table(formula, variables) == table]
    return min(right, key=_size)


def simplify(formula: Formula, variables: Sequence[str] | None = None) -> Formula:
    """A formula with the same truth table, and not a longer one."""
    variables = variables_of(formula) if variables is None else variables
    return min(formula_of(truth_table(formula, variables), variables), formula, key=_size)


Cube = tuple[bool | None, ...]  # a partial assignment: what each variable must be, None where it does not matter


def prime_implicants(table: Table) -> list[Cube]:
    """The partial assignments that lie within the table and stop doing so when a variable is freed."""
    count = number_of_variables(table)
    implies = np.asarray(table, bool).reshape((2,) * count)
    for axis in range(count):  # each axis becomes (true, false, either)
        implies = np.concatenate([implies, implies.all(axis, keepdims=True)], axis)
    prime = implies.copy()
    for axis in range(count):
        wider = implies.take([2], axis)
        prime &= np.concatenate([~wider, ~wider, np.ones_like(wider)], axis)
    return [tuple((True, False, None)[digit] for digit in place) for place in np.argwhere(prime).tolist()]


def _cover(table: Table) -> list[Cube]:
    """Prime implicants that together are the table."""
    primes = prime_implicants(table)
    reached = {cube: _rows_of(cube, table) for cube in primes}
    left = {row for row, value in enumerate(table) if value}
    chosen: list[Cube] = []
    while left:
        best = max(primes, key=lambda cube: (len(reached[cube] & left), cube.count(None)))
        chosen.append(best)
        left -= reached[best]
    for cube in list(chosen):
        others = [reached[other] for other in chosen if other != cube]
        if reached[cube] <= set().union(*others):
            chosen.remove(cube)
    return sorted(chosen, key=primes.index)


def _rows_of(cube: Cube, table: Table) -> set[int]:
    return {
        index
        for index, row in enumerate(rows(number_of_variables(table)))
        if all(wanted in (None, value) for wanted, value in zip(cube, row, strict=True))
    }


def _negated(cube: Cube) -> list[Cube]:
    """not (x and y) = not x or not y, one cube for each variable."""
    return [
        tuple(not wanted if place == axis else None for place in range(len(cube)))
        for axis, wanted in enumerate(cube)
        if wanted is not None
    ]


def disjunction_of_cubes(cubes: Sequence[Cube], letters: Sequence[Variable]) -> Formula:
    """The disjunction. Its negated variables become the premise of an implication, or stand under one negation."""
    terms = [_conjunction_of(cube, letters) for cube in cubes]
    premises = [term.argument for term in terms if isinstance(term, Not)]
    others = [term for term in terms if not isinstance(term, Not)]
    if not premises:
        return disjunction(others)
    return Implies(conjunction(premises), disjunction(others)) if others else Not(conjunction(premises))


def _conjunction_of(cube: Cube, letters: Sequence[Variable]) -> Formula:
    pairs = [(letter, wanted) for letter, wanted in zip(letters, cube, strict=True) if wanted is not None]
    return conjunction(letter if wanted else Not(letter) for letter, wanted in pairs)


def _matters(table: Table, axis: int) -> bool:
    grid = np.asarray(table, bool).reshape((2,) * number_of_variables(table))
    return bool((grid.take(0, axis) != grid.take(1, axis)).any())


def _size(formula: Formula) -> tuple[int, int]:
    """(occurrences of variables, nodes)."""
    leaves = nodes = 0
    waiting = [formula]
    while waiting:
        node = waiting.pop()
        nodes += 1
        leaves += isinstance(node, Variable)
        waiting += parts(node)
    return leaves, nodes
