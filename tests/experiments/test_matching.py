"""Test-time matching: what is selected, what is learned from, and that the truth plays no part."""

import jax
import numpy as np
import pytest

from configs import ttm
from experiments import matching
from experiments.studies import ttm as study
from jaxalign.data.order_pairs import Groups, OrderPairs
from jaxalign.errors import UserError
from jaxalign.training.mesh import make_mesh
from tests.experiments import runs


@pytest.fixture(scope="module")
def small():
    """(config, groups, towers, parameters)."""
    config = ttm.get_config("runlocal")
    groups = matching.load_groups(config.data.groups, config)
    towers = matching.make_towers(config, groups)
    return config, groups, towers, matching.pretrain(towers, config, matching.load_pairs(config.data.pairs, config))


def test_iterations_select_by_margin_and_learn_their_own_matchings(small):
    config, groups, towers, params = small
    work = matching.Matching(config, towers, groups)
    state = work.begin(params)
    captions, margins = work.match(params)
    assert float(state.extra["thresholds"][0]) == pytest.approx(np.quantile(margins, 0.8), rel=1e-5)
    assert float(state.extra["thresholds"][-1]) == 0
    similarities = work.similarities(params)
    straight = similarities[:, [0, 1], [0, 1]].sum(1) > similarities[:, [0, 1], [1, 0]].sum(1)
    np.testing.assert_array_equal((captions == [0, 1]).all(1), straight)
    state, metrics = work.advance(state, 0)
    assert metrics["coverage"] == pytest.approx(0.2, abs=0.03) and metrics["loss"] > 0
    state, metrics = work.advance(state, 1)
    assert metrics["coverage"] == 1 and metrics["threshold"] == 0
    assert float(state.step) == 1 + 2  # batches of 25 groups: 8 selected, then 40
    with config.unlocked():
        config.matching.start_threshold = 1e9  # nothing is that clear
    nothing = matching.Matching(config, towers, groups)
    state = nothing.begin(params)
    state, metrics = nothing.advance(state, 0)
    assert metrics["coverage"] == 0 and int(state.step) == 0
    config.matching.start_threshold = None


@pytest.mark.devices(8)
def test_devices_change_nothing(small):
    """25 groups a batch are filled up to the devices; 40 groups lie over them."""
    config, groups, towers, params = small
    config.matching.loss = "clip"  # the others here are with SigLIP
    found = []
    for mesh in (None, make_mesh(data=4, fsdp=2)):
        work = matching.Matching(config, towers, groups, mesh)
        state = work.begin(params)
        metrics = []
        for iteration in range(2):
            state, row = work.advance(state, iteration)
            metrics.append(row)
        found.append((jax.device_get(state.params), metrics))
    config.matching.loss = "siglip"
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {8}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


def test_the_order_of_captions_does_not_matter(small):
    """Swapping the captions of every group swaps the matchings, and nothing else: the truth is not looked at."""
    config, groups, towers, params = small
    swapped = Groups(groups.images, groups.captions[:, ::-1])
    found, other = (matching.Matching(config, towers, g).match(params) for g in (groups, swapped))
    np.testing.assert_array_equal(found[0], 1 - other[0])
    np.testing.assert_allclose(found[1], other[1], rtol=1e-4, atol=1e-4)
    tied = Groups(groups.images, np.zeros_like(groups.captions))
    captions, _ = matching.Matching(config, towers, tied).match(params)
    assert 5 < (captions == [0, 1]).all(1).sum() < 35  # ties do not go to the truth


def test_groups_from_a_file(tmp_path, small):
    config, groups, _, _ = small
    path = str(tmp_path / "groups.npz")
    np.savez(path, images=groups.images[:, :1], captions=groups.captions)
    assert matching.load_groups(path, config).images.shape == (40, 1, 96)
    np.savez(path, images=groups.images, captions=groups.captions[:, :1])
    with pytest.raises(UserError, match="swap the two"):
        matching.load_groups(path, config)
    with pytest.raises(UserError, match="is no file"):
        matching.load_groups("nothing.npz", config)


def test_the_world_shows_order_weakly():
    world = OrderPairs(1, noise=0.0)
    groups = world.groups(50)
    swapped = np.linalg.norm(groups.images[:, 0] - groups.images[:, 1], axis=-1)
    others = np.linalg.norm(groups.images[:-1, 0] - groups.images[1:, 0], axis=-1)
    assert 0 < swapped.mean() < 0.8 * others.mean()
    assert (world.pairs(4, 0).images != world.pairs(4, 1).images).any()


def test_a_run_resumes(tmp_path):
    config = ttm.get_config("runlocal")
    config.source.steps = 2
    done = runs.check_resuming(matching.run, config, tmp_path, stop=1)
    assert {entry["name"] for entry in runs.summary(done)["evaluations"]} == {"GroupScore", "GroupMatch"}
    assert [row["step"] for row in runs.rows(done)] == [1, 2]


def test_the_study_runs():
    found = study.run("raw", 0, training=2)
    assert found["match_minus_score"] == pytest.approx(found["group_match"] - found["group_score"])
