"""Random formulas, tables and preferences for the tests of this folder, and slow plain references."""

import itertools

import numpy as np
from hypothesis import strategies as st

from jaxalign.losses.symbolic.syntax import And, Constant, Iff, Implies, Not, Or, Variable, Xor

NAMES = ("chosen", "rejected", "reference_chosen", "reference_rejected")

formulas = st.recursive(
    st.sampled_from([*map(Variable, NAMES), Constant(True), Constant(False)]),
    lambda inner: (
        st.builds(Not, inner)
        | st.sampled_from([And, Or, Xor, Implies, Iff]).flatmap(lambda kind: st.builds(kind, inner, inner))
    ),
    max_leaves=12,
)


def tables(count):
    return st.tuples(*[st.booleans()] * 2**count)


def holds(formula, world):
    """Truth in one world (a dict of Python booleans), written from the meaning of each connective."""
    match formula:
        case Variable(name):
            return world[name]
        case Constant(value):
            return value
        case Not(inner):
            return not holds(inner, world)
    left, right = holds(formula.left, world), holds(formula.right, world)
    match formula:
        case And():
            return left and right
        case Or():
            return left or right
        case Xor():
            return left != right
        case Iff():
            return left == right
        case Implies():
            return right if left else True
    raise AssertionError(formula)


def worlds(names):
    """The rows of a table, one after the other: first variable slowest, true first."""
    for values in itertools.product((True, False), repeat=len(names)):
        yield dict(zip(names, values, strict=True))


def weighted_count(table, probabilities):
    """The sum over true rows of prod p or 1 - p; plain products in double precision."""
    total = 0.0
    for wanted, values in zip(table, itertools.product((True, False), repeat=len(probabilities)), strict=True):
        if wanted:
            total += np.prod([p if value else 1 - p for p, value in zip(probabilities, values, strict=True)])
    return total
