import importlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from configs import defaults
from configs.claims import language_model
from experiments import compare, rl
from experiments.arms import Run
from jaxalign.errors import UserError
from jaxalign.training import configuration
from tests.experiments import runs


def expect(direction="higher", by=0.0):
    return defaults.expectation("m", "a", direction, "b", by)


def seeds(values, questions=None, spread=0.0):
    """A run for each value; with `questions`, scores of that mean."""
    random = np.random.default_rng(0)
    if questions is None:
        return [Run(value, None) for value in values]
    noise = spread * random.normal(size=questions)
    return [Run(value, (value + noise - noise.mean()).tolist()) for value in values]


def test_a_clear_difference_holds_and_its_opposite_does_not():
    runs_ = {"a": seeds([0.8, 0.82, 0.81]), "b": seeds([0.5, 0.53, 0.51])}
    found = compare.judge(expect(), runs_)
    assert found["verdict"] == "holds"
    assert found["difference"] == pytest.approx(0.2967, abs=1e-4)
    # Student's t with 2 degrees of freedom: mean +- 4.3027 s / sqrt(3).
    differences = np.array([0.3, 0.29, 0.3])
    half = 4.302653 * differences.std(ddof=1) / 3**0.5
    assert [found["low"], found["high"]] == pytest.approx([differences.mean() - half, differences.mean() + half])
    assert compare.judge(expect("lower"), runs_)["verdict"] == "does not hold"
    assert compare.judge(expect(by=0.4), runs_)["verdict"] == "does not hold"
    assert compare.judge(expect(by=0.29), runs_)["verdict"] == "not settled"


def test_what_seeds_disagree_about_is_not_settled():
    found = compare.judge(expect(), {"a": seeds([0.8, 0.4, 0.6]), "b": seeds([0.5, 0.6, 0.5])})
    assert found["verdict"] == "not settled"
    assert found["low"] < 0 < found["high"]


def test_one_seed_settles_nothing():
    found = compare.judge(expect(), {"a": seeds([0.9]), "b": seeds([0.1])})
    assert found["verdict"] == "not settled (one seed)"


def test_scores_by_question_are_paired():
    """Questions that differ much from one another, but equally in both arms: only the differences count."""
    arms = {"a": seeds([0.6, 0.6, 0.6], 50, spread=1.0), "b": seeds([0.5, 0.5, 0.5], 50, spread=1.0)}
    found = compare.judge(expect(), arms)
    assert "50 questions" in found["interval"]
    assert [found["low"], found["high"]] == pytest.approx([0.1, 0.1])
    assert found["verdict"] == "holds"
    assert compare.judge(expect(), {name: runs_[:2] for name, runs_ in arms.items()})["interval"].startswith("Student")


def test_an_expectation_may_be_about_unsolved_questions_alone():
    start = [Run(0.5, [1, 1, 0, 0])] * 3
    arms = {"a": [Run(0.5, [0, 0, 1, 1])] * 3, "b": [Run(0.75, [1, 1, 0, 1])] * 3, "start": start}
    expected = defaults.expectation("m", "a", "higher", "b", by=0.4, unsolved_by="start")
    found = compare.judge(expected, arms)
    assert found["by_seed"] == [0.5] * 3  # 1 and 1 against 0 and 1
    assert "over 2 questions" in found["interval"]
    assert found["expected"] == "a higher than b by more than 0.4, on what start does not solve"
    # Seeds with other such questions: no average by question.
    found = compare.judge(expected, arms | {"start": [*start[:2], Run(0.5, [1, 0, 0, 1])]})
    assert found["by_seed"] == [0.5, 0.5, 0.0]
    assert found["interval"].startswith("Student")
    with pytest.raises(UserError, match="solves every question"):
        compare.judge(expected, arms | {"start": [Run(1.0, [1, 1, 1, 1])] * 3})
    with pytest.raises(UserError, match="needs a metric with scores by question"):
        compare.judge(expected, arms | {"start": [Run(1.0, None)] * 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.expectations.lower.update(unsolved_by="x"), r"lower\.unsolved_by='x' names no arm"),
        (lambda c: c.arms.trained.update(start="half"), r"trained\.start='half' names no start; starts are none"),
        (lambda c: c.update(seeds=(1, 1)), r"config\.seeds=\(1, 1\)"),
        (lambda c: c.expectations.lower.update(arm="x"), r"lower\.arm='x' names no arm; arms are trained, untrained"),
        (lambda c: c.expectations.lower.update(direction="up"), "use 'higher' or 'lower'"),
        (lambda c: c.arms.trained.update(overrides=("no.such=1",)), "no.such"),
        (lambda c: c.arms.trained.update(config="configs/nothing.py"), "nothing.py"),
    ],
)
def test_a_claim_that_cannot_be_run_is_refused_before_anything_runs(change, message, tmp_path):
    from configs.claims import sft_learns

    claim = sft_learns.get_config()
    change(claim)
    with pytest.raises(UserError, match=message):
        compare.compare(claim, tmp_path / "work", "")
    assert not (tmp_path / "work").exists()


