"""Preference rows in every form, and every way in which a row can be bad."""

import json
import re
import types

import pyarrow
import pyarrow.parquet
import pytest

from experiments.questions import encode_prompt
from jaxalign.data.preferences import Preferences, sign
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import UserError

FIELDS = {
    "prompt_field": "prompt",
    "chosen_field": "chosen",
    "rejected_field": "rejected",
    "completion_field": "completion",
    "label_field": "label",
    "chosen_score_field": "chosen_score",
    "rejected_score_field": "rejected_score",
    "annotator_field": "annotator",
    "objectives_field": "objectives",
    "max_prompt_tokens": 40,
    "max_completion_tokens": 12,
    "bad": "error",
    "chat": False,
    "system_prompt": "",
    "template_options": {},
}


class Byte:
    """The byte tokenizer with a chat template."""

    def __init__(self):
        self._bytes = Tokenizer.bytes()
        self.eos_ids = self._bytes.eos_ids

    def encode(self, text):
        return self._bytes.encode(text)

    def decode(self, ids):
        return self._bytes.decode(ids)

    def apply_chat(self, messages, *, add_generation_prompt, **options):
        assert add_generation_prompt
        return self.encode("".join(f"<{m['role']}>{m['content']}" for m in messages) + "<a>")


TOKENIZER = Byte()


def write(tmp_path, rows, name="pairs.jsonl"):
    file = tmp_path / name
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def read(spec, labelled=False, needs_scores=False, **changes):
    fields = types.SimpleNamespace(**FIELDS | changes)
    return Preferences(
        spec,
        lambda prompt: encode_prompt(TOKENIZER, prompt, fields),
        lambda text: TOKENIZER.encode(text) + list(TOKENIZER.eos_ids[:1]),
        fields,
        labelled=labelled,
        needs_scores=needs_scores,
    )


GOOD = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}


def texts(row):
    return TOKENIZER.decode(row.prompt_ids), *(TOKENIZER.decode(ids) for ids in row.completion_ids)


def test_plain_pairs_end_with_the_end_token(tmp_path):
    (row,) = read(write(tmp_path, [GOOD | {"chosen_score": 2, "rejected_score": 0.5}]))
    assert texts(row) == ("1+1=", "2", "3")
    assert [ids[-1] for ids in row.completion_ids] == [TOKENIZER.eos_ids[0]] * 2
    assert (row.score_difference, row.prompt, row.chosen, row.rejected) == (1.5, "1+1=", "2", "3")


def test_conversations(tmp_path):
    user, system = {"role": "user", "content": "hi"}, {"role": "system", "content": "s"}

    def answer(text):
        return {"role": "assistant", "content": text}

    rows = [
        {"prompt": [user], "chosen": [answer("a")], "rejected": [answer("b")]},
        {"chosen": [system, user, answer("a")], "rejected": [system, user, answer("b")]},
        {"prompt": "hi", "chosen": [user, answer("a")], "rejected": [user, answer("b")]},
        {"prompt": [user], "chosen": "a", "rejected": "b"},
    ]
    found = [texts(row) for row in read(write(tmp_path, rows))]
    expected = ("<user>hi<a>", "a", "b")
    assert found == [expected, ("<system>s<user>hi<a>", "a", "b"), expected, expected]
    assert texts(read(write(tmp_path, [GOOD]), chat=True, system_prompt="S")[0])[0] == "<system>S<user>1+1=<a>"


