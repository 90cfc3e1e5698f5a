"""The study of difficulty: what a few seeds of it find in the mean; 5 seeds of all settings in docs/claims."""

import functools

import jax
import numpy as np

from experiments.studies.difficulty_weighting import WEIGHTED, train_allocated, train_weighted


@functools.cache
def weighted(setting):
    keys = jax.random.split(jax.random.key(0), 3)
    return np.asarray(jax.vmap(functools.partial(train_weighted, *WEIGHTED[setting]))(keys)).mean(axis=0)


def test_weights_lift_the_hardest_tier_and_do_not_cost_the_others():
    grpo, found = weighted("grpo"), weighted("step 2")
    assert found[0] > grpo[0] + 0.05
    assert found[1] > grpo[1] - 0.005


def test_the_surrogate_loss_of_standardised_advantages_shows_the_adversary_nothing():
    np.testing.assert_allclose(weighted("surrogate, step 2"), weighted("grpo"), atol=0.01)


def test_completions_dealt_out_by_class_lift_the_hardest_tier():
    """At an exact mean of 4 and with every prompt of equal weight, so that what helps is less noise."""
    grpo, found = weighted("grpo"), train_allocated("arms", seed=0)
    assert found["hardest"] > grpo[0] + 0.05
    assert found["all"] > grpo[1] - 0.005
    assert found["budget_error"] == 0


def test_the_square_root_law_keeps_the_budget():
    found = train_allocated("square root", seed=0, steps=20)
    assert found["budget_error"] == 0
    assert 0 < found["variance"] <= 1  # against equal numbers of completions
