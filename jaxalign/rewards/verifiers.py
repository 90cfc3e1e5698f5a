"""Verifiers: functions (prompt, completion, example) -> float; how right is a completion?

All are pure text functions of the standard library. `VERIFIERS` names them for configs; `get_verifier`
binds options. The right answer is read from `example["answer"]` unless `field` says otherwise.
"""

import functools
import inspect
import re
import unicodedata
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from jaxalign.errors import UserError

Verifier = Callable[[str, str, Mapping[str, Any]], float]

# A number as people write it. A sign counts where nothing stands before it that would make it
# "minus": in "7-12" it is an operation, in "= -5" or "(-5)" a sign. Digits inside a name (x2, GPT4)
# are no number. Commas count in groups of three only, so that "1,2,3" is three numbers; a full stop
# that ends a sentence is not a decimal point.
_NUMBER = re.compile(
    r"""
    (?: (?<![A-Za-z0-9_.)\]}]) (?P<sign>[-+\u2212]) [$\u20ac\u00a3]? | (?<![A-Za-z0-9_.]) )
    (?P<whole> [0-9]{1,3} (?:,[0-9]{3})+ (?![0-9]) | [0-9]+ | (?=\.[0-9]) )
    (?P<fraction> \.[0-9]+ )?
    (?P<exponent> [eE][-+]?[0-9]{1,3} (?![A-Za-z0-9]) )?
    """,
    re.VERBOSE,
)


def numbers(text: str) -> list[Decimal]:
    """All numbers of a text, in order and exact, e.g. of "1,234 and 12. or -3.50, $5, 2e3"."""
    found = []
    for match in _NUMBER.finditer(text):
        sign = "-" if match["sign"] in ("-", "\u2212") else ""
        whole = match["whole"].replace(",", "") or "0"
        found.append(Decimal(sign + whole + (match["fraction"] or "") + (match["exponent"] or "")))
    return found


def last_integer(prompt: str, completion: str, example: Mapping[str, Any], *, field: str = "answer") -> float:
    """1 if the last number of the completion is an integer (12, 12., 12.0, 1,200) equal to the answer, else 0."""
    return _integer(completion, example, field, -1)


def first_integer(prompt: str, completion: str, example: Mapping[str, Any], *, field: str = "answer") -> float:
    """1 if the first number of the completion is an integer and equals the answer, else 0."""
    return _integer(completion, example, field, 0)


def _integer(completion: str, example: Mapping[str, Any], field: str, which: int) -> float:
    found = numbers(completion)
    right = _number_of(example, field)
    return float(bool(found) and found[which] == right and right == right.to_integral_value())


def matching_digits(prompt: str, completion: str, example: Mapping[str, Any], *, field: str = "answer") -> float:
    """Share of digits that are right, of the completion's last number against an integer answer, in [0, 1].

    Digits are compared from the right, as they are added; those that one number has more than the other are wrong. 0
    for a number that is no integer, or of the other sign.
    """
    found, right = numbers(completion), _number_of(example, field)
    if not found or found[-1] != found[-1].to_integral_value() or (found[-1] < 0) != (right < 0):
        return 0.0
    # Not by way of int, which refuses thousands of digits.
    said, wanted = (f"{number.copy_abs():f}".partition(".")[0][::-1] for number in (found[-1], right))
    return sum(a == b for a, b in zip(said, wanted, strict=False)) / max(len(said), len(wanted))


def last_number(
    prompt: str,
    completion: str,
    example: Mapping[str, Any],
    *,
    field: str = "answer",
    tolerance: float = 0.0,
    relative: float = 0.0,
) -> float:
    """1 if the last number is within `max(tolerance, relative * |answer|)` of the answer, else 0."""
    found = numbers(completion)
    if not found:
        return 0.0
    right = _number_of(example, field)
    # Decimal(str(...)) takes 0.1 to mean one tenth, so that the edge of the tolerance is where its
    # writer put it.
    allowed = max(Decimal(str(tolerance)), Decimal(str(relative)) * abs(right))
    return float(abs(found[-1] - right) <= allowed)


def exact_answer(
    prompt: str,
    completion: str,
    example: Mapping[str, Any],
    *,
    field: str = "answer",
    last_line: bool = False,
) -> float:
    """1 if completion and answer are the same after `normalise`, else 0; a list of answers means any of them.

    With `last_line`, only the completion's last line that is not blank is compared.
    """
    lines = [line for line in completion.splitlines() if line.strip()]
    said = normalise(lines[-1] if last_line and lines else completion)
    answers = _field(example, field)
    answers = answers if isinstance(answers, (list, tuple)) else [answers]
    return float(any(said == normalise(str(answer)) for answer in answers))


