"""The studies of GRAO and DYPO: what a few seeds of them find in the mean; all settings in docs/claims."""

import functools

import jax
import numpy as np

from experiments.studies import dypo, grao


@functools.cache
def curve(setting):
    keys = jax.random.split(jax.random.key(0), 2)
    return np.asarray(jax.vmap(functools.partial(grao.train, setting))(keys)[0]).mean(axis=0)


@functools.cache
def found(setting):
    keys = jax.random.split(jax.random.key(0), 5)
    return np.asarray(jax.vmap(functools.partial(dypo.train, dypo.NAMED[setting]))(keys)).mean(axis=0)


def test_grao_learns_where_all_lose_and_gets_beyond_the_reference():
    final = {setting: curve(setting)[-1] for setting in ("sft", "grpo", "grao")}
    assert final["sft"] < 4 / 6 + 0.01  # no better than what it imitates
    assert final["grpo"] < 0.2  # never a signal
    assert final["grao"] > final["sft"] + 0.15


def test_without_the_clamp_the_reference_is_unlearned_in_the_end():
    unclamped = curve("unclamped")
    assert unclamped.max() > unclamped[-1] + 0.05
    assert curve("grao")[-1] > unclamped[-1] + 0.03


def test_dypo_learns_hard_prompts_from_teachers():
    grpo, routed = found("grpo"), found("dypo")
    assert grpo[0] < 0.02
    assert routed[0] > 0.6
    assert routed[3] < 0.05 < routed[2]  # the share of hard prompts falls
    assert routed[0] > found("one teacher")[0] + 0.10


def test_the_alignment_loss_adds_to_half_of_grpo_but_not_to_all_of_it():
    assert found("dypo")[1] > found("half grpo")[1] + 0.02
    assert abs(found("whole grpo")[1] - found("dypo")[1]) < 0.02