def test_two_configs_are_run_compared_and_not_run_again(tmp_path, capsys):
    overrides = runs.SMALL["sft"][1]
    copies = []
    for name, rate in (("fast", 3e-3), ("still", 0.0)):
        copies.append(tmp_path / f"{name}.py")
        lines = ["from configs import sft_arithmetic", "from jaxalign.training.configuration import apply_overrides"]
        lines += ["def get_config():", "    config = sft_arithmetic.get_config('tiny')"]
        lines += [f"    config.optimizer.learning_rate = {rate}", f"    apply_overrides(config, {list(overrides)!r})"]
        copies[-1].write_text("\n".join([*lines, "    return config", ""]))
    command = [f"--a={copies[0]}", f"--b={copies[1]}", "--metric=loss", "--seeds=0,1", "--config.last_steps=1"]
    command += [f"--workdir={tmp_path / 'work'}", f"--record={tmp_path / 'record.json'}"]
    assert compare.main(command) == 0
    out = capsys.readouterr().out
    assert out.count("python -m experiments.run") == 4
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["results"][0]["difference"] < -0.05
    assert record["values"]["loss"]["a"] == [
        runs.rows(tmp_path / "work" / "a" / f"seed{seed}")[-1]["loss"] for seed in (0, 1)
    ]
    assert {"jax", "Python"} <= set(record["environment"])
    assert "<svg" in (tmp_path / "work" / "comparison.html").read_text()
    assert compare.main(command) == 0
    assert capsys.readouterr().out.count("finished before") == 4
    assert compare.main([argument.replace("seeds=0,1", "seeds=0") for argument in command]) == 0
    record = json.loads((tmp_path / "record.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert record["results"][0]["low"] is None

    metric = "held-out solve rate, greedy, 4 new tokens"
    assert compare.main([*command[:2], f"--metric={metric}", *command[3:]]) == 0
    assert compare.main([*command[:2], "--metric=los", *command[3:]]) == 2
    assert "has no metric 'los'; it has 'held-out solve rate" in capsys.readouterr().err
    copies[1].write_text(copies[1].read_text().replace("learning_rate = 0.0", "learning_rate = 1e-4"))
    assert compare.main(command) == 2
    assert "holds a finished run of another config (optimizer.learning_rate: 0.0 there, 0.0001 now)" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["language_model", "no_signal", "graded_groups"])
def test_claims_on_a_language_model_compare_equal_completions_and_updates(name):
    claim = importlib.import_module(f"configs.claims.{name}").get_config()
    compare.check(claim)
    for arm in claim.arms.values():
        config = configuration.load_config(arm.config)
        configuration.apply_overrides(config, [f"--config.{text}" for text in arm.overrides])
        rl.check(config)
        supervised, trained = config.warm_start.steps, config.train.steps
        if config.optimizer.learning_rate == 0:  # the start alone, or supervised steps alone
            assert (supervised, trained) in [(0, 1), (language_model.STEPS, 1)]
            continue
        assert supervised + trained == language_model.STEPS
        assert config.rollout.prompts_per_step * config.rollout.group_size == language_model.COMPLETIONS
        assert config.rl.epochs * config.rl.batches_per_epoch * config.rollout.max_draws == 1


def test_arms_begin_with_one_start_that_is_made_once(tmp_path, monkeypatch):
    """Children are made up: what a start's run trains is exported once, and every arm and seed gets that folder."""
    commands = []

    def child(command, **_):
        module, options = command[2], dict(option.split("=", 1) for option in command[3:])
        commands.append((module, options))
        if module == "experiments.export":
            Path(options["--to"]).mkdir()
        else:
            evaluations = [{"name": "m", "after": {"value": 0.5}}]
            summary = {"status": "finished", "config": {}, "evaluations": evaluations}
            (Path(options["--workdir"]) / "summary.json").write_text(json.dumps(summary))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", child)
    claim = defaults.claim("small", "Equal.", seeds=(1, 2))
    claim.starts.half = defaults.arm("configs/sft_arithmetic.py:tiny", "seed=7")
    claim.arms.a = defaults.arm("configs/grpo_qwen.py:tiny", start="half")
    claim.arms.b = defaults.arm("configs/grpo_qwen.py:tiny")
    claim.expectations.same = expect()
    record = compare.compare(claim, tmp_path, "")
    assert record["starts"]["half"]["overrides"] == ["seed=7"]
    place = tmp_path / "starts" / "half"
    assert [module for module, _ in commands] == ["experiments.run", "experiments.export", *["experiments.run"] * 4]
    assert commands[1][1] == {"--checkpoint": str(place), "--to": str(place / "model")}
    begun = [options.get("--config.model.path") for _, options in commands[2:]]
    assert begun == [str(place / "model"), None] * 2
    assert commands[0][1]["--config.seed"] == "7"  # what a start overrides stands last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=FILE of a claim, or --a=SPEC"),
        (["--config=configs/grpo_qwen.py:tiny"], "is no claim"),
        (["--config=configs/claims/sft_learns.py", "--seeds=x"], "--seeds=x must be numbers"),
    ],
)
def test_what_is_missing_is_said(arguments, message, capsys):
    assert compare.main(arguments) == 2
    assert message in capsys.readouterr().err


