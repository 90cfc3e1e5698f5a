"""The study of small groups: what 24 seeds of it find in the mean."""

import functools

import jax

from experiments.studies.small_groups import parsed, train

SEEDS = 24


def reward(setting):
    keys = jax.random.split(jax.random.key(1), SEEDS)
    return float(jax.vmap(functools.partial(train, *parsed(setting)))(keys).mean())


def test_settings():
    assert parsed("median mad, 3 - 1") == ("median", "mad", 3, 1)
    assert parsed("grpo, 8") == ("group", "group", 8, 0)


def test_the_median_of_three_comes_near_to_groups_of_eight():
    median = reward("median, 3 - 1")
    assert median > reward("mean, 2") + 0.008
    assert median > reward("median, 9 - 1") - 0.015
    assert median > reward("median mad, 3 - 1")  # 1 / MAD of three is heavy-tailed
    assert abs(median - reward("mean, 3 - 1")) < 0.01  # what the extra completion alone buys
