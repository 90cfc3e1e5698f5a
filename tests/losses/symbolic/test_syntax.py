"""Text and syntax trees: reading undoes writing, operators group as stated, mistakes are shown at their place."""

import pytest
from hypothesis import given

from jaxalign.errors import UserError
from jaxalign.losses.symbolic.structures import Structure, parse_structure
from jaxalign.losses.symbolic.syntax import (
    BOTTOM,
    MAX_DEPTH,
    TOP,
    And,
    Iff,
    Implies,
    Not,
    Or,
    Variable,
    Xor,
    parse,
    variables_of,
)
from tests.losses.symbolic.random_formulas import formulas

A, B, C = map(Variable, "abc")


@given(formulas)
def test_reading_undoes_writing(formula):
    assert parse(str(formula)) == formula


@given(formulas, formulas, formulas)
def test_reading_undoes_writing_of_structures(core, condition, addition):
    structure = Structure(core, condition, addition)
    assert parse_structure(str(structure)) == structure


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~a & b | c", Or(And(Not(A), B), C)),
        ("a | b & c", Or(A, And(B, C))),
        ("a ^ b & c | a", Or(Xor(A, And(B, C)), A)),
        ("a -> b -> c", Implies(A, Implies(B, C))),
        ("(a -> b) -> c", Implies(Implies(A, B), C)),
        ("a <-> b -> c", Iff(A, Implies(B, C))),
        ("a & b & c", And(And(A, B), C)),
        ("a & (b & c)", And(A, And(B, C))),
        ("~~a", Not(Not(A))),
        ("~(a | b)", Not(Or(A, B))),
        ("true -> false", Implies(TOP, BOTTOM)),
        ("a' & a''", And(Variable("a'"), Variable("a''"))),
    ],
)
def test_operators_group_as_stated(text, expected):
    assert parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("not a and b or c", "~a & b | c"),
        ("a implies b xor c", "a -> b ^ c"),
        ("a iff b", "a <-> b"),
        ("¬a ∧ b ∨ c → ⊤ ↔ ⊥", "~a & b | c -> true <-> false"),
        ("a ⊕ b", "a ^ b"),
        ("!a && b || c => 1 <=> 0", "~a & b | c -> true <-> false"),
        ("  ( a|b )  ", "a | b"),
    ],
)
def test_other_spellings(text, same):
    assert parse(text) == parse(same)


def test_python_operators_build_the_same_trees():
    assert parse("~a & b | c -> a ^ b") == (~A & B | C) >> (A ^ B)


def test_variables_come_in_the_order_of_the_text():
    assert variables_of(parse("b & a -> b | c")) == ("b", "a", "c")
    assert variables_of(parse("a"), parse("c & a")) == ("a", "c")
    assert variables_of(TOP) == ()


def test_absent_parts_of_a_structure():
    assert parse_structure("a") == (A, TOP, BOTTOM)
    assert parse_structure("a given b") == (A, B, BOTTOM)
    assert parse_structure("a also c") == (A, TOP, C)
    assert parse_structure("a given b also c") == (A, B, C)


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("", 1, "not the end of the text"),
        ("rejected & & chosen", 12, "not '&'"),
        ("a b", 3, "an operator is missing before 'b'"),
        ("a & (b | c", 11, r"for the '\(' of column 5"),
        ("a)", 2, r"missing before '\)'"),
        ("a + b", 3, r"'\+' is no sign"),
        ("a <- b", 3, "'<' is no sign"),
        ("~", 2, "not the end"),
        ("a given", 8, "not the end"),
        ("a also b given c", 10, "'given' comes too late"),
        ("a given b given c", 11, "'given' comes too late"),
        ("given a", 1, "not 'given'"),
        ("a\t& @", 5, "'@' is no sign"),
    ],
)
def test_mistakes_are_shown_at_their_place(text, column, words):
    with pytest.raises(UserError, match=words) as caught:
        parse_structure(text)
    message, line, mark = str(caught.value).split("\n")
    assert f"column {column}:" in message
    assert mark.index("^") - 2 == column - 1
    assert line[2:].split() == text.split()


def test_a_single_formula_has_no_parts():
    with pytest.raises(UserError, match="an operator is missing before 'given'"):
        parse("a given b")


@pytest.mark.parametrize("text", ["(" * 5000 + "a" + ")" * 5000, "~" * 5000 + "a", "a & " * 5000 + "a"])
def test_what_is_nested_too_deeply_is_refused(text):
    with pytest.raises(UserError, match=f"deeper than {MAX_DEPTH}"):
        parse(text)
