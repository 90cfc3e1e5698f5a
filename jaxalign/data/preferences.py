"""Preference data as token ids: pairs (chosen, rejected) of completions, and single completions with a label.

A row of the source is one of

    {"prompt": ..., "chosen": ..., "rejected": ...}        a pair
    {"chosen": [messages], "rejected": [messages]}         a pair whose conversations begin with the same prompt
    {"prompt": ..., "completion": ..., "label": true}      a labelled completion

where a prompt is a text or a list of messages, and a completion a text or a list of messages that ends with the
assistant's. Pairs may carry scores of both completions, and judgements of several objectives,

    {..., "objectives": {"helpful": 1, "brief": -1}}       1: chosen is better, -1: rejected is, 0: neither

Ids in place of texts (`prompt_ids`, `chosen_ids`,
`rejected_ids`) are taken as they are, so that what a model sampled is never decoded and encoded again.

Everything is read, checked and encoded when the data is opened: a mistake in the last row is known before training.
"""

import pathlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxalign.data.sources import SUFFIXES, Source, load_source, where
from jaxalign.errors import UserError


class Preference(NamedTuple):
    """One prompt with two completions, as ids. Of a labelled row the second is another prompt's."""

    prompt_ids: list[int]
    completion_ids: tuple[list[int], list[int]]  # chosen and rejected, or own and mismatched
    label: bool = True  # of a labelled row
    score_difference: float | None = None  # score of chosen minus that of rejected, where the source has them
    prompt: Any = None  # the three as they were given, for people
    chosen: Any = None
    rejected: Any = None
    annotator: str = ""  # who judged, where the source says
    weight: float = 1.0  # of a labelled row, beside the loss's own
    objectives: Mapping[str, int] | None = None  # of a pair: +1 where the objective prefers chosen, -1 rejected, 0 none


BRIEF = "brief"  # the objective that needs no judgement: the shorter completion, in tokens


def sign(row: Preference, objective: str) -> int:
    """What the objective prefers: +1 chosen, -1 rejected, 0 neither, or it did not judge the pair.

    `BRIEF` judges by length where the row does not say.
    """
    judged = row.objectives or {}
    if objective == BRIEF and BRIEF not in judged:
        chosen, rejected = map(len, row.completion_ids)
        return (chosen < rejected) - (chosen > rejected)
    return judged.get(objective, 0)


