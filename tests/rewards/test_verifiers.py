"""Verifiers: texts as models write them, and what each is worth."""

from decimal import Decimal

import pytest

from jaxalign.errors import UserError
from jaxalign.rewards.verifiers import VERIFIERS, get_verifier, numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("none here", []),
        ("12.", [12]),
        ("It is 12, or not", [12]),
        ("-5", [-5]),
        ("\u22125", [-5]),  # the minus sign of typography
        ("7-12=-5", [7, 12, -5]),  # operation, operation's result, sign
        ("7 - 12 = -5", [7, 12, -5]),
        ("(3)-4", [3, 4]),
        ("**-5**", [-5]),
        ("\\boxed{-5}", [-5]),
        ("-$5 and $1,000.50", [-5, "1000.5"]),
        ("1,234,567", [1234567]),
        ("1,2,3", [1, 2, 3]),
        ("12,34", [12, 34]),
        ("1234,567", [1234, 567]),
        ("3.14", ["3.14"]),
        (".5", ["0.5"]),
        ("2e3", [2000]),
        ("12th, 10cm", [12, 10]),
        ("GPT4 and x2 and v1.5", []),
        ("3*4=12...", [3, 4, 12]),
        ("+7", [7]),
    ],
)
def test_numbers(text, expected):
    assert numbers(text) == [Decimal(str(x)) for x in expected]


@pytest.mark.parametrize(
    ("completion", "answer", "value"),
    [
        ("3+4 = 7", "7", 1),
        ("The answer is 7.", "7", 1),
        ("7", 7, 1),
        ("7.0", "7", 1),
        ("7.5", "7", 0),
        ("3+4 = 7, not 8", "7", 0),
        ("9-17 = -8", "-8", 1),
        ("9-17 = 8", "-8", 0),
        ("1,200", "1200", 1),
        ("1200", "1,200", 1),
        ("17", "7", 0),
        ("seven", "7", 0),
        ("", "0", 0),
        ("so 42", "20 + 22 = 42 #### 42", 1),
        ("7.5", "7.5", 0),  # no integer
        ("9" * 5000, "7", 0),
        ("1e999", "7", 0),
    ],
)
def test_last_integer(completion, answer, value):
    assert get_verifier("last_integer")("p", completion, {"answer": answer}) == value


@pytest.mark.parametrize(
    ("completion", "answer", "value"),
    [
        ("47", "47", 1),
        ("It is 57", "47", 1 / 2),
        ("42", "47", 1 / 2),
        ("7", "47", 1 / 2),
        ("147", "47", 2 / 3),
        ("74", "47", 0),
        ("-47", "47", 0),
        ("-48", "-47", 1 / 2),
        ("47.5", "47", 0),
        ("9" * 5000, "9", 1 / 5000),
        ("1e999", "7", 0),
        ("", "47", 0),
    ],
)
def test_matching_digits(completion, answer, value):
    assert get_verifier("matching_digits")("p", completion, {"answer": answer}) == pytest.approx(value)


def test_first_integer():
    verify = get_verifier("first_integer", field="solution")
    assert verify("", "7 because 3+4", {"solution": "7"}) == 1
    assert verify("", "3+4=7", {"solution": "7"}) == 0


def test_last_number_and_its_tolerances():
    example = {"answer": "2.5"}
    assert get_verifier("last_number")("", "x = 2.50", example) == 1
    assert get_verifier("last_number")("", "x = 2.4", example) == 0
    assert get_verifier("last_number", tolerance=0.1)("", "x = 2.4", example) == 1
    assert get_verifier("last_number", tolerance=0.09)("", "x = 2.4", example) == 0
    assert get_verifier("last_number", relative=0.04)("", "x = 2.4", example) == 1
    assert get_verifier("last_number")("", "no idea", example) == 0


def test_exact_answer():
    verify = get_verifier("exact_answer")
    assert verify("", "  The  Cat!\n", {"answer": "the cat"}) == 1
    assert verify("", "\uff21", {"answer": "a"}) == 1  # full-width A
    assert verify("", "the cat sat", {"answer": "the cat"}) == 0
    assert verify("", "yes", {"answer": ["no", "Yes"]}) == 1
    assert get_verifier("exact_answer", last_line=True)("", "So:\nParis.\n\n", {"answer": "Paris"})


@pytest.mark.parametrize(
    ("completion", "choice"),
    [
        ("B", "B"),
        ("B. because", "B"),
        ("(B)", "B"),
        ("The answer is B.", "B"),
        ("answer: **C**", "C"),
        ("I think option A, no, (D)", "D"),
        ("Answer: \\boxed{B}", "B"),
        ("A dog is an animal", None),
        ("Because", None),
        ("", None),
    ],
)
def test_multiple_choice(completion, choice):
    verify = get_verifier("multiple_choice")
    assert [x for x in "ABCD" if verify("", completion, {"answer": x})] == [choice] * bool(choice)
    if choice:
        assert verify("", completion, {"answer": "ABCD".index(choice)}) == 1


def test_format_and_length():
    verify = get_verifier("matches_format", pattern=r"<think>.*</think>\s*\d+")
    assert verify("", "<think>\na\n</think>\n4\n", {}) == 1
    assert verify("", "4", {}) == 0
    assert get_verifier("matches_format", pattern=r"\d", full=False)("", "a 4 b", {}) == 1
    with pytest.raises(UserError, match="not a regular expression"):
        get_verifier("matches_format", pattern="(")("", "a", {})
    verify = get_verifier("length_within", maximum=4, minimum=2, softness=4)
    assert [verify("", "x" * n, {}) for n in (0, 1, 2, 4, 5, 8, 20)] == [
        0.5,
        0.75,
        1,
        1,
        0.75,
        0,
        0,
    ]
    assert get_verifier("length_within", maximum=2, unit="words")("", "one two", {}) == 1
    assert get_verifier("length_within", maximum=2, unit="words")("", "one two three", {}) == 0


def test_every_verifier_gives_a_float_for_any_text():
    options = {"matches_format": {"pattern": "a*"}, "length_within": {"maximum": 3}}
    for name in VERIFIERS:
        for text in ("", "\x00", "-", ",", "1,", "..", "\u0663", "\ud83d", "(", "A"):
            value = get_verifier(name, **options.get(name, {}))("p", text, {"answer": "1"})
            assert isinstance(value, float) and 0 <= value <= 1


def test_bad_input():
    with pytest.raises(UserError, match=r"'last_intger' is not known; choose from .*last_integer"):
        get_verifier("last_intger")
    with pytest.raises(UserError, match="no option 'tolerance'; it has field"):
        get_verifier("last_integer", tolerance=1)
    with pytest.raises(UserError, match="needs the option 'pattern'"):
        get_verifier("matches_format")
    with pytest.raises(UserError, match=r"has no 'answer'.*it has prompt"):
        get_verifier("last_integer")("", "1", {"prompt": "x"})
    with pytest.raises(UserError, match="'seven' holds no number"):
        get_verifier("last_integer")("", "1", {"answer": "seven"})
