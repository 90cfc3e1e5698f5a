"""The same command on a mesh of eight devices logs what it logs on one."""

import pytest

from tests.experiments import runs

MESH = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
# One row of the table in `runs.py` for each experiment, and what it changes here. Held in float32, so that sums in
# another order are all that differs. Every number of devices is one more program to compile: not all are tried.
CHANGES = {
    # How many groups can be left out depends on the mesh, and with it what the metrics of the loss are means over.
    "rl": ("--config.rl.batches_per_epoch=1", "--config.rl.epochs=1", "--config.rl.drop_silent_groups=False"),
    "sft, lora": (),
    "preference": (),
}


def same_metrics(one, other):
    for left, right in zip(runs.rows(one), runs.rows(other), strict=True):
        for metric, value in left.items():
            # The accuracy of a policy that still is its reference counts margins of 0, whose sign is rounding.
            if not (metric.endswith(("seconds", "tokens_per_second")) or (metric == "accuracy" and left["step"] == 1)):
                assert right[metric] == pytest.approx(value, rel=2e-3, abs=2e-4), (left["step"], metric)


@pytest.mark.parametrize(("name", "processes"), [("rl", 2), ("sft, lora", 2), ("preference", 1)])
def test_eight_devices_in_one_process_or_in_two_equal_one(name, processes, tmp_path):
    spec, overrides = runs.SMALL[name]
    overrides = (*overrides, *CHANGES[name], "--config.model.compute_dtype=float32", "--config.train.steps=2")
    one = runs.run(spec, tmp_path / "one", *overrides)
    assert one.code == 0, one.err
    if processes == 1:
        eight = runs.run(spec, tmp_path / "eight", *overrides, *MESH, devices=8)
        assert eight.code == 0, eight.err
        assert "mesh 2 data x 2 fsdp x 2 tensor" in eight.out
        same_metrics(tmp_path / "one", tmp_path / "eight")
        return
    two = runs.run_together(spec, tmp_path / "two", *overrides, *MESH, own=[(), ()], devices=4)
    assert [process.code for process in two] == [0, 0], [process.err for process in two]
    assert "2 process(es)" in two[0].out
    assert "finished" in two[0].out
    assert "finished" not in two[1].out
    same_metrics(tmp_path / "one", tmp_path / "two")
    if name == "rl":
        return

    # What two processes saved goes on in one, on another mesh.
    more = ("--config.train.steps=3", "--config.mesh.data=1", "--config.mesh.fsdp=4")
    resumed = runs.run(spec, tmp_path / "two", *overrides, *more, devices=4)
    assert resumed.code == 0, resumed.err
    assert "resumed after step 2" in resumed.out


def test_processes_with_different_configs_say_so(tmp_path):
    spec, overrides = runs.SMALL["sft"]
    own = [(), ("--config.optimizer.learning_rate=0.5",)]
    ended = runs.run_together(spec, tmp_path, *overrides, own=own, devices=1)
    for process in ended:
        assert process.code == 2, process.err
        assert "do not have the same config" in process.err
        assert "optimizer.learning_rate" in process.err


def test_processes_with_different_data_say_so(tmp_path):
    spec, overrides = runs.SMALL["sft"]
    files = []
    for rows in (12, 16):
        lines = [f'{{"prompt": "{a}+1=", "answer": "{a + 1}"}}\n' for a in range(rows)]
        files.append(tmp_path / str(rows) / "data.jsonl")
        files[-1].parent.mkdir()
        files[-1].write_text("".join(lines))
    own = []
    for index, file in enumerate(files):  # the same path, but each host has its own file behind it
        own.append(tmp_path / f"host{index}")
        own[-1].mkdir()
        (own[-1] / "data.jsonl").symlink_to(file)
    overrides = (*overrides, "--config.data.source=data.jsonl", "--config.data.held_out=")
    ended = runs.run_together(spec, tmp_path / "run", *overrides, own=[(), ()], devices=1, folders=own)
    for process in ended:
        assert process.code == 2, process.err
        assert "do not have the same data" in process.err
        assert "source_length" in process.err
