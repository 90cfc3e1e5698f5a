"""Formulas of propositional logic: the syntax tree, how it is read from text and how it is written.

  formula  <->  ->  |  ^  &  ~      weakest first; `->` groups to the right, the others to the left
  words    iff, implies, or, xor, and, not; true and false
  signs    ↔ → ∨ ⊕ ∧ ¬ ⊤ ⊥ are read too, and =>, <=>, &&, ||, !, 1, 0

A variable is a name that may end in primes: `chosen'` is a second copy of `chosen`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, NamedTuple

from jaxalign.errors import UserError

MAX_DEPTH = 200


class Formula:
    """A node of the syntax tree. `~a`, `a & b`, `a | b`, `a ^ b` and `a >> b` (implies) build larger ones.

    `str` writes it with the fewest parentheses that `parse` needs to read the same tree.
    """

    def __invert__(self) -> "Formula":
        return Not(self)

    def __and__(self, other: "Formula") -> "Formula":
        return And(self, other)

    def __or__(self, other: "Formula") -> "Formula":
        return Or(self, other)

    def __xor__(self, other: "Formula") -> "Formula":
        return Xor(self, other)

    def __rshift__(self, other: "Formula") -> "Formula":
        return Implies(self, other)


@dataclass(frozen=True)
class Variable(Formula):
    """What a model predicts about a completion: true if it deems it valid."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Constant(Formula):
    value: bool

    def __str__(self) -> str:
        return "true" if self.value else "false"


TOP, BOTTOM = Constant(True), Constant(False)


@dataclass(frozen=True)
class Not(Formula):
    argument: Formula

    def __str__(self) -> str:
        return f"~({self.argument})" if isinstance(self.argument, Binary) else f"~{self.argument}"


@dataclass(frozen=True)
class Binary(Formula):
    left: Formula
    right: Formula
    sign: ClassVar[str]
    strength: ClassVar[int]  # how tightly it binds

    def __str__(self) -> str:
        right_first = isinstance(self, Implies)
        left = self._side(self.left, strict=right_first)
        return f"{left} {self.sign} {self._side(self.right, strict=not right_first)}"

    def _side(self, operand: Formula, strict: bool) -> str:
        if isinstance(operand, Binary) and operand.strength < self.strength + strict:
            return f"({operand})"
        return str(operand)


@dataclass(frozen=True)
class Iff(Binary):
    sign, strength = "<->", 1


@dataclass(frozen=True)
class Implies(Binary):
    sign, strength = "->", 2


@dataclass(frozen=True)
class Or(Binary):
    sign, strength = "|", 3


@dataclass(frozen=True)
class Xor(Binary):
    sign, strength = "^", 4


@dataclass(frozen=True)
class And(Binary):
    sign, strength = "&", 5


def conjunction(formulas: Iterable[Formula]) -> Formula:
    """All of them; true if there are none."""
    formulas = tuple(formulas)
    return reduce(And, formulas) if formulas else TOP


def disjunction(formulas: Iterable[Formula]) -> Formula:
    """At least one of them; false if there are none."""
    formulas = tuple(formulas)
    return reduce(Or, formulas) if formulas else BOTTOM


def parts(formula: Formula) -> tuple[Formula, ...]:
    """The operands of a node, from left to right."""
    match formula:
        case Not(argument):
            return (argument,)
        case Binary(left, right):
            return (left, right)
    return ()


def variables_of(*formulas: Formula) -> tuple[str, ...]:
    """Names of the variables in the order in which they are first met."""
    names: dict[str, None] = {}
    waiting = list(reversed(formulas))
    while waiting:
        formula = waiting.pop()
        if isinstance(formula, Variable):
            names[formula.name] = None
        waiting.extend(reversed(parts(formula)))
    return tuple(names)


