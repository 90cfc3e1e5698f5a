"""The length bias of GRPO (Dr. GRPO, arXiv 2503.20783), with the losses and settings of the table of methods.

The first token decides the reward and is drawn from a fixed law, right with probability 0.25. After it
the policy is a table of end-of-sequence logits, by right or wrong first token and position, and stops
with probability 0.2 everywhere. The reward never depends on the length: an unbiased method has no reason
to change it. 32 prompts with 8 completions, 600 plain gradient steps of size 2. Settings are methods, of which "dapo"
stands for the mean over all tokens (its groups are not filtered here), or "start": the policy as it is.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.losses.policy_gradient import policy_loss
from jaxalign.methods import METHODS
from jaxalign.objective import loss
from jaxalign.rewards.advantages import advantages

SETTINGS = ("start", "grpo", "dr_grpo", "dapo", "gspo")
POSITIONS, PROMPTS, GROUP = 16, 32, 8
STEPS, STEP_SIZE = 600, 2.0
START = float(np.log(0.2 / 0.8))


def expected_lengths(logits: jax.Array) -> jax.Array:
    """[2] for wrong and right: 1 + P(not stopped at the first) + P(nor at the second) + ..."""
    stop = jax.nn.sigmoid(logits)
    alive = jnp.cumprod(1 - stop[:, :-1], axis=1)
    return 1 + alive.sum(axis=1)


def sample(key: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(right [B], stops [B, T] as sampled, mask [B, T])."""
    first, later = jax.random.split(key)
    right = jax.random.bernoulli(first, 0.25, (PROMPTS * GROUP,)).astype(jnp.int32)
    stops = jax.random.bernoulli(later, jax.nn.sigmoid(logits)[right])
    before = jnp.cumsum(stops, axis=1) - stops
    return right, stops, (before == 0).astype(jnp.float32)


def table_log_probs(logits: jax.Array, right: jax.Array, stops: jax.Array) -> jax.Array:
    z = logits[right]
    return jnp.where(stops, jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z))


@functools.partial(jax.jit, static_argnums=(0, 2))
def train(name: str, key: jax.Array, steps: int = STEPS) -> jax.Array:
    """Expected lengths [2] after training."""
    method = METHODS[name]
    options = {**method.loss, "kl_coefficient": 0.0}
    if options["aggregation"] == "seq-mean-token-scale":
        options["scale_length"] = float(POSITIONS)

    def step(logits, key):
        right, stops, mask = sample(key, logits)
        weights = advantages(rewards=right.astype(jnp.float32), group_size=GROUP, **method.advantages)

        def value(logits):
            return loss(policy_loss(table_log_probs(logits, right, stops), weights, mask, **options))

        return logits - STEP_SIZE * jax.grad(value)(logits), None

    logits, _ = jax.lax.scan(step, jnp.full((2, POSITIONS), START), jax.random.split(key, steps))
    return expected_lengths(logits)


def run(setting: str, seed: int, steps: int = STEPS) -> dict[str, float]:
    """`wrong` and `right`: expected tokens of completions whose first token is that."""
    if setting == "start":
        lengths = expected_lengths(jnp.full((2, POSITIONS), START))
    else:
        lengths = train(setting, jax.random.key(seed), steps)
    return {"wrong": float(lengths[0]), "right": float(lengths[1])}