def test_ids_are_taken_as_they_are(tmp_path):
    row = {"prompt": "x", "prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8, 9]}
    (found,) = read(write(tmp_path, [row]))
    assert (found.prompt_ids, found.completion_ids) == ([5, 6], ([7], [8, 9]))


def test_objectives_judge_or_leave_it_to_the_length(tmp_path):
    rows = [
        GOOD | {"objectives": {"helpful": -1, "kind": 0, "safe": None}},
        GOOD | {"chosen": "two", "objectives": {"helpful": 1, "brief": 1}},
        GOOD | {"chosen": "two"},
    ]
    found = read(write(tmp_path, rows))
    assert found.objectives == ("brief", "helpful", "kind")
    wanted = {"helpful": [-1, 1, 0], "kind": [0, 0, 0], "brief": [0, 1, -1]}  # judged against its length, and unjudged
    assert {name: [sign(row, name) for row in found] for name in wanted} == wanted


def test_labels_come_with_the_completion_of_another_prompt(tmp_path):
    rows = [
        {"prompt": "a", "completion": "1", "label": True},
        {"prompt": "a", "completion": "2", "label": False},
        {"prompt": "b", "completion": "3", "label": False},
        {"prompt": "a", "completion": "4", "label": True},
    ]
    found = read(write(tmp_path, rows), labelled=True)
    assert [row.label for row in found] == [True, False, False, True]
    # The nearest earlier row with another prompt, around the end.
    assert [texts(row) for row in found] == [("a", "1", "3"), ("a", "2", "3"), ("b", "3", "2"), ("a", "4", "3")]
    with pytest.raises(UserError, match="a single prompt"):
        read(write(tmp_path, rows[:2]), labelled=True)


def test_a_pair_is_two_labelled_rows(tmp_path):
    found = read(write(tmp_path, [GOOD, GOOD | {"prompt": "2+2="}]), labelled=True)
    assert [(row.label, row.chosen) for row in found] == [(True, "2"), (False, "3"), (True, "2"), (False, "3")]
    assert all(TOKENIZER.decode(row.completion_ids[0]) == row.chosen for row in found)


BAD = {
    "missing field": ({"prompt": "a", "chosen": "b"}, "has nothing under 'rejected'; its fields are prompt, chosen"),
    "missing prompt": ({"chosen": "b", "rejected": "c"}, "has nothing under 'prompt'"),
    "empty completion": (GOOD | {"chosen": "  "}, "has an empty completion under 'chosen'"),
    "no preference": (GOOD | {"chosen": "3"}, "has the same chosen and rejected completion"),
    "long prompt": (GOOD | {"prompt": "a" * 41}, "a prompt of 41 tokens, more than config.data.max_prompt_tokens=40"),
    "long completion": (GOOD | {"rejected": "a" * 12}, "a completion of 13 tokens, more than"),
    "empty prompt": (GOOD | {"prompt": ""}, "has no text and no messages under 'prompt'"),
    "no text": (GOOD | {"chosen": 7}, "has a int under 'chosen'"),
    "no signs": (GOOD | {"objectives": ["helpful"]}, "has ['helpful'] under 'objectives', where an object"),
    "no sign": (
        GOOD | {"objectives": {"helpful": 1, "brief": "yes"}},
        "has 'yes' under 'objectives' for 'brief', where 1 (chosen better)",
    ),
    "no answer": (GOOD | {"chosen": [{"role": "user", "content": "a"}]}, "does not end with the assistant's message"),
    "different prompts": (
        {
            "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}],
            "rejected": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "y"}],
        },
        "that begin differently",
    ),
    "broken line": ('{"prompt": "a", "chosen"', "is not valid JSON"),
    "not an object": ("[1, 2]", "holds a JSON list"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pairs_are_named_with_file_and_line_or_counted(case, tmp_path):
    row, message = BAD[case]
    spec = write(tmp_path, [GOOD, row, GOOD])
    with pytest.raises(UserError, match=rf"pairs\.jsonl:2 {re.escape(message)}|pairs\.jsonl:2 .*{re.escape(message)}"):
        read(spec)
    found = read(spec, bad="skip")
    assert len(found) == 2
    assert found.left_out.total() == 1
    assert found.describe_left_out().startswith("1 left out (1 ")


@pytest.mark.parametrize("label", ["yes", None, 1, 0.0])
def test_labels_are_true_or_false(label, tmp_path):
    spec = write(tmp_path, [{"prompt": "a", "completion": "b", "label": label}])
    with pytest.raises(UserError, match=r"jsonl:1 has .* under 'label', where true or false is wanted"):
        read(spec, labelled=True)


def test_scores_where_the_loss_needs_them(tmp_path):
    assert read(write(tmp_path, [GOOD]))[0].score_difference is None
    with pytest.raises(UserError, match="has no numbers under 'chosen_score' and 'rejected_score'"):
        read(write(tmp_path, [GOOD]), needs_scores=True)


def test_nothing_left(tmp_path):
    spec = write(tmp_path, [GOOD | {"chosen": "3"}])
    with pytest.raises(UserError, match=r"has no good row of 1: 1 left out \(1 no preference\)"):
        read(spec, bad="skip")
    with pytest.raises(UserError, match=r"config\.data\.bad='ignore' is not known"):
        read(spec, bad="ignore")


def test_parquet_rows_are_named_too(tmp_path):
    table = pyarrow.Table.from_pylist([GOOD, GOOD | {"chosen": "3"}])
    path = str(tmp_path / "pairs.parquet")
    pyarrow.parquet.write_table(table, path)
    assert len(read(path, bad="skip")) == 1
    with pytest.raises(UserError, match=r"pairs\.parquet row 1 has the same"):
        read(path)


def test_several_files_with_broken_lines(tmp_path):
    write(tmp_path, [GOOD, "{"], "a.jsonl")
    write(tmp_path, ["nothing", GOOD], "b.jsonl")
    found = read(str(tmp_path / "*.jsonl"), bad="skip")
    assert (len(found), found.left_out["broken line"]) == (2, 2)
