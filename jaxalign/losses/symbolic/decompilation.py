"""From losses back to logic: the structure of two tables, of a ratio of polynomials, of a loss given a reference."""

import ast
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.errors import UserError
from jaxalign.losses.symbolic import tables
from jaxalign.losses.symbolic.structures import PREDICTIONS, Preference, Structure, ordered, preference_of
from jaxalign.losses.symbolic.syntax import BOTTOM, TOP, And, Formula, Not, Or, Variable, variables_of
from jaxalign.losses.symbolic.tables import Table, formula_of, truth_table


def structure_of(preference: Preference) -> Structure:
    """A structure with exactly these tables, each formula in a short form: P = not B or T, P_C = T or B, P_A = T and B.

    P is not unique: what it says of rows that are excluded, or count for both sides, makes no difference. The result is
    compiled again and compared before it is returned.
    """
    variables, winning, losing = preference
    structure = Structure(
        formula_of(tables.either(tables.complement(losing), winning), variables),
        formula_of(tables.either(winning, losing), variables),
        formula_of(tables.both(winning, losing), variables),
    )
    if preference_of(structure, variables) != preference:
        raise AssertionError(f"{structure} does not mean the tables it was made of: {preference}")
    return structure


def decompile_ratio(text: str) -> Structure:
    """The structure whose log-ratio of weighted counts is log(top / bottom), for every value of the probabilities.

    `text` is `top / bottom`, both polynomials in the names of predictions (`formula_of_polynomial`). For instance
    `chosen * (1 - rejected) / (rejected * (1 - chosen))` is ORPO.

    Raises:
      UserError: the text is no ratio, or a polynomial is not that of a formula; the message names the term.
    """
    match _read(text):
        case ast.BinOp(top, ast.Div(), bottom):
            formulas = _translate(top), _translate(bottom)
            variables = ordered(variables_of(*formulas))
            winning, losing = (truth_table(formula, variables) for formula in formulas)
            return structure_of(Preference(variables, winning, losing))
    raise UserError(f"'{text}' has not the form top / bottom; put a bottom of several factors in parentheses")


def formula_of_polynomial(text: str) -> Formula:
    """The formula whose weighted count is the polynomial: products are conjunctions and sums are disjunctions.

    | polynomial | formula   | only if                                                          |
    |------------|-----------|------------------------------------------------------------------|
    | p          | p         | it is a name                                                     |
    | q * r      | q & r     | q and r share no variable: p * p is no probability of a formula  |
    | q + r      | q | r     | no row makes both true                                           |
    | q - r      | q & ~r    | r entails q; 1 - r is its case with q = true                     |

    Raises:
      UserError: a condition does not hold, or there is something else in the text; the message names the term.
    """
    return _translate(_read(text))


# Polynomials are read by Python's own parser, in whose names this letter may stand for the prime of a copy.
_PRIME = "\N{MODIFIER LETTER PRIME}"


