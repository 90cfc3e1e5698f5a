"""The study of single completions: what 3 seeds of it find in the mean."""

import functools

import jax
import numpy as np

from experiments.studies.single_stream import train


@functools.cache
def means(method):
    keys = jax.random.split(jax.random.key(0), 3)
    return np.asarray(jax.vmap(functools.partial(train, method))(keys)).mean(axis=0)


def test_single_completions_with_a_tracked_baseline_learn_faster_than_groups():
    success, silent = {method: means(method)[0] for method in ("grpo", "reinforce", "spo")}, means("grpo")[1]
    assert success["spo"] > success["grpo"] + 0.10
    assert success["spo"] > success["reinforce"] + 0.06
    assert silent > 0.4  # of GRPO's groups teach nothing


def test_the_tracked_baseline_takes_variance_away():
    assert means("uniform")[2] < 0.6 * means("reinforce")[2]


def test_forgetting_by_drift_tracks_better_than_at_a_constant_rate():
    assert means("spo")[3] < 0.8 * means("constant")[3]
