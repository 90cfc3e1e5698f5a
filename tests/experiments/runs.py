"""Runs `python -m experiments.run` as a user does: in a process of its own, with one device."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


def environment(devices: int = 1) -> dict[str, str]:
    """What a child process sees: `devices` simulated ones, and programs compiled as tests/conftest.py has them."""
    flags = os.environ.get("XLA_FLAGS", "")
    return {**os.environ, "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}"}


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def command(spec: str, workdir: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "experiments.run", f"--config={spec}", f"--workdir={workdir}", *overrides]


def run(spec: str, workdir: Path, *overrides: str, devices: int = 1, timeout: float = 300, env=None) -> Ended:
    done = subprocess.run(
        command(spec, workdir, *overrides),
        cwd=ROOT,
        env={**environment(devices), **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Cut(NamedTuple):
    """A copy of what a run left behind, as it would be had the run been killed after the checkpoint of `step`."""

    workdir: Path
    copy: Path
    step: int

    def make(self) -> None:
        shutil.copytree(self.workdir, self.copy)
        for folder in (Path(self.copy) / "checkpoints").glob("[0-9]*"):
            if int(folder.name) > self.step:
                shutil.rmtree(folder)


IN_TURN = """
import contextlib, io, json, sys
from experiments.run import main
from tests.experiments.runs import Cut
for argv, cut in json.loads(sys.argv[1]):
    if cut:
        Cut(*cut).make()
        continue
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["experiments.run", *argv])
    print("ended:", json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


def in_turn(given: Sequence[Sequence | Cut], *more: str) -> list[str]:
    """The command of a process that does one after the other: runs, of arguments as `command` takes them, and `Cut`s.

    What two of the runs have in common is compiled once.
    """
    turns = [
        (None, (str(entry.workdir), str(entry.copy), entry.step))
        if isinstance(entry, Cut)
        else ((*command(*entry)[3:], *more), None)
        for entry in given
    ]
    return [sys.executable, "-c", IN_TURN, json.dumps(turns)]


def ends(out: str) -> list[Ended]:
    """Reads what `IN_TURN` printed; libraries print too."""
    return [Ended(*json.loads(line.removeprefix("ended: "))) for line in out.splitlines() if line.startswith("ended: ")]


def run_in_turn(*given: Sequence | Cut, timeout: float = 600) -> list[Ended]:
    """What `in_turn` takes, with one device: how each run ended."""
    done = subprocess.run(
        in_turn(given), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return ends(done.stdout)


def run_together(
    *processes: Sequence[Sequence], devices: int, folders: Sequence[Path] = (), timeout: float = 600
) -> list[list[Ended]]:
    """Runs that several processes do together, `devices` in each: how those of each process ended.

    processes: for each what `in_turn` takes.
    folders: the working directory of each, if not the repository.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    together = {"coordinator_address": address, "num_processes": len(processes)}
    started = [
        subprocess.Popen(
            in_turn(
                given, *(f"--config.distributed.{key}={value}" for key, value in {**together, "process_id": i}.items())
            ),
            cwd=folders[i] if folders else ROOT,
            env={**environment(devices), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, given in enumerate(processes)
    ]
    try:
        texts = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), [err for _, err in texts]
    return [ends(out) for out, _ in texts]


def rows(workdir: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def summary(workdir: Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def leaves(workdir: Path, step: int) -> dict:
    """Shape, dtype and checksum of every array of a checkpoint, by name: what the checkpoint itself tells."""
    about = json.loads((workdir / "checkpoints" / str(step) / "about" / "metadata").read_text())
    return about["leaves"]


def check_resuming(run_here, config, tmp_path: Path, *, stop: int) -> Path:
    """A run of an experiment in this process that is cut off and goes on equals a straight one; returns its folder.

    For experiments whose processes would cost more time to start than what they do. The newest checkpoint of the run
    that goes on is that of step `stop`.
    """
    steps, straight, stopped = config.train.steps, tmp_path / "straight", tmp_path / "stopped"
    if config.train.save_every != 1:
        config.train.save_every = stop
    config.train.keep = steps
    run_here(config, straight)
    Cut(straight, stopped, stop).make()
    run_here(config, stopped)
    found = [leaves(folder, steps) for folder in (straight, stopped)]
    assert all(leaf["checksum"] is not None for leaf in found[0].values())
    assert found[0] == found[1] != leaves(stopped, stop)
    summaries = [summary(folder)["evaluations"] for folder in (straight, stopped)]
    assert summaries[0] == summaries[1]
    logged = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (straight, stopped)]
    assert logged[0][:stop] == logged[1][:stop]  # with their times: these steps were not taken again
    return stopped


def printable(prompt: str, completion: str, example) -> float:
    """A reward that sampling by chance earns in part: how much of the completion is printable ASCII."""
    return sum(32 <= ord(letter) < 127 for letter in completion) / max(len(completion), 1)


def start(steps: int) -> tuple[str, ...]:
    """A short supervised start, of few tokens."""
    given = f"steps={steps}", "rows_per_step=4", "row_length=64", "learning_rate=3e-3"
    return tuple(f"--config.warm_start.{text}" for text in given)


# Programs of one layer are compiled in half the time, and what the tests here ask does not depend on depth.
ONE_LAYER = "--config.model.path=random:tiny_qwen3?num_layers=1"

# The smallest run of every experiment: what the tests here are repeated for. An experiment that lands adds its own.
SMALL: dict[str, tuple[str, tuple[str, ...]]] = {
    "rl": (
        "configs/grpo_qwen.py:tiny",
        (
            ONE_LAYER,
            "--config.train.steps=4",
            "--config.rollout.prompts_per_step=4",
            "--config.rollout.group_size=4",
            *start(8),
            "--config.optimizer.schedule=constant",  # a falling one depends on train.steps, which the tests change
            "--config.rl.epochs=2",
            "--config.rl.batches_per_epoch=2",
            "--config.evaluation.max_questions=4",
        ),
    ),
    "spo": (
        "configs/spo.py:tiny",
        (
            ONE_LAYER,
            "--config.train.steps=4",
            "--config.rollout.prompts_per_step=16",
            *start(30),
            "--config.prompts.trials=1",
            "--config.prompts.window=3",
            "--config.data.held_out=",
        ),
    ),
    "gdro": (  # both controllers at once
        "configs/gdro.py:tiny",
        (
            ONE_LAYER,
            "--config.train.steps=4",
            "--config.rollout.prompts_per_step=8",
            *start(30),
            "--config.prompts.allocation.enabled=True",
            "--config.data.held_out=",
        ),
    ),
    "ppo": (
        "configs/ppo.py:tiny",
        (
            ONE_LAYER,
            "--config.train.steps=4",
            "--config.rollout.prompts_per_step=4",
            "--config.rollout.group_size=4",
            *start(8),
            "--config.data.held_out=",
        ),
    ),
    "sft": (
        "configs/sft_arithmetic.py:tiny",
        (
            ONE_LAYER,
            "--config.train.steps=4",
            "--config.packing.rows_per_step=4",
            "--config.packing.row_length=48",
            "--config.train.ema_decay=0.9",
            "--config.evaluation.max_questions=4",
        ),
    ),
    "preference": (
        "configs/dpo_verifiable.py:tiny",
        (
            ONE_LAYER,
            "--config.train.steps=4",
            "--config.preference.pairs_per_step=8",
            "--config.samples.per_question=4",
            "--config.samples.questions=32",
            *start(8),
            "--config.optimizer.schedule=constant",
            "--config.evaluation.max_questions=4",
            "--config.data.held_out_pairs=arithmetic_pairs?split=held_out&operations=+&template={question}=",
            "--config.evaluation.max_pairs=12",
        ),
    ),
    "bco": (  # a loss that follows what it sees, and weights from the reference
        "configs/bco.py:tiny,udm",
        (
            ONE_LAYER,
            "--config.train.steps=4",
            "--config.preference.pairs_per_step=8",
            *start(8),
            "--config.data.held_out=",
            "--config.evaluation.max_pairs=12",
        ),
    ),
}
# The kinds of training once more with an adapter over weights that stay.
ADAPTER = ("--config.adapter.kind=lora", "--config.adapter.rank=4", "--config.optimizer.learning_rate=1e-2")
SMALL |= {f"{name}, lora": (SMALL[name][0], (*SMALL[name][1], *ADAPTER)) for name in ("rl", "sft", "preference")}
SMALL["preference, lora"] = (
    SMALL["preference, lora"][0],
    (*SMALL["preference, lora"][1], "--config.preference.reference=cached"),
)
