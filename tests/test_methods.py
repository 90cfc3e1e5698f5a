import importlib
import inspect
import re
from pathlib import Path

import pytest

from experiments import methods as command
from jaxalign.errors import UserError
from jaxalign.methods import METHODS, get_method, markdown_table
from jaxalign.rewards.advantages import ADVANTAGES
from jaxalign.rewards.gae import gae

ROOT = Path(__file__).resolve().parents[1]
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def load(piece):
    module, _, name = piece.partition(":")
    return getattr(importlib.import_module(module), name)


def keywords(function):
    return {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


@every_method
def test_pieces_exist_and_take_the_settings(method):
    assert METHODS[method.name] is method
    pieces = [load(piece) for piece in method.pieces]
    assert set(method.loss) <= keywords(pieces[0])
    if method.experiment == "rl":
        options = dict(method.advantages)
        function = {**ADVANTAGES, "gae": gae}[options.pop("kind")]
        assert function in pieces
        assert set(options) <= keywords(function)
    else:
        assert not method.advantages
        assert not method.kl_in_reward


@every_method
def test_the_row_says_what_must_be_seen(method):
    assert re.fullmatch(r"|\d{4}\.\d{5}", method.paper)
    for text in (method.claim, method.status):
        assert text.endswith(".")


@every_method
def test_the_config_exists_and_has_the_settings_of_the_row(method):
    path, _, argument = method.config.partition(":")
    assert (ROOT / path).is_file()
    assert (ROOT / "experiments" / f"{method.experiment}.py").is_file()
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    if path.startswith("configs/claims/"):
        assert method.launch == f"python -m experiments.compare --config={method.config}"
        study = f"experiments.{method.experiment.replace('/', '.')}"
        assert {arm.study for arm in module.get_config().arms.values()} == {study}
        return
    assert method.launch == f"python -m experiments.run --config={method.config}"
    config = module.get_config(argument or None)
    assert config.experiment == method.experiment


def test_settings_are_those_of_the_papers():
    """advantages; ratio; clip low and high; KL in the loss, in the reward; aggregation."""
    expected = {
        "reinforce": ("batch_mean", None, "on-policy", None, None, 0, 0, "seq-mean-token-sum"),
        "rloo": ("leave_one_out", None, "sequence-sum", 0.2, 0.2, 0, 0.05, "seq-mean-token-mean"),
        "grpo": ("group", "group", "token", 0.2, 0.2, 0.04, 0, "seq-mean-token-mean"),
        "dr_grpo": ("group", "none", "token", 0.2, 0.2, 0, 0, "seq-mean-token-scale"),
        "gspo": ("group", "group", "sequence", 3e-4, 4e-4, 0, 0, "seq-mean-token-mean"),
    }
    for name, row in expected.items():
        method = METHODS[name]
        actual = (
            method.advantages["kind"],
            method.advantages.get("scale"),
            method.loss["ratio"],
            method.loss.get("clip_low"),
            method.loss.get("clip_high"),
            method.loss.get("kl_coefficient", 0),
            method.kl_in_reward,
            method.loss["aggregation"],
        )
        assert actual == row, name
    assert METHODS["grpo"].loss["kl"] == "k3"
    assert METHODS["sft"].loss == {"aggregation": "token-mean"}


def test_an_unknown_method_gets_the_nearest_names():
    assert get_method("grpo") is METHODS["grpo"]
    with pytest.raises(UserError, match=r"'grppo' is not known; did you mean grpo"):
        get_method("grppo")
    with pytest.raises(UserError, match=r"did you mean dr_grpo"):
        get_method("Dr-GRPO")
    with pytest.raises(UserError, match=r"'xyz' is not known; known are sft, reinforce"):
        get_method("xyz")


def test_the_command_lists_all_methods(capsys):
    assert command.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["method", *METHODS]
    column = lines[0].index("config")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)


def test_the_command_shows_one_method(capsys):
    assert command.main(["dr_grpo"]) == 0
    shown = capsys.readouterr().out
    method = METHODS["dr_grpo"]
    for text in (*method.pieces, method.launch, method.claim, method.status, method.paper, "scale none"):
        assert text in shown


def test_the_command_names_mistakes(capsys):
    assert command.main(["gropo"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("experiments.methods: error: method 'gropo' is not known")


def test_the_markdown_table_is_one():
    lines = markdown_table().splitlines()
    assert len(lines) == 2 + len(METHODS)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {7}


def test_the_documentation_is_up_to_date(capsys):
    assert command.main(["--markdown"]) == 0
    page = capsys.readouterr().out
    assert markdown_table() in page
    assert (ROOT / "docs" / "methods.md").read_text() == page, (
        "python -m experiments.methods --markdown > docs/methods.md"
    )
