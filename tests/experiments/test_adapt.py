"""Adaptation to a stream: what is learned, what is reset, and the study built on it."""

import jax
import numpy as np
import pytest

from configs import cafa
from experiments import adapt
from experiments.studies import cafa as study
from jaxalign.errors import UserError
from jaxalign.training.mesh import make_mesh
from tests.experiments import runs


def test_a_step_predicts_learns_and_starts_again_at_the_next_corruption():
    config = cafa.get_config("runlocal")
    train, held_out = (adapt.load_pictures(spec, config.data) for spec in (config.data.source, config.data.held_out))
    adaptation = adapt.Adaptation(config, train, held_out, make_mesh(devices=jax.devices()[:1]))
    network = adaptation.network
    source = {"params": network.init(jax.random.key(0)), "statistics": network.init_statistics()}
    state = adaptation.begin(source, adapt.source_features(network, source, train)[0])
    first = state.params
    state, metrics, batch = adaptation.advance(state, 0)
    out = network.apply(source["params"], source["statistics"], batch["images"], mode="batch")
    assert metrics["accuracy/adapted"] == metrics["accuracy/batch_statistics"]  # the forward pass of before the update
    assert metrics["accuracy/adapted"] == pytest.approx((out.logits.argmax(-1) == batch["labels"]).mean())
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, first)
    assert all(0 < leaf < 0.011 for leaf in jax.tree.leaves(moved))  # one step of Adam
    state, metrics, _ = adaptation.advance(state, 1)
    assert {"stage0", "stage1", "features"} == set(state.params)
    state, metrics, batch = adaptation.advance(state, 2)  # another corruption: the source weights again
    out = network.apply(source["params"], source["statistics"], batch["images"], mode="batch")
    assert metrics["accuracy/adapted"] == pytest.approx((out.logits.argmax(-1) == batch["labels"]).mean())
    score = jax.device_get(state.extra["score"])
    assert score["seen"].sum(1).tolist() == [32, 16, 0]


def test_wrong_settings():
    config = cafa.get_config("runlocal")
    pictures = adapt.Pictures(np.zeros((20, 8, 8, 1), np.float32), np.arange(20, dtype=np.int32) % 10)
    with config.unlocked():
        config.stream.corruptions = ("fog",)
    with pytest.raises(UserError, match="'fog' is not known"):
        adapt.Adaptation(config, pictures, pictures, make_mesh(devices=jax.devices()[:1]))
    config = cafa.get_config("runlocal")
    config.stream.batch_size = 1
    with pytest.raises(UserError, match="one picture has no batch"):
        adapt.Adaptation(config, pictures, pictures, make_mesh(devices=jax.devices()[:1]))


def test_a_run_resumes_and_another_takes_its_classifier(tmp_path, capsys):
    config = cafa.get_config("runlocal")
    config.network.widths, config.network.feature_dim, config.source.steps = (4, 4), 8, 3
    config.train.steps = 3
    done = runs.check_resuming(adapt.run, config, tmp_path, stop=2)
    assert "resumed after step 2" in capsys.readouterr().out
    names = {entry["name"] for entry in runs.summary(done)["evaluations"]}
    assert names == {"accuracy", "accuracy of batch statistics alone", "accuracy, noise", "accuracy, contrast"}
    config.source.path, config.seed, config.train.steps = str(done), 5, 1
    adapt.run(config, tmp_path / "other")
    before, after = (
        {name: leaf for name, leaf in runs.leaves(folder, step).items() if name.startswith("extra/source/")}
        for folder, step in ((done, 3), (tmp_path / "other", 1))
    )
    assert len(before) > 10 and before == after


def test_the_study_runs():
    found = study.run("global", 0, steps=2, training=3)
    assert 0 <= found["accuracy"] <= 1 and np.isfinite(found["log_distance_ratio"])