STUDY = """
SETTINGS = ("good", "bad")
calls = []
def run(setting, seed):
    calls.append((setting, seed))
    return {"score": seed + (0.5 if setting == "good" else 0.0)}
"""


def study_claim(study, *settings):
    claim = defaults.claim("small", "Good is better.", seeds=(0, 1, 2))
    for setting in settings:
        claim.arms[setting] = defaults.study(study, setting)
    claim.expectations.better = defaults.expectation("score", settings[0], "higher", settings[-1], by=0.4)
    return claim


def test_a_study_is_compared_and_not_run_again(tmp_path, monkeypatch):
    (tmp_path / "some_study.py").write_text(STUDY)
    monkeypatch.syspath_prepend(tmp_path)
    claim = study_claim("some_study", "good", "bad")
    for _ in range(2):
        record = compare.compare(claim, tmp_path / "work", "")
        assert record["values"]["score"] == {"good": [0.5, 1.5, 2.5], "bad": [0.0, 1.0, 2.0]}
        assert record["arms"]["good"] == {"study": "some_study", "setting": "good"}
        assert [result["verdict"] for result in record["results"]] == ["holds"]
    import some_study

    assert len(some_study.calls) == 6

    claim.expectations.better.metric = "scores"
    with pytest.raises(UserError, match="some_study gives no metric 'scores'; it gives 'score'"):
        compare.compare(claim, tmp_path / "work", "")


@pytest.mark.parametrize(
    ("study", "message"),
    [("experiments.studies.nothing", "there is no study"), ("some_study", "has no setting 'odd'; it has good, bad")],
)
def test_an_unknown_study_or_setting(study, message, tmp_path, monkeypatch):
    (tmp_path / "some_study.py").write_text(STUDY)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=message):
        compare.compare(study_claim(study, "odd", "good"), tmp_path / "work", "")
