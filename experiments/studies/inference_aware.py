"""InfAlign (arXiv 2412.19792) on a table policy: which reward to train on for the win rate after best- or worst-of-4.

64 prompts with 200 outcomes each; rewards are offset + scale exp(skew z), z normal, with the offset, scale and skew of
the prompt. The reference policy is a softmax of normal logits and the start. 16 samples of each prompt a step, their
scores less the mean of their group, k2 as estimate of the KL to the reference, 800 steps of Adam with a rate that
falls to 0; the KL coefficient is found by bisection so that the exact KL ends at 0.5 nats. Settings say what a sample
is scored by: its `raw` reward over the spread of all rewards, the reward `standardised` by prompt, or the reward
calibrated with 100 reference samples of the prompt and transformed (`identity`, `exp` and `neg_exp` with t = 10).
"""

import functools
import math

import jax
import jax.numpy as jnp
import optax

from jaxalign.losses.policy_gradient import policy_loss
from jaxalign.objective import loss
from jaxalign.rewards.advantages import group_advantages
from jaxalign.rewards.inference_aware import calibrate, transform

SETTINGS = ("raw", "standardised", "identity", "exp", "neg_exp")
PROMPTS, OUTCOMES, REFERENCE_SAMPLES, GROUP, STEPS, TARGET_KL, N = 64, 200, 100, 16, 800, 0.5, 4
BISECTIONS = 10
OPTIMIZER = optax.adam(optax.linear_schedule(0.1, 0.0, STEPS))


def problem(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(rewards, log-probs of the reference), [PROMPTS, OUTCOMES] each."""
    keys = jax.random.split(key, 5)
    offset, scale, skew = (jax.random.normal(k, (PROMPTS, 1)) for k in keys[:3])
    z, logits = (jax.random.normal(k, (PROMPTS, OUTCOMES)) for k in keys[3:])
    return offset + jnp.exp(scale) * jnp.exp(jax.nn.sigmoid(skew) * z), jax.nn.log_softmax(0.5 * logits)


def drawn(key: jax.Array, log_policy: jax.Array, samples: int) -> jax.Array:
    """[PROMPTS, samples] outcomes, by the inverse of the distribution function."""
    cdf = jnp.cumsum(jnp.exp(log_policy), axis=1)
    u = jax.random.uniform(key, (PROMPTS, samples)) * cdf[:, -1:]
    return jnp.minimum(jax.vmap(jnp.searchsorted)(cdf, u), OUTCOMES - 1)


def scores_of(setting: str, rewards: jax.Array, sampled: jax.Array) -> jax.Array:
    """[PROMPTS, OUTCOMES] of rewards of that shape, with those of reference samples [PROMPTS, K]."""
    if setting == "raw":
        return rewards / sampled.std()
    if setting == "standardised":
        return (rewards - sampled.mean(1, keepdims=True)) / sampled.std(1, keepdims=True)
    return transform(calibrate(rewards, sampled), setting, strength=10.0)


def win_rate(rewards: jax.Array, log_policy: jax.Array, log_reference: jax.Array, n: int, best: bool) -> jax.Array:
    """Of the policy against the reference, both decoded by best- or worst-of-n; exact, no rewards tie."""
    order = jnp.argsort(rewards, axis=1)

    def decoded(log_probs):
        cdf = jnp.cumsum(jnp.take_along_axis(jnp.exp(log_probs), order, axis=1), axis=1).clip(0, 1)
        cdf = jnp.concatenate([jnp.zeros((PROMPTS, 1)), cdf / cdf[:, -1:]], axis=1)
        return cdf**n if best else 1 - (1 - cdf) ** n

    own, other = decoded(log_policy), decoded(log_reference)
    return (jnp.diff(own, axis=1) * (other[:, 1:] + other[:, :-1]) / 2).sum(axis=1).mean()


@functools.partial(jax.jit, static_argnums=(0, 3))
def train(setting: str, coefficient: jax.Array, key: jax.Array, steps: int = STEPS) -> dict[str, jax.Array]:
    """What `run` returns, for a KL coefficient in units of score per nat."""
    rewards, log_reference = problem(jax.random.fold_in(key, 0))
    known = drawn(jax.random.fold_in(key, 1), log_reference, REFERENCE_SAMPLES)
    scores = scores_of(setting, rewards, jnp.take_along_axis(rewards, known, axis=1))

    def kl_of(log_policy):
        return (jnp.exp(log_policy) * (log_policy - log_reference)).sum(axis=1).mean()

    def step(carry, key):
        table, moments = carry
        outcomes = drawn(key, jax.nn.log_softmax(table), GROUP)
        gains = jnp.take_along_axis(scores, outcomes, axis=1)
        advantages = group_advantages(gains.reshape(-1), GROUP, scale="none")

        def value(table):
            def of_samples(log_policy):
                return jnp.take_along_axis(log_policy, outcomes, axis=1).reshape(-1, 1)

            log_policy = jax.nn.log_softmax(table)
            objective = policy_loss(
                of_samples(log_policy),
                advantages,
                jnp.ones((PROMPTS * GROUP, 1)),
                reference_log_probs=of_samples(log_reference),
                kl="k2",
                kl_coefficient=coefficient,
            )
            return loss(objective)

        updates, moments = OPTIMIZER.update(jax.grad(value)(table), moments)
        return (optax.apply_updates(table, updates), moments), None

    carry = (log_reference, OPTIMIZER.init(log_reference))
    (table, _), _ = jax.lax.scan(step, carry, jax.random.split(jax.random.fold_in(key, 2), steps))
    log_policy = jax.nn.log_softmax(table)
    return {
        "standard": win_rate(rewards, log_policy, log_reference, 1, True),
        "best": win_rate(rewards, log_policy, log_reference, N, True),
        "worst": win_rate(rewards, log_policy, log_reference, N, False),
        "kl": kl_of(log_policy),
    }


def run(setting: str, seed: int, steps: int = STEPS) -> dict[str, float]:
    """Win rates of the final policy against the reference, mean of prompts: `standard`, after `best`-of-4 and after
    `worst`-of-4 of both; and its exact `kl` to the reference, nats."""
    low, high = 1e-2, 1e1
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        found = train(setting, jnp.float32(middle), jax.random.key(seed), steps)
        low, high = (middle, high) if found["kl"] > TARGET_KL else (low, middle)
    return {name: float(value) for name, value in found.items()}
