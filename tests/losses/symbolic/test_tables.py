import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.losses.symbolic import tables as t
from jaxalign.losses.symbolic.syntax import BOTTOM, TOP, Variable, parse, variables_of
from tests.losses.symbolic import random_formulas as plain


@given(plain.formulas)
def test_a_table_is_the_truth_of_its_rows(formula):
    expected = tuple(plain.holds(formula, world) for world in plain.worlds(plain.NAMES))
    assert t.truth_table(formula, plain.NAMES) == expected


def test_the_order_of_rows():
    assert t.truth_table(parse("chosen & ~rejected"), ("chosen", "rejected")) == (False, True, False, False)
    assert t.truth_table(parse("chosen & ~rejected"), ("rejected", "chosen")) == (False, False, True, False)
    assert t.truth_table(TOP, ()) == (True,)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_every_small_table_has_its_formula(count):
    names = plain.NAMES[:count]
    for table in itertools.product((True, False), repeat=2**count):
        assert t.truth_table(t.formula_of(table, names), names) == table


@given(st.integers(3, 5).flatmap(plain.tables))
def test_larger_tables_have_their_formula(table):
    names = tuple("abcde"[: t.number_of_variables(table)])
    assert t.truth_table(t.formula_of(table, names), names) == table


def cubes_within(table):
    """Every partial assignment whose rows are all true, the slow way."""
    count = t.number_of_variables(table)
    for cube in itertools.product((True, False, None), repeat=count):
        inside = [
            value
            for value, row in zip(table, t.rows(count), strict=True)
            if all(wanted in (None, x) for wanted, x in zip(cube, row, strict=True))
        ]
        if all(inside):
            yield cube


@given(st.integers(1, 3).flatmap(plain.tables))
def test_prime_implicants_are_the_widest_cubes_within(table):
    cubes = list(cubes_within(table))

    def widens(narrow, wide):
        return narrow != wide and all(w in (None, n) for n, w in zip(narrow, wide, strict=True))

    expected = [cube for cube in cubes if not any(widens(cube, other) for other in cubes)]
    assert sorted(t.prime_implicants(table), key=str) == sorted(expected, key=str)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("chosen | ~rejected", "rejected -> chosen"),
        ("chosen & ~rejected | ~chosen & rejected", "chosen ^ rejected"),
        ("~(chosen ^ rejected)", "chosen <-> rejected"),
        ("~chosen | ~rejected", "~(chosen & rejected)"),
        ("chosen & rejected | chosen & ~rejected", "chosen"),
        ("chosen | ~chosen", "true"),
        ("chosen & ~chosen", "false"),
        ("a & b | ~a & c | b & c", "(a -> b) & (a | c)"),
        ("(a | b) & (a | c)", "a | b & c"),
        ("a ^ b ^ c", "a ^ b ^ c"),
    ],
)
def test_short_forms(text, short):
    simple = t.simplify(parse(text))
    names = variables_of(parse(text))
    assert t.truth_table(simple, names) == t.truth_table(parse(short), names)
    assert len(str(simple)) <= len(short)


@given(plain.formulas)
def test_simplifying_keeps_the_meaning_and_never_lengthens(formula):
    simple = t.simplify(formula)
    assert t.truth_table(simple, plain.NAMES) == t.truth_table(formula, plain.NAMES)
    assert str(simple).count("c") <= str(formula).count("c")  # occurrences of variables, all of which have a c


def test_a_redundant_implicant_is_left_out():
    """The consensus term b & c of a & b | ~a & c adds nothing."""
    table = t.truth_table(parse("a & b | ~a & c"), "abc")
    assert len(t.prime_implicants(table)) == 3
    assert str(t.formula_of(table, "abc")).count("b") == 1


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"'c' of the formula is not one of \(a, b\)"):
        t.truth_table(parse("a & c"), ("a", "b"))
    with pytest.raises(ValueError, match="twice"):
        t.truth_table(Variable("a"), ("a", "a"))
    with pytest.raises(ValueError, match="at most 8"):
        t.truth_table(BOTTOM, tuple("abcdefghi"))
    with pytest.raises(ValueError, match="table of 4 rows is not one of 3"):
        t.formula_of((True,) * 4, "abc")
    for length in (0, 3, 512):
        with pytest.raises(ValueError, match=rf"2\^n rows .* not {length}"):
            t.number_of_variables((True,) * length)
