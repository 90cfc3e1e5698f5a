"""The command line of symbolic losses: what it prints, what it draws, what it refuses."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from experiments import symbolic as command
from jaxalign.losses.symbolic.decompilation import ratio
from jaxalign.losses.symbolic.named import NAMED_LOSSES, get_loss


def output(capsys, *arguments):
    assert command.main(arguments) == 0
    return capsys.readouterr().out


def fields(text):
    return {line[:10].strip(): line[10:].strip() for line in text.split("\n\n")[0].splitlines()}


def test_all_names_with_ratio_and_formula(capsys):
    text = output(capsys)
    for name, loss in NAMED_LOSSES.items():
        assert sum(line.split()[:1] == [name] for line in text.splitlines()) == 2
        assert ratio(loss.preference) in text
        assert loss.formula in text


def test_a_named_loss(capsys):
    text = output(capsys, "--name=dpo")
    shown = fields(text)
    assert shown["formula"] == get_loss("dpo").formula
    assert shown["ratio"] == "chosen * reference_rejected / (rejected * reference_chosen)"
    assert shown["known as"] == "dpo, ipo, simpo"
    assert "(9 more are excluded)" in text
    numbers = [[float(x) for x in line.split()] for line in text.splitlines()[-3:]]
    for chosen, rejected, reference_chosen, reference_rejected, rho, loss, d_chosen, d_rejected in numbers:
        z = 0.1 * (chosen - reference_chosen - rejected + reference_rejected)
        assert rho == pytest.approx(z / 0.1, rel=1e-3)
        assert loss == pytest.approx(np.logaddexp(0, -z), rel=1e-3)
        assert d_chosen == pytest.approx(-0.1 / (1 + np.exp(z)), rel=1e-3)
        assert d_rejected == -d_chosen


def test_a_formula_and_its_ratio_are_two_ways_to_one_loss(capsys):
    by_formula = output(capsys, "--formula=rejected -> chosen given chosen ^ rejected")
    by_ratio = output(capsys, "--ratio=chosen * (1 - rejected) / (rejected * (1 - chosen))")
    assert by_formula == by_ratio
    assert fields(by_formula)["known as"] == "orpo"
    lines = by_formula.split("\n\n")[1].splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["excluded", "wins", "loses", "excluded"]


def test_a_reference_form(capsys):
    assert "known as  dpo" in output(capsys, "--name=cpo", "--reference")


def test_link_and_beta(capsys):
    shown = output(capsys, "--name=ipo")
    assert fields(shown)["link"] == "squared, beta 0.1"
    shown = output(capsys, "--name=ipo", "--link=hinge", "--beta=2")
    assert fields(shown)["link"] == "hinge, beta 2"
    assert float(shown.splitlines()[-3].split()[-3]) == 0.5  # 2 - 1.5


def test_a_formula_that_trains_nothing_is_noted_once(capsys):
    assert command.main(["--formula=chosen | ~chosen"]) == 0
    noted = capsys.readouterr().err
    assert noted == (
        "experiments.symbolic: note: nothing loses by 'chosen | ~chosen': the loss is 0 and trains nothing\n"
    )


def test_the_lattice(capsys, tmp_path):
    path = tmp_path / "lattice.svg"
    assert "16 losses, 32 cover edges" in output(capsys, f"--lattice={path}")
    root = ET.parse(path).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert len(list(root.iter(f"{space}line"))) == 32
    assert len(list(root.iter(f"{space}g"))) == 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--formula=rejected & & chosen"], "column 12: a variable, 'true', 'false', '~' or '(' should stand here"),
        (["--formula=chosen & ~chosen"], "nothing wins by 'chosen & ~chosen'"),
        (["--formula=" + " & ".join("abcdefghi")], "at most 8 are allowed"),
        (["--ratio=chosen * chosen / rejected"], "'chosen * chosen' is not multilinear"),
        (["--name=dop"], "did you mean dpop or dpo?"),
        (["--name=dpo", "--reference"], "depends on reference_chosen already"),
        (["--name=dpo", "--beta=-1"], "beta=-1.0 must be more than 0"),
        (["--lattice=lattice.png"], "name the file lattice.svg"),
        (["--lattice=no/such/folder/lattice.svg"], "cannot write no/such/folder/lattice.svg"),
    ],
)
def test_mistakes_are_named(capsys, arguments, words):
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("experiments.symbolic: error: ")
    assert words in captured.err


def test_the_place_of_a_mistake_is_marked(capsys):
    command.main(["--formula=rejected & & chosen"])
    _, line, mark = capsys.readouterr().err.rstrip("\n").split("\n")
    assert line[mark.index("^") :] == "& chosen"
