"""The same command on a mesh of eight devices logs what it logs on one."""

import pytest

from tests.experiments import runs

MESH = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
# Held in float32, so that sums in another order are all that differs.
CHANGES = {
    # How many groups can be left out depends on the mesh, and with it what the metrics of the loss are means over.
    "rl": ("--config.rl.batches_per_epoch=1", "--config.rl.epochs=1", "--config.rl.drop_silent_groups=False"),
    "sft": (),
}


@pytest.mark.parametrize("name", runs.SMALL)
def test_eight_devices_equal_one(name, tmp_path):
    spec, overrides = runs.SMALL[name]
    overrides = (*overrides, *CHANGES[name], "--config.model.compute_dtype=float32", "--config.train.steps=2")
    one = runs.run(spec, tmp_path / "one", *overrides)
    assert one.code == 0, one.err
    eight = runs.run(spec, tmp_path / "eight", *overrides, *MESH, devices=8)
    assert eight.code == 0, eight.err
    assert "mesh 2 data x 2 fsdp x 2 tensor" in eight.out
    for left, right in zip(runs.rows(tmp_path / "one"), runs.rows(tmp_path / "eight"), strict=True):
        for metric, value in left.items():
            if not metric.endswith(("seconds", "tokens_per_second")):
                assert right[metric] == pytest.approx(value, rel=2e-3, abs=2e-4), (left["step"], metric)
