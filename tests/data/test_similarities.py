import importlib.util

import pytest

from jaxalign.data.similarities import Similarities
from jaxalign.data.sources import load_source
from jaxalign.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "simlex999.txt").write_text("# Word 1\tWord 2\told\nold\tnew\t1.58\nsmart\tclever\t9.2\n")
    (tmp_path / "lee.cor").write_text("one text\nanother\nthe third\n")
    (tmp_path / "similarities0-1.txt").write_text("1\t0.3\t0.25\n0.3\t1\t0.5\n0.25\t0.5\t1\n")
    return tmp_path


def rows(name, folder):
    source = Similarities(name, folder=str(folder))
    return [(row["first"], row["second"], row["score"]) for row in map(source.__getitem__, range(len(source)))]


def test_words(folder):
    assert rows("simlex999", folder) == [("old", "new", 1.58), ("smart", "clever", 9.2)]


def test_every_pair_of_texts_once(folder):
    assert rows("lee50", folder) == [
        ("one text", "another", 0.3),
        ("one text", "the third", 0.25),
        ("another", "the third", 0.5),
    ]


def test_mistakes_are_named(folder, monkeypatch):
    with pytest.raises(UserError, match="name 'sts' is not known; choose one of lee50, simlex999, wordsim353"):
        Similarities("sts")
    with pytest.raises(UserError, match=r"cannot read .*wordsim353\.tsv: No such file"):
        rows("wordsim353", folder)
    (folder / "wordsim353.tsv").write_text("love\tsex\t6.77\ntiger\tcat\n")
    with pytest.raises(UserError, match=r"wordsim353\.tsv:2: 'tiger\\tcat' is not two words and a number"):
        rows("wordsim353", folder)
    (folder / "similarities0-1.txt").write_text("1\t0.3\n0.3\t1\n")
    with pytest.raises(UserError, match="no square table of the 3 texts"):
        rows("lee50", folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gensim, which is not installed: pip install --no-deps 'gensim==4.4.0'"):
        load_source("similarities:lee50")


def test_the_installed_package():
    if importlib.util.find_spec("gensim") is None:
        pytest.skip("gensim is not installed")
    sizes = {"lee50": 1225, "simlex999": 999, "wordsim353": 353}
    assert {name: len(load_source(f"similarities:{name}")) for name in sizes} == sizes
