"""GDRO (arXiv 2601.19280) against GRPO on a table policy whose prompts differ in difficulty.

400 prompts with 12 actions, in tiers of 280, 60, 40 and 20 prompts with +3, +1.4, 0 and -1.6 on the logit of the right
action. 64 prompts a step with 4 completions each (in the mean), 400 plain gradient steps of size 1, 10 equal classes of
the mean success. Settings:

  grpo               every prompt weighs the same and has 4 completions
  step 2, step 4     Prompt-GDRO with that step size, which sees 1 - mean reward
  surrogate, step 2  the same, but it sees minus the mean advantage
  square root        2 to 12 completions by class: the whole numbers of least variance by the estimates, 4 in the mean
  arms               2 to 12 completions by class, chosen by Rollout-GDRO from what it earned
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.controllers import difficulty_classes, prompt_gdro, prompt_statistics, rollout_gdro
from jaxalign.controllers.difficulty_classes import equal_edges
from jaxalign.controllers.prompt_statistics import recent_rate
from jaxalign.rewards.advantages import group_advantages

WEIGHTED = {"grpo": (0.0, "error"), "step 2": (2.0, "error"), "step 4": (4.0, "error")}
WEIGHTED["surrogate, step 2"] = (2.0, "surrogate")
ALLOCATED = ("square root", "arms")
SETTINGS = (*WEIGHTED, *ALLOCATED)
TIERS, BONUS = (280, 60, 40, 20), (3.0, 1.4, 0.0, -1.6)
PROMPTS, ACTIONS, BATCH, MEAN, STEPS = sum(TIERS), 12, 64, 4, 400
ARMS, CLASSES = tuple(range(2, 13)), 10
HARDEST = slice(PROMPTS - TIERS[-1], None)


def start() -> jax.Array:
    return jnp.zeros((PROMPTS, ACTIONS)).at[:, 0].set(np.repeat(BONUS, TIERS))


def success(table: jax.Array) -> jax.Array:
    """[2]: on the hardest tier, on all prompts."""
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
def train_weighted(step_size: float, signal: str, key: jax.Array) -> jax.Array:
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


@jax.jit
def allocated_step(table, prompts, counts, key):
    return policy_step(table, prompts, counts, lambda error, surrogate: jnp.ones_like(error), key)


def train_allocated(how: str, seed: int, steps: int = STEPS) -> dict[str, float]:
    """What `run` returns, with completions dealt out by class."""
    key, random = jax.random.key(seed), np.random.default_rng(seed)
    table, seen, right = start(), np.zeros(PROMPTS), np.zeros(PROMPTS)
    state = rollout_gdro.init(CLASSES, len(ARMS))
    variance, dealt, ratios = np.full(CLASSES, 0.25), [], []
    for step in range(steps):
        prompts = random.permutation(PROMPTS)[:BATCH]
        rates = right[prompts] / np.maximum(seen[prompts], 1)
        classes = np.minimum((rates * CLASSES).astype(int), CLASSES - 1)
        counts = np.bincount(classes, minlength=CLASSES)
        if how == "square root":
            values = -counts[:, None] * variance[:, None] / np.array(ARMS)
        else:
            values = rollout_gdro.arm_log_probs(state)
        chosen, _ = rollout_gdro.choose_arms(values, counts, ARMS, MEAN * BATCH)
        numbers = np.array(ARMS)[chosen]
        dealt.append((counts * numbers).sum() / BATCH)
        ratios.append((counts * variance / numbers).sum() / (counts * variance / MEAN).sum())
        table, outcomes = allocated_step(table, prompts, numbers[classes], jax.random.fold_in(key, step))
        outcomes = np.asarray(outcomes, np.float64)
        seen[prompts] += 1
        right[prompts] += outcomes
        of_class = np.bincount(classes, outcomes * (1 - outcomes), CLASSES) / np.maximum(counts, 1)
        of_class = of_class * numbers / (numbers - 1)
        variance = np.where(counts > 0, 0.9 * variance + 0.1 * of_class, variance)
        earned = rollout_gdro.utility("variance_proxy", np.zeros(CLASSES), variance, numbers)
        state, _ = rollout_gdro.update(state, chosen, counts, earned, ARMS, MEAN)
    hardest, whole = success(table)
    budget_error = np.abs(np.array(dealt) - MEAN).max()
    return {
        "hardest": float(hardest),
        "all": float(whole),
        "budget_error": float(budget_error),
        "variance": float(np.mean(ratios)),
    }


def run(setting: str, seed: int) -> dict[str, float]:
    """Success on the `hardest` tier and on `all` prompts at the end; `budget_error`, the largest distance of a step's
    mean number of completions from 4; `variance`, the sum of q v / n over classes against 4 for each, mean of steps
    (q share of the batch, v estimated variance of the rewards, n completions)."""
    if setting in ALLOCATED:
        return train_allocated(setting, seed)
    hardest, whole = train_weighted(*WEIGHTED[setting], jax.random.key(seed))
    return {"hardest": float(hardest), "all": float(whole), "budget_error": 0.0, "variance": 1.0}
