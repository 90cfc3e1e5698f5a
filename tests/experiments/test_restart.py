"""An interrupted run equals a straight one, bit for bit, for every experiment of the table in `runs.py`."""

import json
import signal
import subprocess

import pytest

from tests.experiments import runs

TIMES = ("seconds", "tokens_per_second")  # the only metrics that may differ


def leaves(workdir, step):
    """Shape, dtype and checksum of every array of a checkpoint, by name: what the checkpoint itself tells."""
    about = json.loads((workdir / "checkpoints" / str(step) / "about" / "metadata").read_text())
    return about["leaves"]


def without_times(rows):
    return [{name: value for name, value in row.items() if not name.endswith(TIMES)} for row in rows]


# An adapter is restored by the same code in every experiment; all three were seen to be exact, one is enough here.
# Those of a group share a process, and with it the programs that they have in common.
@pytest.mark.parametrize("names", [("rl", "ppo", "spo", "gdro"), ("sft", "preference", "bco", "preference, lora")])
def test_an_interrupted_run_equals_a_straight_one(names, tmp_path):
    turns = []
    for name in names:
        spec, overrides = runs.SMALL[name]
        straight, stopped = tmp_path / name / "straight", tmp_path / name / "stopped"
        if name == "sft":  # stopped by its own number of steps; the others cut off after steps that nothing kept
            turns += [(spec, straight, *overrides), (spec, stopped, *overrides, "--config.train.steps=2")]
        else:
            overrides = (*overrides, "--config.train.save_every=2", "--config.train.keep=2")
            turns += [(spec, straight, *overrides), runs.Cut(straight, stopped, 2)]
        turns.append((spec, stopped, *overrides))
    ended = iter(runs.run_in_turn(*turns))
    for turn in turns:
        if not isinstance(turn, runs.Cut):
            run = next(ended)
            assert run.code == 0, run.err
            if turn in turns[2::3]:
                assert "resumed after step 2" in run.out, turn

    for name in names:
        straight, stopped = tmp_path / name / "straight", tmp_path / name / "stopped"
        expected, actual = leaves(straight, 4), leaves(stopped, 4)
        assert len(expected) > 30
        assert all(leaf["checksum"] is not None for leaf in expected.values())
        assert actual == expected, name
        assert expected != leaves(stopped, 2)
        logged = [without_times(runs.rows(folder)) for folder in (straight, stopped)]
        assert logged[0] == logged[1], name
        assert [row["step"] for row in logged[0]] == [1, 2, 3, 4]
        assert runs.summary(straight)["evaluations"] == runs.summary(stopped)["evaluations"], name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(number, tmp_path):
    spec, overrides = runs.SMALL["sft"]
    process = subprocess.Popen(
        runs.command(spec, tmp_path, *overrides, "--config.train.steps=100000"),
        cwd=runs.ROOT,
        env=runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "3/100000" in line:
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"{number.name}: finishing this step, then saving" in err
    steps = len(runs.rows(tmp_path))
    assert f"stopped after step {steps}" in out
    assert "resume: python -m experiments.run --config=configs/sft_arithmetic.py:tiny" in out
    assert (tmp_path / "checkpoints" / str(steps)).is_dir()
    assert (tmp_path / "report.html").is_file()
