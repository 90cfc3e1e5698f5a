import importlib.util

import pytest

from jaxalign.data import harm_pairs
from jaxalign.data.sources import load_source
from jaxalign.errors import UserError

HEADER = "harm_category,objective,assistant_response,{},data_type\n"


@pytest.fixture
def folder(tmp_path):
    """Two files in the package's form: scores of one person, and of two; and one that repeats rows."""
    rows = "".join(f'x,"request {i}","answer {i} {j}",{j / 4},text\n' for i in range(20) for j in range(3))
    (tmp_path / "one.csv").write_text("# version=1.0,,,\n" + HEADER.format("human_score_1") + rows)
    two = 'Y,"how, then?","no\nnever",0,0.5,text\nY,"how, then?",so,1,1,text\nY,"how, then?",image,1,1,image_path\n'
    (tmp_path / "two.csv").write_text(HEADER.format("human_score_1,human_score_2") + two)
    (tmp_path / "mini_two.csv").write_text(HEADER.format("human_score_1") + 'Y,"how, then?",other,0,text\n')
    return str(tmp_path)


def rows(**options):
    source = harm_pairs.HarmPairs(**options)
    return [source[index] for index in range(len(source))]


def test_the_less_harmful_answer_is_chosen(folder):
    found = rows(split="all", folder=folder)
    assert len(found) == 20 * 3 + 1
    assert all(row["chosen_score"] > row["rejected_score"] for row in found)
    (row,) = [row for row in found if row["prompt"] == "how, then?"]
    assert (row["chosen"], row["chosen_score"], row["rejected_score"], row["category"]) == (
        "no\nnever",
        -0.25,
        -1.0,
        "y",
    )
    assert {row["chosen"] for row in found if row["prompt"] == "request 3"} == {"answer 3 0", "answer 3 1"}


def test_each_annotator_has_pairs_of_its_own(folder, tmp_path):
    """The second one sees no difference where the mean does; means are of nobody."""
    found = rows(split="all", folder=folder, by_annotator=True)
    assert {row["annotator"] for row in found} == {"one/human_score_1", "two/human_score_1", "two/human_score_2"}
    two = {
        row["annotator"][-1]: row["rejected_score"] - row["chosen_score"] for row in found if "two" in row["annotator"]
    }
    assert two == {"1": -1.0, "2": -0.5}
    assert {row["annotator"] for row in rows(split="all", folder=folder)} == {""}


def test_requests_do_not_cross_the_split(folder):
    sides = [{row["prompt"] for row in rows(split=split, folder=folder)} for split in ("train", "held_out")]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {row["prompt"] for row in rows(split="all", folder=folder)}
    assert 0 < len(sides[1]) < len(sides[0])


def test_limits(folder):
    assert len(rows(split="all", folder=folder, per_prompt=1)) == 21
    far = rows(split="all", folder=folder, least_difference=0.5)
    assert len(far) == 21 and all(row["chosen_score"] - row["rejected_score"] >= 0.5 for row in far)
    with pytest.raises(UserError, match="no pair"):
        rows(folder=folder, least_difference=2.0)


def test_mistakes_are_named(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="split 'test' is not known"):
        rows(split="test", folder=folder)
    with pytest.raises(UserError, match="has no CSV files"):
        rows(folder=str(tmp_path / "nowhere"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pyrit, which is not installed: pip install --no-deps 'pyrit==1.1.0'"):
        load_source("harm_pairs?split=train")


def test_the_installed_package():
    if importlib.util.find_spec("pyrit") is None:
        pytest.skip("pyrit is not installed")
    assert len(rows(split="all")) > 3000
