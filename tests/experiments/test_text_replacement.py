"""A text encoder is replaced in two stages: resumed runs equal straight ones, each stage trains its part, mistakes."""

import jax
import numpy as np
import optax
import pytest

from experiments import text_replacement
from jaxalign.data.sources import load_source
from jaxalign.training import configuration
from tests.experiments import runs


def load(*overrides):
    config = configuration.load_config("configs/proclip.py:runlocal")
    configuration.apply_overrides(config, [f"--config.{text}" for text in overrides])
    return config


def train(config, folder):
    text_replacement.run(config, str(folder))


def changed(before, after, part):
    names = [name for name in before if name.startswith(f"params/{part}/")]
    assert names
    return [name for name in names if before[name] != after[name]]


def test_a_stopped_run_equals_a_straight_one(tmp_path):
    """Stopped at the boundary, on a mesh and in micro-batches; stage 1 moves the adapter alone."""
    config = load("train.micro_batches=2", "train.save_every=1", "train.keep=9", "data.images=")
    config.optimizer.name, config.optimizer.weight_decay = "adamw", 0.2
    config.mesh.data, config.mesh.fsdp = 4, 2
    done = runs.check_resuming(train, config, tmp_path, stop=2)
    states = {step: runs.leaves(done, step) for step in (1, 2, 3, 4)}
    assert not changed(states[1], states[2], "image") and changed(states[1], states[2], "adapter")
    assert changed(states[2], states[4], "image") and changed(states[2], states[4], "loss")
    counts = [name for name in states[1] if name.startswith("opt_state/") and name.endswith("count")]
    assert counts and all(states[1][name] == states[3][name] != states[2][name] for name in counts)  # counted anew
    stages = [row["stage"] for row in runs.rows(tmp_path / "straight")]
    assert stages == [1, 1, 2, 2]
    teacher = runs.rows(tmp_path / "straight")[2]
    assert teacher["instance"] == pytest.approx(0, abs=1e-5)  # the average begins at the image encoder


def test_only_the_adapter_moves():
    params = {"adapter": {"w": np.ones(2, np.float32)}, "image": {"w": np.ones(2, np.float32)}}
    optimizer = text_replacement.only_adapter(optax.adamw(0.1, weight_decay=0.5))
    state = optimizer.init(params)
    updates, state = optimizer.update(jax.tree.map(np.ones_like, params), state, params)
    assert (np.asarray(updates["image"]["w"]) == 0).all() and (np.asarray(updates["adapter"]["w"]) < 0).all()
    assert jax.tree.structure(state) == jax.tree.structure(optax.adamw(0.1).init(params))


def test_splits_of_the_world():
    splits = {name: load_source(f"concept_pairs?split={name}") for name in ("texts", "held_out", "absent", "classes")}
    assert "image" not in splits["texts"][0] and "image" not in splits["classes"][0]
    assert {splits["held_out"][i]["concept"] for i in range(500)} == set(range(40))
    assert [splits["classes"][i]["concept"] for i in range(160)] == list(range(160))
    absent = splits["absent"]
    classes = np.stack([splits["classes"][i]["embedding"] for i in range(160)])
    rows = np.stack([absent[i]["embedding"] for i in range(160)])
    assert ((rows[:, None] - classes) ** 2).sum(-1).argmin(-1).tolist()[:3] == [absent[i]["concept"] for i in range(3)]


MISTAKES = {
    "distillation.steps=9": r"distillation.steps=9 must lie between 0 and config.train.steps=4",
    "train.micro_batches=3": r"distillation.batch_size=32 does not divide into .*micro_batches=3",
    "loss.kind=cubic": r"unknown kind 'cubic'",
    "scale=0.0": r"scale=0.0 must be positive",
    "encoders.adapter.out_dim=8": r"embeddings of different sizes: .*'adapter': 8",
    "data.caption_field=title": r"concept_pairs \(texts\) example 0 has no field 'title'",
    "data.source=concept_pairs?split=texts": r"has no field 'image'",
    "data.source=concept_pairs?split=test": r"split 'test' is not known; choose one of pretraining",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake, tmp_path):
    with pytest.raises(ValueError, match=MISTAKES[mistake]):
        train(load(mistake), tmp_path)
