"""GDRO (arXiv 2601.19280) against GRPO on a table policy whose prompts differ in difficulty.

400 prompts with 12 actions, in tiers of 280, 60, 40 and 20 prompts with +3, +1.4, 0 and -1.6 on the logit of the right
action. 64 prompts a step with 4 completions each (in the mean), 400 plain gradient steps of size 1, 10 equal classes of
the mean success, 5 seeds. What is compared is the success on the hardest tier, and on all prompts.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.controllers import difficulty_classes, prompt_gdro, prompt_statistics, rollout_gdro
from jaxalign.controllers.difficulty_classes import equal_edges
from jaxalign.controllers.prompt_statistics import recent_rate
from jaxalign.rewards.advantages import group_advantages

TIERS, BONUS = (280, 60, 40, 20), (3.0, 1.4, 0.0, -1.6)
PROMPTS, ACTIONS, BATCH, MEAN, STEPS, SEEDS = sum(TIERS), 12, 64, 4, 400, 5
ARMS, CLASSES = tuple(range(2, 13)), 10
HARDEST = slice(PROMPTS - TIERS[-1], None)


def start():
    return jnp.zeros((PROMPTS, ACTIONS)).at[:, 0].set(np.repeat(BONUS, TIERS))


def success(table):
    right = jax.nn.softmax(table)[:, 0]
    return jnp.stack([right[HARDEST].mean(), right.mean()])


def policy_step(table, prompts, counts, weights_of, key):
    """(table after one step of GRPO, mean reward by prompt); of `max(ARMS)` completions the first `counts` exist."""
    width = max(ARMS)
    actions = jax.random.categorical(key, table[prompts, None], shape=(BATCH, width))
    exists = jnp.arange(width) < counts[:, None]
    rewards = jnp.where(exists, actions == 0, jnp.nan)  # what does not exist is not scorable
    outcomes = jnp.nanmean(rewards, axis=1)
    advantages = group_advantages(rewards.reshape(-1), width).reshape(rewards.shape)
    advantages = advantages * weights_of(1 - outcomes, -(advantages * exists).sum(axis=1) / counts)[:, None]

    def loss(table):
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(table[prompts]), actions, axis=1)
        return -(advantages * log_probs * exists / counts[:, None]).sum()

    return table - jax.grad(loss)(table), outcomes


@functools.partial(jax.jit, static_argnums=(0, 1))
def train_weighted(step_size, signal, key):
    """Success [2] of Prompt-GDRO; GRPO where the step size is 0."""

    def step(carry, key):
        table, statistics, classes, weighting = carry
        choose, act = jax.random.split(key)
        prompts = jax.random.permutation(choose, PROMPTS)[:BATCH]
        rates = recent_rate(statistics)[prompts]
        classes, found = difficulty_classes.update(classes, prompts, rates, equal_edges(CLASSES))
        after = []

        def weights_of(error, surrogate):
            losses = error if signal == "error" else surrogate
            state, weights = prompt_gdro.update(weighting, found, losses, step_size=step_size)
            after.append(state)
            return weights

        table, outcomes = policy_step(table, prompts, jnp.full(BATCH, MEAN), weights_of, act)
        statistics, _ = prompt_statistics.update(statistics, prompts, outcomes)
        return (table, statistics, classes, after[0]), None

    carry = (
        start(),
        prompt_statistics.init(PROMPTS, window=20),
        difficulty_classes.init(PROMPTS),
        prompt_gdro.init(CLASSES),
    )
    return success(jax.lax.scan(step, carry, jax.random.split(key, STEPS))[0][0])


@functools.cache
def weighted(step_size, signal="error"):
    keys = jax.random.split(jax.random.key(0), SEEDS)
    return np.asarray(jax.vmap(functools.partial(train_weighted, step_size, signal))(keys)).mean(axis=0)


@jax.jit
def allocated_step(table, prompts, counts, key):
    return policy_step(table, prompts, counts, lambda error, surrogate: jnp.ones_like(error), key)


def train_allocated(seed, how):
    """Success [2] with completions dealt out by class."""
    key, random = jax.random.key(seed), np.random.default_rng(seed)
    table, seen, right = start(), np.zeros(PROMPTS), np.zeros(PROMPTS)
    state = rollout_gdro.init(CLASSES, len(ARMS))
    variance = np.full(CLASSES, 0.25)
    for step in range(STEPS):
        prompts = random.permutation(PROMPTS)[:BATCH]
        rates = right[prompts] / np.maximum(seen[prompts], 1)
        classes = np.minimum((rates * CLASSES).astype(int), CLASSES - 1)
        counts = np.bincount(classes, minlength=CLASSES)
        if how == "square_root":
            values = -counts[:, None] * variance[:, None] / np.array(ARMS)
        else:
            values = rollout_gdro.arm_log_probs(state)
        chosen, met = rollout_gdro.choose_arms(values, counts, ARMS, MEAN * BATCH)
        numbers = np.array(ARMS)[chosen]
        assert met
        assert (counts * numbers).sum() == MEAN * BATCH
        table, outcomes = allocated_step(table, prompts, numbers[classes], jax.random.fold_in(key, step))
        outcomes = np.asarray(outcomes, np.float64)
        seen[prompts] += 1
        right[prompts] += outcomes
        of_class = np.bincount(classes, outcomes * (1 - outcomes), CLASSES) / np.maximum(counts, 1)
        of_class = of_class * numbers / (numbers - 1)
        variance = np.where(counts > 0, 0.9 * variance + 0.1 * of_class, variance)
        earned = rollout_gdro.utility("variance_proxy", np.zeros(CLASSES), variance, numbers)
        state, _ = rollout_gdro.update(state, chosen, counts, earned, ARMS, MEAN)
    return np.asarray(success(table))


def test_weights_lift_the_hardest_tier_and_do_not_cost_the_others():
    grpo = weighted(0.0)
    for step_size in (2.0, 4.0):
        found = weighted(step_size)
        assert found[0] > grpo[0] + 0.05
        assert found[1] > grpo[1] - 0.005


def test_the_surrogate_loss_of_standardised_advantages_shows_the_adversary_nothing():
    np.testing.assert_allclose(weighted(2.0, "surrogate"), weighted(0.0), atol=0.01)


def test_completions_dealt_out_by_class_lift_the_hardest_tier():
    """At an exact mean of 4 and with every prompt of equal weight, so that what helps is less noise."""
    grpo = weighted(0.0)
    for how in ("square_root", "arms"):
        found = np.mean([train_allocated(seed, how) for seed in range(SEEDS)], axis=0)
        assert found[0] > grpo[0] + 0.05, how
        assert found[1] > grpo[1] - 0.005, how