def normalise(text: str) -> str:
    """Unicode NFKC, case folded, white space to single blanks, no punctuation at the ends."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(" .,;:!?\"'`*()[]{}")


_SAID_CHOICE = re.compile(
    r"(?i:answer|choice|option)\W{0,4}(?i:\s*(?:is|would\s+be)\b)?[\s:*(\[\"']*([A-Z])(?![A-Za-z'])"
    r"|\\boxed\{\s*\(?([A-Z])\b|\(([A-Z])\)"
)
_STARTS_WITH_CHOICE = re.compile(r"[\s*\"'(\[]*([A-Z])(?=\s*(?:[.):,\]*\"']|\n|$))")


def multiple_choice(prompt: str, completion: str, example: Mapping[str, Any], *, field: str = "answer") -> float:
    """1 if the chosen capital letter is the answer's, else 0.

    The answer is a letter or the option's number from 0. The choice is the last letter said as such ("the
    answer is B", "(B)", "\\boxed{B}"), or else one that opens the completion ("B", "B.", "B) because"). The
    word "A" of a sentence is no choice.
    """
    right = _field(example, field)
    if isinstance(right, int):
        right = chr(ord("A") + right)
    said = [next(filter(None, groups)) for groups in _SAID_CHOICE.findall(completion)]
    if not said:
        start = _STARTS_WITH_CHOICE.match(completion)
        said = [start[1]] if start else []
    return float(bool(said) and said[-1] == str(right).strip().strip("().").upper())


def matches_format(
    prompt: str, completion: str, example: Mapping[str, Any], *, pattern: str, full: bool = True
) -> float:
    """1 if the regular expression matches the whole completion (full=False: anything in it), else 0.

    "." matches line breaks too. White space around the completion is ignored. Python's matcher
    cannot be interrupted: a pattern that may backtrack without end belongs in a worker
    (`trusted=False` in `jaxalign.rewards.runner`).
    """
    compiled = _compile(pattern)
    find = compiled.fullmatch if full else compiled.search
    return float(find(completion.strip()) is not None)


@functools.lru_cache(maxsize=64)
def _compile(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f"format pattern {pattern!r} is not a regular expression: {error}") from error


def length_within(
    prompt: str,
    completion: str,
    example: Mapping[str, Any],
    *,
    maximum: int,
    minimum: int = 0,
    softness: int = 0,
    unit: str = "characters",
) -> float:
    """1 if the completion's length is in [minimum, maximum], falling linearly to 0 over `softness` units outside.

    `unit` is "characters" or "words". (Lengths in tokens: `jaxalign.rewards.shaping.overlong_penalty`.)
    """
    if unit not in ("characters", "words"):
        raise UserError(f"length unit {unit!r} is not known; use 'characters' or 'words'")
    length = len(completion) if unit == "characters" else len(completion.split())
    excess = max(length - maximum, minimum - length, 0)
    return max(0.0, 1.0 - excess / softness) if softness else float(excess == 0)


VERIFIERS: dict[str, Callable[..., float]] = {
    "last_integer": last_integer,
    "first_integer": first_integer,
    "matching_digits": matching_digits,
    "last_number": last_number,
    "exact_answer": exact_answer,
    "multiple_choice": multiple_choice,
    "matches_format": matches_format,
    "length_within": length_within,
}


def get_verifier(name: str, **options: Any) -> Verifier:
    """The verifier of that name with options bound. UserError for an unknown name or option."""
    if name not in VERIFIERS:
        raise UserError(f"verifier {name!r} is not known; choose from {', '.join(sorted(VERIFIERS))}")
    verifier = VERIFIERS[name]
    parameters = [p for p in inspect.signature(verifier).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in [p.name for p in parameters]:
            known = ", ".join(p.name for p in parameters)
            raise UserError(f"verifier {name!r} has no option {option!r}; it has {known}")
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in options:
            raise UserError(f"verifier {name!r} needs the option {parameter.name!r}")
    return functools.partial(verifier, **options) if options else verifier


def _field(example: Mapping[str, Any], field: str) -> Any:
    if example.get(field) is None:
        raise UserError(
            f"the example has no {field!r}, which the verifier compares with; it has {', '.join(map(str, example))}"
        )
    return example[field]


def _number_of(example: Mapping[str, Any], field: str) -> Decimal:
    """The right answer; of a text ("so it is #### 42") its last number."""
    found = numbers(str(_field(example, field)))
    if not found:
        raise UserError(f"the answer {str(example[field])[:80]!r} holds no number")
    return found[-1]
