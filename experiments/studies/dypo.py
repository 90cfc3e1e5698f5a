"""DYPO (arXiv 2604.08926) on a table policy: prompts that the policy never solves, teachers that err.

60 prompts of 4 positions and 8 symbols, right if all four are; a third is hard (at chance), a third has +2.2 and a
third has +4 on the right logits. Teachers are right but for 25 % of their symbols, always the same ones. 20 prompts a
step, 8 completions, 250 plain gradient steps of size 6. Settings but for "grpo" route each prompt by its group:

  grpo               no routing, no teachers
  dypo               half of GRPO and half of the alignment loss, 3 teachers
  one teacher        the same with 1 teacher
  half grpo          half of GRPO without the alignment loss
  whole grpo         all of GRPO without the alignment loss
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.studies.symbol_tables import log_probs_of, sampled
from jaxalign.losses.dypo import dypo_loss
from jaxalign.objective import loss
from jaxalign.rewards.advantages import group_advantages


class Setting(NamedTuple):
    routing: bool = True
    group_weight: float = 0.5
    beta: float = 1.0  # 0: the alignment loss is constant
    teachers: int = 3


NAMED = {
    "grpo": Setting(routing=False, group_weight=1.0),
    "dypo": Setting(),
    "one teacher": Setting(teachers=1),
    "half grpo": Setting(beta=0.0),
    "whole grpo": Setting(group_weight=1.0),
}
SETTINGS = tuple(NAMED)
PROMPTS, POSITIONS, SYMBOLS, BATCH, GROUP, STEPS, STEP_SIZE = 60, 4, 8, 20, 8, 250, 6.0


@functools.partial(jax.jit, static_argnums=0)
def train(setting: Setting, key: jax.Array) -> jax.Array:
    """[5]: success on hard and on all prompts, the share of hard prompts in the first and last 25 steps, and the
    coefficient of variation of the gradient's norm over all steps."""
    slips = jax.random.bernoulli(jax.random.fold_in(key, 0), 0.25, (PROMPTS, setting.teachers, POSITIONS))
    wrong = jax.random.randint(jax.random.fold_in(key, 1), slips.shape, 1, SYMBOLS)
    solutions = jnp.where(slips, wrong, 0)
    bonus = jnp.repeat(jnp.array([0.0, 2.2, 4.0]), PROMPTS // 3, total_repeat_length=PROMPTS)
    start = jnp.zeros((PROMPTS, POSITIONS, SYMBOLS)).at[..., 0].set(bonus[:, None])

    def step(table, key):
        choose, act, draw = jax.random.split(key, 3)
        index = jax.random.permutation(choose, PROMPTS)[:BATCH]
        ids = sampled(act, table[index], GROUP)
        rewards = (ids == 0).all(-1).astype(jnp.float32)
        a = group_advantages(rewards.reshape(-1), GROUP, epsilon=1e-6).reshape(rewards.shape)
        drawn = jax.random.randint(draw, (BATCH,), 0, setting.teachers)
        solution = solutions[index, drawn]

        def value(table):
            own, given = log_probs_of(table[index], ids), log_probs_of(table[index], solution)
            objective = dypo_loss(
                own,
                a,
                jnp.ones(ids.shape),
                rewards,
                given,
                jnp.ones(given.shape),
                reference_log_probs=log_probs_of(start[index], ids),
                group_weight=setting.group_weight,
                beta=setting.beta,
                routing=setting.routing,
            )
            return loss(objective), objective.metrics["hard"][0] / BATCH

        gradient, hard = jax.grad(value, has_aux=True)(table)
        return table - STEP_SIZE * BATCH * gradient, (hard, jnp.linalg.norm(gradient))

    keys = jax.random.split(jax.random.fold_in(key, 2), STEPS)
    table, (hard, norms) = jax.lax.scan(step, start, keys)
    success = jnp.exp(jax.nn.log_softmax(table)[..., 0].sum(axis=1))
    variation = norms.std() / norms.mean()
    return jnp.stack([success[: PROMPTS // 3].mean(), success.mean(), hard[:25].mean(), hard[-25:].mean(), variation])


def run(setting: str, seed: int) -> dict[str, float]:
    """`hard` and `all`: probability of the right completion of hard and of all prompts; `routed_first` and
    `routed_last`: share of prompts of the first and last 25 steps whose completions were all wrong; `variation`:
    standard deviation over mean of the gradient's norm."""
    names = ("hard", "all", "routed_first", "routed_last", "variation")
    return dict(zip(names, map(float, train(NAMED[setting], jax.random.key(seed))), strict=True))