class _Bad(ValueError):
    """What is wrong with a row: a word to count by, and the rest of the sentence."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


class Preferences:
    """The good rows of a source; `left_out` counts the others by what is wrong with them.

    Args:
      spec: what `load_source` reads.
      encode_prompt: text or messages -> ids.
      encode_completion: text -> ids, end token included.
      fields: the config group with `prompt_field`, `chosen_field`, `rejected_field`, `completion_field`, `label_field`,
        `chosen_score_field`, `rejected_score_field`, `annotator_field`, `objectives_field`, `max_prompt_tokens`,
        `max_completion_tokens` and `bad`: "error", or "skip" for leaving bad rows out.
      labelled: rows with labels. A pair in the source then becomes two of them; and every row gets, as its second
        completion, that of the nearest earlier row with another prompt (around the end), which KTO's estimate of the KL
        reads.
      needs_scores: a pair without scores is bad.

    Raises UserError: a bad row (file and line are named), no good row at all.
    """

    def __init__(
        self,
        spec: str,
        encode_prompt: Callable[[Any], list[int]],
        encode_completion: Callable[[str], list[int]],
        fields: Any,
        *,
        labelled: bool = False,
        needs_scores: bool = False,
    ):
        if fields.bad not in ("error", "skip"):
            raise UserError(f"config.data.bad={fields.bad!r} is not known; use error or skip")
        self._fields, self._needs_scores = fields, needs_scores
        self._encode_prompt, self._encode_completion = encode_prompt, encode_completion
        self.left_out: Counter[str] = Counter()
        source = _open(spec, fields.bad)
        broken = getattr(source, "broken", [])
        if broken:
            self.left_out["broken line"] = len(broken)
        rows: list[Preference] = []
        for index in range(len(source)):
            try:
                row = source[index]
                rows += self._labelled(row) if labelled else [self._pair(row)]
            except _Bad as bad:
                if fields.bad == "error":
                    raise UserError(
                        f"{where(source, index)} {bad}; mend it, or leave such rows out by --config.data.bad=skip"
                    ) from bad
                self.left_out[bad.kind] += 1
        if not rows:
            raise UserError(f"data source {spec!r} has no good row of {len(source)}: {self.describe_left_out()}")
        self.rows = _with_mismatched(rows, spec) if labelled else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Preference:
        return self.rows[index]

    @property
    def annotators(self) -> tuple[str, ...]:
        """The names of those who judged, in order; ("",) where the source names none."""
        return tuple(sorted({row.annotator for row in self.rows}))

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names of the objectives that rows judge, in order."""
        return tuple(sorted({name for row in self.rows for name in row.objectives or {}}))

    def describe_left_out(self) -> str:
        """ "3 left out (2 no preference, 1 long prompt)", or nothing."""
        parts = ", ".join(f"{count} {kind}" for kind, count in self.left_out.most_common())
        return f"{self.left_out.total()} left out ({parts})" if parts else ""

    def _pair(self, row: Mapping[str, Any]) -> Preference:
        f = self._fields
        if "chosen_ids" in row and "rejected_ids" in row:
            ids = tuple([int(i) for i in row[name]] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
            prompt, chosen, rejected = ids
            shown = (row.get(f.prompt_field), row.get(f.chosen_field), row.get(f.rejected_field))
        else:
            chosen_prefix, chosen_text = _completion(row, f.chosen_field)
            rejected_prefix, rejected_text = _completion(row, f.rejected_field)
            if chosen_prefix != rejected_prefix:
                raise _Bad("different prompts", "has a chosen and a rejected conversation that begin differently")
            shown = (_prompt(row, f.prompt_field, chosen_prefix), chosen_text, rejected_text)
            prompt, chosen, rejected = self._encode_prompt(shown[0]), *map(self._encode_completion, shown[1:])
        if chosen == rejected:
            raise _Bad("no preference", "has the same chosen and rejected completion")
        self._check_lengths(prompt, chosen, rejected)
        scores = [_score(row, name) for name in (f.chosen_score_field, f.rejected_score_field)]
        difference = None if None in scores else scores[0] - scores[1]
        if self._needs_scores and difference is None:
            raise _Bad(
                "no scores",
                f"has no numbers under {f.chosen_score_field!r} and {f.rejected_score_field!r}, which this loss needs",
            )
        who, signs = self._annotator(row), _signs(row, f.objectives_field)
        return Preference(prompt, (chosen, rejected), True, difference, *shown, annotator=who, objectives=signs)

    def _labelled(self, row: Mapping[str, Any]) -> list[Preference]:
        f = self._fields
        if f.completion_field not in row and (f.chosen_field in row or "chosen_ids" in row):
            pair = self._pair(row)
            return [
                pair._replace(completion_ids=(pair.completion_ids[0], []), rejected=None),
                pair._replace(completion_ids=(pair.completion_ids[1], []), label=False, chosen=pair.rejected),
            ]
        prefix, text = _completion(row, f.completion_field)
        label = row.get(f.label_field)
        if not isinstance(label, bool):
            raise _Bad("no label", f"has {label!r} under {f.label_field!r}, where true or false is wanted")
        prompt = _prompt(row, f.prompt_field, prefix)
        ids, completion = self._encode_prompt(prompt), self._encode_completion(text)
        self._check_lengths(ids, completion)
        return [Preference(ids, (completion, []), label, None, prompt, text, annotator=self._annotator(row))]

    def _annotator(self, row: Mapping[str, Any]) -> str:
        value = row.get(self._fields.annotator_field)
        return "" if value is None else str(value)

    def _check_lengths(self, prompt: list[int], *completions: list[int]) -> None:
        limit = self._fields.max_prompt_tokens
        if not prompt:
            raise _Bad("empty prompt", "has an empty prompt")
        if len(prompt) > limit:
            raise _Bad(
                "long prompt", f"has a prompt of {len(prompt)} tokens, more than config.data.max_prompt_tokens={limit}"
            )
        limit, longest = self._fields.max_completion_tokens, max(map(len, completions))
        if longest > limit:
            raise _Bad(
                "long completion",
                f"has a completion of {longest} tokens, more than config.data.max_completion_tokens={limit}",
            )


def _open(spec: str, bad: str) -> Source:
    path = spec.partition("?")[0]
    if bad == "skip" and SUFFIXES.get(pathlib.Path(path).suffix.lower()) == "jsonl":
        spec += ("&" if "?" in spec else "?") + "on_broken=skip"
    return load_source(spec)


def _missing(row: Mapping[str, Any], field: str) -> _Bad:
    return _Bad("missing field", f"has nothing under {field!r}; its fields are {', '.join(map(str, row))}")


def _completion(row: Mapping[str, Any], field: str) -> tuple[list[Any], str]:
    """(messages before the completion, text of the completion)."""
    value = row.get(field)
    if value is None:
        raise _missing(row, field)
    prefix: list[Any] = []
    if isinstance(value, list):
        last = value[-1] if value else None
        if not isinstance(last, Mapping) or last.get("role") != "assistant":
            raise _Bad(
                "no answer", f"has a conversation under {field!r} that does not end with the assistant's message"
            )
        prefix, value = value[:-1], last.get("content")
    if not isinstance(value, str):
        raise _Bad("no text", f"has a {type(value).__name__} under {field!r}, where a text or messages are wanted")
    if not value.strip():
        raise _Bad("empty completion", f"has an empty completion under {field!r}")
    return prefix, value


def _prompt(row: Mapping[str, Any], field: str, prefix: list[Any]) -> Any:
    """What the completions follow: their own conversation where it has a beginning, else the field."""
    value = prefix or row.get(field)
    if value is None:
        raise _missing(row, field)
    if not isinstance(value, str | list) or not value:
        raise _Bad("empty prompt", f"has no text and no messages under {field!r}")
    return value


def _score(row: Mapping[str, Any], field: str) -> float | None:
    value = row.get(field)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _signs(row: Mapping[str, Any], field: str) -> dict[str, int] | None:
    value = row.get(field)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _Bad("no signs", f"has {value!r} under {field!r}, where an object like {{'helpful': 1}} is wanted")
    for name, found in value.items():
        if isinstance(found, bool) or found not in (1, 0, -1, None):
            raise _Bad(
                "no sign",
                f"has {found!r} under {field!r} for {name!r}, where 1 (chosen better), -1 (rejected) or 0 is wanted",
            )
    return {name: int(found) for name, found in value.items() if found is not None}


def _with_mismatched(rows: list[Preference], spec: str) -> list[Preference]:
    """Every row with the completion of the nearest earlier row of another prompt as its second one."""
    if len({tuple(row.prompt_ids) for row in rows}) < 2:
        raise UserError(f"data source {spec!r} has a single prompt; labelled completions need at least two")
    other: Preference | None = None  # the nearest earlier row of another prompt
    filled = []
    for previous, row in zip([*rows[-1:], *rows[:-1]], rows, strict=True):
        if other is None:
            other = next(candidate for candidate in reversed(rows) if candidate.prompt_ids != row.prompt_ids)
        elif previous.prompt_ids != row.prompt_ids:
            other = previous
        filled.append(row._replace(completion_ids=(row.completion_ids[0], other.completion_ids[0])))
    return filled
