"""GRAO (arXiv 2508.07750) on a table policy: a reference answer that is better than the start and worse than the best.

30 prompts of 6 positions and 16 symbols from a uniform start; the reference answer has 4 symbols of 6 right, the
reward says whether a completion has more (1), as many (0) or fewer (-1). 8 completions, 300 plain gradient steps of
size 2. Settings that begin with "easy" have 5 positions, 8 symbols and a reference with 3 right. After it:

  sft            the likelihood of the reference answer
  grpo           the group's advantages alone
  grao           with the weight of the reference kept from falling below 0
  unclamped      as in the paper
  literal        unclamped, the reference is no member of the group whose mean and spread count (equation 4)
  no imitation, no alignment   grao without that term
"""

import functools

import jax
import jax.numpy as jnp

from experiments.studies.symbol_tables import log_probs_of, sampled
from jaxalign.losses.grao import grao_loss
from jaxalign.objective import loss
from jaxalign.rewards.advantages import group_advantages
from jaxalign.rewards.reference_answer import reference_advantages

PROMPTS, GROUP, STEPS, STEP_SIZE = 30, 8, 300, 2.0
SIZES = {"hard": (6, 16, 4), "easy": (5, 8, 3)}  # positions, symbols, right ones of the reference
OPTIONS = {
    "grao": {},
    "unclamped": {"clamp_reference": False},
    "literal": {"clamp_reference": False},
    "no imitation": {"imitation": 0.0},
    "no alignment": {"alignment": 0.0},
}
SETTINGS = ("sft", "grpo", *OPTIONS, "easy grpo", "easy grao")


@functools.partial(jax.jit, static_argnums=(0, 2))
def train(setting: str, key: jax.Array, steps: int = STEPS) -> tuple[jax.Array, jax.Array]:
    """By step, [steps] each: the mean probability of the right symbol, the share of prompts whose reference is pushed
    down."""
    kind = setting.removeprefix("easy ")
    positions, symbols, right = SIZES["hard" if kind == setting else "easy"]
    places = jnp.broadcast_to(jnp.arange(positions), (PROMPTS, positions))
    places = jax.random.permutation(key, places, 1, independent=True)
    wrong = jax.random.randint(jax.random.fold_in(key, 1), (PROMPTS, positions), 1, symbols)
    answer = jnp.where(places < right, 0, wrong)

    def step(table, key):
        ids = sampled(key, table, GROUP)
        rewards = jnp.sign((ids == 0).sum(-1) - right).astype(jnp.float32)
        members = jnp.concatenate([rewards, jnp.zeros((PROMPTS, 1))], axis=1)

        def value(table):
            own, given = log_probs_of(table, ids), log_probs_of(table, answer)
            if kind == "sft":
                return -given.mean(), jnp.zeros(())
            if kind == "grpo":
                a = group_advantages(rewards.reshape(-1), GROUP, epsilon=1e-8).reshape(PROMPTS, GROUP)
                return -(a[..., None] * own).mean(), jnp.zeros(())
            included = kind != "literal"
            a = reference_advantages(members.reshape(-1), GROUP + 1, include_reference=included).reshape(members.shape)
            masks = jnp.ones(ids.shape), jnp.ones(given.shape)
            objective = grao_loss(own, masks[0], given, masks[1], a[:, :-1], a[:, -1], **OPTIONS[kind])
            return loss(objective), objective.metrics["reference_weight_negative"][0] / PROMPTS

        gradient, negative = jax.grad(value, has_aux=True)(table)
        # Every prompt has a table of its own: a mean over prompts would only make the steps of each smaller.
        table = table - STEP_SIZE * PROMPTS * gradient
        return table, (jax.nn.softmax(table)[..., 0].mean(), negative)

    start = jnp.zeros((PROMPTS, positions, symbols))
    return jax.lax.scan(step, start, jax.random.split(jax.random.fold_in(key, 2), steps))[1]


def run(setting: str, seed: int) -> dict[str, float]:
    """Mean probability of the right symbol after 50 steps (`at_50`), at the end (`final`), and from the highest of all
    steps to the end (`lost`); `negative`, the share of prompts whose reference was pushed down, mean of all steps."""
    curve, negative = train(setting, jax.random.key(seed))
    values = {"at_50": curve[49], "final": curve[-1], "lost": curve.max() - curve[-1], "negative": negative.mean()}
    return {name: float(value) for name, value in values.items()}
