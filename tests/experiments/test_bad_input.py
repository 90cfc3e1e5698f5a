"""What a user gets wrong is answered by one sentence and exit code 2, before anything is trained or lost."""

import re
import shutil
import subprocess

import pytest

from experiments import run as command
from tests.experiments import runs

TINY = "configs/grpo_qwen.py:tiny"


def fails(capsys, workdir, *arguments, spec=TINY):
    """The one line on stderr of a command that must end with code 2."""
    code = command.main(["experiments.run", f"--config={spec}", f"--workdir={workdir}", *arguments])
    captured = capsys.readouterr()
    assert code == 2, captured
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("experiments.run: error: ")
    return lines[0]


CASES = {
    "unknown key": (["--config.rollout.groupsize=4"], r"unknown config key 'rollout.groupsize'.*rollout.group_size"),
    "wrong type": (["--config.train.steps=many"], r"--config.train.steps=many has the wrong type: int is wanted"),
    "a group of keys": (["--config.train=3"], r"'train' is a group of keys"),
    "an option of a loss": (["--config.rl.loss.ratio=word"], r"unknown level of the importance ratio 'word'"),
    "micro-batches": (
        ["--config.rollout.prompts_per_step=6", "--config.train.micro_batches=4"],
        r"prompts_per_step=6 does not divide",
    ),
    "greedy rollouts": (["--config.rollout.temperature=0"], r"rollout.temperature must be > 0"),
    "an option of an advantage": (["--config.rl.advantages.scale=word"], r"scale.*'word'"),
    "an aggregation": (["--config.rl.loss.aggregation=mean"], r"unknown aggregation 'mean'"),
    "leaving out a whole group": (["--config.rl.leave_out=8"], r"leave_out=8 must be less than"),
    "a tracked baseline of groups": (["--config.prompts.baseline=True"], r"set config.rollout.group_size=1"),
    "draws of chosen prompts": (
        ["--config.prompts.sampling.enabled=True", "--config.rollout.max_draws=2"],
        r"max_draws must be 1 where config.prompts chooses",
    ),
    "a mean outside of the arms": (
        ["--config.prompts.allocation.enabled=True", "--config.prompts.allocation.most=6"],
        r"least <= config.rollout.group_size <= most",
    ),
    "answers without a use": (["--config.data.answer_fields=('answer',)"], r"objective='policy_loss'.*no other does"),
    "weights": (["--config.reward.weights=(1.0, 2.0)"], r"1 entries and config.reward.weights 2"),
    "unknown reward": (["--config.reward.names=('last_word',)"], r"last_word.*last_integer"),
    "a reward of the user's": (["--config.reward.names=('nowhere:score',)"], r"nowhere"),
    "missing source": (["--config.data.source=there.jsonl"], r"cannot read there.jsonl: No such file"),
    "unknown size": (["--config.model.path=random:huge"], r"random:huge.*tiny_qwen3"),
    "unknown number": (["--config.model.path=random:tiny_qwen3?layers=1"], r"model\.path.*'layers=1'.*num_layers"),
    "missing model": (["--config.model.path=/nowhere/model"], r"there is no model '/nowhere/model'"),
    "long prompts": (["--config.data.max_prompt_tokens=3"], r"more than config.data.max_prompt_tokens=3"),
    "prompt field": (["--config.data.prompt_field=question"], r"no text under 'question'.*prompt, answer"),
    "mesh": (["--config.mesh.fsdp=5"], r"mesh.fsdp=5, mesh.tensor=1 does not fit 8 device"),
}


@pytest.mark.parametrize("case", CASES)
def test_settings(case, tmp_path, capsys):
    arguments, message = CASES[case]
    found = fails(capsys, tmp_path, *arguments)
    assert re.search(message, found), found


def test_words_after_the_colon(tmp_path, capsys):
    assert "runlocal" in fails(capsys, tmp_path, spec="configs/grpo_qwen.py:tinny")
    assert "exclude each other" in fails(capsys, tmp_path, spec="configs/grpo_qwen.py:rloo,gspo")
    assert "near it: grpo_qwen.py" in fails(capsys, tmp_path, spec="configs/grpo_qven.py")


def test_a_broken_line_is_named(tmp_path, capsys):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2=", "answer"\n')
    found = fails(capsys, tmp_path / "run", f"--config.data.source={file}")
    assert "questions.jsonl" in found
    assert "line 2" in found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(spec, overrides, folder) of a run of one step."""
    spec, overrides = runs.SMALL["sft"]
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert runs.run(spec, folder, *overrides, "--config.train.steps=1").code == 0
    return spec, overrides, folder


def test_a_folder_of_another_config(finished, capsys):
    spec, overrides, folder = finished
    before = sorted(path for path in folder.rglob("*") if path.is_file())
    found = fails(capsys, folder, *overrides, "--config.optimizer.learning_rate=1.0", spec=spec)
    assert "optimizer.learning_rate: 0.001 there, 1.0 now" in found
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == before
    assert runs.rows(folder)


REWARDS = '''
import time

def score(prompt, completion, example):
    """Hangs, raises or is not scorable by the question."""
    first = int(prompt.partition("+")[0])
    if first == 1:
        time.sleep(60)
    if first == 2:
        raise RuntimeError("no idea")
    if first == 3:
        return float("nan")
    return float(len(completion))
'''


def test_a_reward_that_hangs_raises_or_returns_nan_costs_its_sample(tmp_path):
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    ended = runs.run(
        TINY,
        tmp_path / "run",
        "--config.train.steps=1",
        "--config.rollout.prompts_per_step=32",
        "--config.rollout.group_size=2",
        "--config.warm_start.steps=1",
        "--config.data.held_out=",
        "--config.reward.names=('my_rewards:score',)",
        "--config.reward.time_limit=0.2",
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert ended.code == 0, ended.err
    row = runs.rows(tmp_path / "run")[0]
    assert 0 < row["reward/score/not_scored"] < 64
    assert row["reward/mean"] > 0
    assert row["skipped"] == 0
    assert "step 1: reward 'score'" in ended.err


def test_no_space_for_the_checkpoint_is_reported(finished, tmp_path):
    spec, overrides, folder = finished
    folder = shutil.copytree(folder, tmp_path / "run")
    limited = ["bash", "-c", 'ulimit -f 50; exec "$@"', "bash"]  # files of at most 50 kB
    done = subprocess.run(
        [*limited, *runs.command(spec, folder, *overrides)],
        cwd=runs.ROOT,
        env=runs.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "could not be written" in done.stderr
    assert "checkpoints still there: 1" in done.stderr
    assert (folder / "checkpoints" / "1").is_dir()