def _read(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip().replace("'", _PRIME), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise UserError(f"cannot read the polynomial '{text}': {reason}") from error


def _translate(node: ast.expr) -> Formula:
    term = ast.unparse(node).replace(_PRIME, "'")
    match node:
        case ast.Name(name):
            return Variable(name.replace(_PRIME, "'"))
        case ast.Constant(0 | 1 as value) if type(value) is int:
            return TOP if value else BOTTOM
        case ast.BinOp(left, ast.Mult(), right):
            first, second = _translate(left), _translate(right)
            shared = set(variables_of(first)) & set(variables_of(second))
            if shared:
                raise UserError(
                    f"'{term}' is not multilinear: '{min(shared)}' occurs in both factors; "
                    "multiply out, and take a copy for a true square"
                )
            return And(first, second)
        case ast.BinOp(left, ast.Add(), right):
            first, second = _translate(left), _translate(right)
            if _somewhere(And(first, second)):
                raise UserError(f"the summands of '{term}' are not disjoint: '{first}' and '{second}' can both be true")
            return Or(first, second)
        case ast.BinOp(left, ast.Sub(), right):
            first, second = _translate(left), _translate(right)
            if _somewhere(And(second, Not(first))):
                raise UserError(f"'{term}' is no probability of a formula: '{second}' does not entail '{first}'")
            return Not(second) if first == TOP else And(first, Not(second))
    raise UserError(f"'{term}' is no term of a polynomial; names, 0, 1, +, - and * are")


def _somewhere(formula: Formula) -> bool:
    """Whether the formula is true in some row."""
    return any(truth_table(formula, variables_of(formula)))


def polynomial(table: Table, variables: Sequence[str]) -> str:
    """The weighted count of a table as a short polynomial, one that `formula_of_polynomial` reads."""
    if tables.number_of_variables(table) != len(variables):
        raise ValueError(f"a table of {len(table)} rows is not one of {len(variables)} variables")
    return _polynomial(table, tuple(variables)).text


@dataclass(frozen=True)
class _Term:
    text: str
    is_sum: bool  # needs parentheses within a product
    size: int  # occurrences of names

    def __mul__(self, other: "_Term") -> "_Term":
        if "1" in (self.text, other.text):
            return self if other.text == "1" else other
        first, second = (f"({term.text})" if term.is_sum else term.text for term in (self, other))
        return _Term(f"{first} * {second}", False, self.size + other.size)

    def __add__(self, other: "_Term") -> "_Term":
        return _Term(f"{self.text} + {other.text}", True, self.size + other.size)

    @property
    def complement(self) -> "_Term":
        return _Term(f"1 - ({self.text})" if self.is_sum else f"1 - {self.text}", True, self.size)


@functools.cache
def _polynomial(table: Table, names: tuple[str, ...]) -> _Term:
    """The shorter of what the table gives and 1 - what its complement gives."""
    if all(table) or not any(table):
        return _Term(str(int(table[0])), False, 0)
    direct, indirect = (_split(part, names) for part in (table, tables.complement(table)))
    return min(direct, indirect.complement, key=lambda term: (term.size, len(term.text)))


def _split(table: Table, names: tuple[str, ...]) -> _Term:
    """p * (the half where p is true) + (1 - p) * (the half where it is false), for the best name p."""
    halves = [_halves(table, axis) for axis in range(len(names))]
    # A name with one empty half is a factor of everything, one with equal halves does not occur.
    axis = min(range(len(names)), key=lambda axis: (all(map(any, halves[axis])), len(set(halves[axis])) == 1))
    others = names[:axis] + names[axis + 1 :]
    if_true, if_false = halves[axis]
    if if_true == if_false:
        return _polynomial(if_true, others)
    factor = _Term(names[axis], False, 1)
    terms = [
        weight * _polynomial(half, others)
        for weight, half in ((factor, if_true), (factor.complement, if_false))
        if any(half)
    ]
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def _halves(table: Table, axis: int) -> tuple[Table, Table]:
    """The rows where a variable is true, and those where it is false."""
    grid = np.asarray(table, bool).reshape((2,) * tables.number_of_variables(table))
    if_true, if_false = (tuple(grid.take(value, axis).reshape(-1).tolist()) for value in (0, 1))
    return if_true, if_false


def ratio(preference: Preference, names: Sequence[str] | None = None) -> str:
    """The ratio of the weighted counts, `top / bottom`, as polynomials in the probabilities of the predictions.

    `names` may stand for the names of the variables, one for each.
    """
    names = preference.variables if names is None else tuple(names)
    top, bottom = (_polynomial(table, names) for table in (preference.winning, preference.losing))
    above = f"({top.text})" if top.is_sum else top.text
    below = f"({bottom.text})" if " " in bottom.text else bottom.text
    return f"{above} / {below}"


def reference_form(preference: Preference) -> Preference:
    """The loss given a reference: T and reference_rejected win, B and reference_chosen lose.

    Its log-ratio is that of the loss minus the reference's plain log p(chosen) / p(rejected), not minus the reference's
    own ratio of counts. Of CPO it is DPO.

    Raises:
      ValueError: the loss has a reference already: the same prediction twice is a square, which is no polynomial of a
        formula.
    """
    references = PREDICTIONS[2:]
    taken = [name for name in references if name in preference.variables]
    if taken:
        raise ValueError(f"the loss depends on {taken[0]} already; only one without a reference has a reference form")
    variables = ordered((*preference.variables, *references))
    _, winning, losing = preference.over(variables)
    chosen, rejected = (truth_table(Variable(name), variables) for name in references)
    return Preference(variables, tables.both(winning, rejected), tables.both(losing, chosen))
