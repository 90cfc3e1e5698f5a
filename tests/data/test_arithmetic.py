"""Arithmetic questions: right answers, and nothing held out that was trained on, twins included."""

import re

import pytest

from jaxalign.data.arithmetic import Arithmetic, ArithmeticPairs
from jaxalign.data.sources import load_source
from jaxalign.errors import UserError


def parts(example):
    a, operation, b = re.fullmatch(r"What is (\d+)([-+*])(\d+)\?", example["prompt"]).groups()
    return int(a), operation, int(b)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_splits_are_disjoint_up_to_twins_and_large_enough(seed):
    train, held_out, everything = (
        list(load_source({"kind": "arithmetic", "split": split, "seed": seed}))
        for split in ("train", "held_out", "all")
    )
    assert len(train) >= 600 and len(held_out) >= 200
    assert len({e["prompt"] for e in everything}) == len(everything) == 21**2 + 21 * 22 // 2 + 13**2

    def up_to_twins(examples):
        return {(o, *sorted((a, b))) for a, o, b in map(parts, examples)}

    assert not up_to_twins(train) & up_to_twins(held_out)
    ids = [e["id"] for e in train + held_out]
    assert len(set(ids)) == len(everything)
    assert set(ids) == {e["id"] for e in everything}
    # each operation is held out in its share, and the first rows mix operations
    for operation, count in (("+", 441), ("-", 231), ("*", 169)):
        held = sum(parts(e)[1] == operation for e in held_out)
        assert 0.25 * count <= held <= 0.25 * count + 2
    assert {parts(e)[1] for e in held_out[:30]} == set("+-*")


def test_answers_are_right():
    for example in Arithmetic("all"):
        a, operation, b = parts(example)
        expected = {"+": a + b, "-": a - b, "*": a * b}[operation]
        assert example["answer"] == str(expected)
        assert max(a, b) <= (12 if operation == "*" else 20)


def test_the_seed_divides_and_the_ids_stay():
    first, again, other = Arithmetic(seed=3), Arithmetic(seed=3), Arithmetic(seed=4)
    assert list(first) == list(again)
    assert {e["prompt"] for e in first} != {e["prompt"] for e in other}
    ids = {e["prompt"]: e["id"] for e in first}
    assert all(ids.get(e["prompt"], e["id"]) == e["id"] for e in other)


def test_the_division_is_the_same_everywhere():
    # Made by this code; it pins the hash, on which saved runs and published figures depend.
    prompts = [e["prompt"] for e in list(Arithmetic("held_out"))[:4]]
    assert prompts == ["What is 13-9?", "What is 8+3?", "What is 7*9?", "What is 11+7?"]


def test_options():
    source = Arithmetic("all", operations="*", max_factor=9, template="{question}=")
    assert len(source) == 100 and all(e["prompt"].endswith("=") for e in source)
    assert len(Arithmetic("train", held_out=0.0)) == 841
    assert min(int(e["answer"]) for e in Arithmetic("all")) == 0


def test_differences_below_zero_stay_with_their_twins():
    splits = [{parts(e) for e in Arithmetic(split, operations="-", negative=True)} for split in ("train", "held_out")]
    assert sum(map(len, splits)) == 21**2
    for questions in splits:
        assert {(b, o, a) for a, o, b in questions} == questions


@pytest.mark.parametrize(
    "options",
    [
        {"split": "test"},
        {"operations": "/"},
        {"operations": "++"},
        {"held_out": 1.0},
        {"max_operand": -1},
        {"template": "What?"},
        {"split": "held_out", "held_out": 0.0},
    ],
)
def test_bad_options(options):
    with pytest.raises(UserError):
        Arithmetic(**options)


def test_pairs_have_one_right_answer():
    pairs, questions = ArithmeticPairs("held_out", operations="+-"), Arithmetic("held_out", operations="+-")
    assert len(pairs) == len(questions)
    distances = set()
    for index in range(len(pairs)):
        pair, question = pairs[index], questions[index]
        assert pair["prompt"] == question["prompt"]
        assert pair["chosen"] == question["answer"]
        assert int(pair["rejected"]) >= 0
        distances.add(int(pair["rejected"]) - int(pair["chosen"]))
    assert 0 not in distances
    assert min(distances) < 0 < max(distances)
    assert pairs.where(3) == questions.where(3)
