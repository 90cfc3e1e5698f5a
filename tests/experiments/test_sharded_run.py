"""The same command on a mesh of eight devices logs what it logs on one."""

import pytest

from experiments import run as command
from tests.experiments import runs

MESH = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
# One row of the table in `runs.py` for each experiment, and what it changes here. Held in float32, so that sums in
# another order are all that differs. Every number of devices is one more program to compile: not all are tried.
CHANGES = {
    # How many groups can be left out depends on the mesh, and with it what the metrics of the loss are means over.
    "rl": (
        "--config.rl.batches_per_epoch=1",
        "--config.rl.epochs=1",
        "--config.rl.drop_silent_groups=False",
        "--config.warm_start.steps=0",
        "--config.reward.names=('tests.experiments.runs:printable',)",
        "--config.data.held_out=",
    ),
    "sft, lora": (),
    "preference": ("--config.data.held_out=",),
}


def same_metrics(one, other):
    for left, right in zip(runs.rows(one), runs.rows(other), strict=True):
        for metric, value in left.items():
            # The accuracy of a policy that still is its reference counts margins of 0, whose sign is rounding.
            if not (metric.endswith(("seconds", "tokens_per_second")) or (metric == "accuracy" and left["step"] == 1)):
                assert right[metric] == pytest.approx(value, rel=2e-3, abs=2e-4), (left["step"], metric)


def test_eight_devices_in_one_process_or_in_two_equal_one(tmp_path, capsys):
    def given(name, folder, *more):
        spec, overrides = runs.SMALL[name]
        steps = ("--config.model.compute_dtype=float32", "--config.train.steps=2")
        return (spec, tmp_path / name / folder, *overrides, *CHANGES[name], *steps, *more)

    def here(*arguments):
        """In this process, which has eight devices."""
        code = command.main(["experiments.run", *runs.command(*arguments)[3:]])
        shown = capsys.readouterr()
        assert code == 0, shown.err
        return shown.out

    for run in runs.run_in_turn(*(given(name, "one") for name in CHANGES)):
        assert run.code == 0, run.err

    assert "mesh 2 data x 2 fsdp x 2 tensor" in here(*given("preference", "eight", *MESH))
    same_metrics(tmp_path / "preference" / "one", tmp_path / "preference" / "eight")

    names = ("rl", "sft, lora")
    first, second = runs.run_together(*[[given(name, "two", *MESH) for name in names]] * 2, devices=4)
    for run in (*first, *second):
        assert run.code == 0, run.err
    for name, one, other in zip(names, first, second, strict=True):
        assert "2 process(es)" in one.out
        assert "finished" in one.out
        assert "finished" not in other.out
        same_metrics(tmp_path / name / "one", tmp_path / name / "two")
    assert all(0 < row["reward/mean"] < 1 and row["grad_norm"] > 0 for row in runs.rows(tmp_path / "rl" / "one"))

    # What two processes saved goes on in one, on another mesh.
    more = ("--config.train.steps=3", "--config.mesh.data=1", "--config.mesh.fsdp=4", "--config.mesh.tensor=2")
    assert "resumed after step 2" in here(*given("sft, lora", "two", *more))


def test_processes_with_different_configs_or_data_say_so(tmp_path):
    spec, overrides = runs.SMALL["sft"]
    overrides = (*overrides, "--config.data.source=data.jsonl", "--config.data.held_out=")
    processes, own = [], []
    for index, examples in enumerate((12, 16)):  # the same path, but each host has its own file behind it
        own.append(tmp_path / f"host{index}")
        own[-1].mkdir()
        lines = [f'{{"prompt": "{a}+1=", "answer": "{a + 1}"}}\n' for a in range(examples)]
        (own[-1] / "data.jsonl").write_text("".join(lines))
        rate = f"--config.optimizer.learning_rate={(1e-3, 0.5)[index]}"
        processes.append([(spec, tmp_path / "configs", *overrides, rate), (spec, tmp_path / "data", *overrides)])
    for configs, data in runs.run_together(*processes, devices=1, folders=own):
        assert configs.code == data.code == 2, (configs.err, data.err)
        assert "do not have the same config" in configs.err
        assert "optimizer.learning_rate" in configs.err
        assert "do not have the same data" in data.err
        assert "source_length" in data.err