# Every way of writing a sign -> the way of this module. `given` and `also` separate the parts of a preference
# structure, see `structures`.
_SPELLINGS = {
    **dict.fromkeys(("<->", "<=>", "↔", "iff"), "<->"),
    **dict.fromkeys(("->", "=>", "→", "implies"), "->"),
    **dict.fromkeys(("|", "||", "∨", "or"), "|"),
    **dict.fromkeys(("^", "⊕", "xor"), "^"),
    **dict.fromkeys(("&", "&&", "∧", "and"), "&"),
    **dict.fromkeys(("~", "!", "¬", "not"), "~"),
    **dict.fromkeys(("true", "⊤", "1"), "true"),
    **dict.fromkeys(("false", "⊥", "0"), "false"),
    **{word: word for word in ("(", ")", "given", "also")},
}
_BINARY = {kind.sign: kind for kind in (Iff, Implies, Or, Xor, And)}
_NAME = r"[A-Za-z_]\w*'*"
_TOKEN = re.compile(rf"\s*(?:({_NAME}|<->|<=>|->|=>|\|\||&&|[↔→|∨^⊕&∧~!¬⊤⊥()10])|(\S))", re.ASCII)


class Token(NamedTuple):
    sign: str  # in the spelling of this module; "" for a variable, "end" behind the last one
    text: str
    position: int


def tokens(text: str) -> list[Token]:
    """The words of a text, and one "end". UserError, with the place marked, at a character that begins none."""
    found = []
    for match in _TOKEN.finditer(text):
        word, stranger = match.groups()
        if stranger is not None:
            raise reading_error(text, match.start(2), f"{stranger!r} is no sign of a formula")
        found.append(Token(_SPELLINGS.get(word, ""), word, match.start(1)))
    return [*found, Token("end", "", len(text.rstrip()))]


def reading_error(text: str, position: int, complaint: str) -> UserError:
    """The complaint, with the text and a mark under the character at `position` (counted from 0)."""
    line = text.replace("\n", " ").replace("\t", " ")
    return UserError(f"cannot read the formula at column {position + 1}: {complaint}\n  {line}\n  {' ' * position}^")


def parse(text: str) -> Formula:
    """The syntax tree of `text`.

    Raises:
      UserError: it is no formula; the message marks the place. Or it is nested deeper than 200 levels.
    """
    formula, token = parse_until(text, tokens(text))
    if token.sign != "end":
        raise reading_error(text, token.position, f"an operator is missing before '{token.text}'")
    return formula


def parse_until(text: str, words: list[Token]) -> tuple[Formula, Token]:
    """The longest formula at the front of `words`, which is consumed, and the token behind it, which is not."""
    deep = UserError(f"the formula is nested deeper than {MAX_DEPTH} levels; name parts of it, or simplify it")
    try:
        formula = _Reader(text, words).expression(0)
    except RecursionError:
        raise deep from None
    level = [formula]
    for _ in range(MAX_DEPTH):
        level = [part for node in level for part in parts(node)]
        if not level:
            return formula, words[0]
    raise deep


class _Reader:
    """Recursive descent with operator strengths over a list of tokens that is consumed from the front."""

    def __init__(self, text: str, words: list[Token]):
        self.text, self.words = text, words

    def expression(self, weakest: int) -> Formula:
        """A formula whose outermost operators bind at least as tightly as `weakest`."""
        formula = self.operand()
        while (kind := _BINARY.get(self.words[0].sign)) and kind.strength >= weakest:
            self.words.pop(0)
            formula = kind(formula, self.expression(kind.strength + (kind is not Implies)))
        return formula

    def operand(self) -> Formula:
        token = self.words[0]
        if token.sign not in ("", "~", "(", "true", "false"):
            raise reading_error(
                self.text,
                token.position,
                f"a variable, 'true', 'false', '~' or '(' should stand here, not {_shown(token)}",
            )
        self.words.pop(0)
        match token.sign:
            case "":
                return Variable(token.text)
            case "~":
                return Not(self.operand())
            case "(":
                formula = self.expression(0)
                closing = self.words[0]
                if closing.sign != ")":
                    complaint = f"')' should stand here, for the '(' of column {token.position + 1}"
                    raise reading_error(self.text, closing.position, f"{complaint}, not {_shown(closing)}")
                self.words.pop(0)
                return formula
        return Constant(token.sign == "true")


def _shown(token: Token) -> str:
    return "the end of the text" if token.sign == "end" else f"'{token.text}'"
