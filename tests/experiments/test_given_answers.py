"""GRAO (arXiv 2508.07750) and DYPO (arXiv 2604.08926) on table policies: prompts with independent symbols by position.

GRAO: 30 prompts of 6 positions and 16 symbols from a uniform start; the reference answer has 4 symbols of 6 right, the
reward says whether a completion has more (1), as many (0) or fewer (-1). 8 completions, 300 plain gradient steps of
size 2, 4 seeds; what is compared is the mean probability of the right symbol.

DYPO: 60 prompts of 4 positions and 8 symbols, right if all four are; a third is hard (at chance), a third has +2.2
and a third +4 on the right logits. Teachers are right but for 25 % of their symbols, always the same ones. 20 prompts
a step, 8 completions, 250 plain gradient steps of size 6, 5 seeds; what is compared is the probability of the right
completion.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.losses.dypo import dypo_loss
from jaxalign.losses.grao import grao_loss
from jaxalign.objective import loss
from jaxalign.rewards.advantages import group_advantages
from jaxalign.rewards.reference_answer import reference_advantages

GROUP = 8


def log_probs_of(table, ids):
    """[P, ..., T] of completions [P, ..., T] under logits [P, T, V]; the right symbol is 0 everywhere."""
    log_policy = jax.nn.log_softmax(table).reshape(table.shape[0], *[1] * (ids.ndim - 2), *table.shape[1:])
    return jnp.take_along_axis(log_policy, ids[..., None], axis=-1)[..., 0]


def sampled(key, table):
    """[P, GROUP, T]."""
    return jax.random.categorical(key, table[:, None], shape=(len(table), GROUP, table.shape[1]))


@functools.partial(jax.jit, static_argnums=(0, 1))
def train_grao(kind, clamp, key):
    prompts, positions, symbols, right = 30, 6, 16, 4
    places = jnp.broadcast_to(jnp.arange(positions), (prompts, positions))
    places = jax.random.permutation(key, places, 1, independent=True)
    wrong = jax.random.randint(jax.random.fold_in(key, 1), (prompts, positions), 1, symbols)
    answer = jnp.where(places < right, 0, wrong)

    def step(table, key):
        ids = sampled(key, table)
        rewards = jnp.sign((ids == 0).sum(-1) - right).astype(jnp.float32)
        members = jnp.concatenate([rewards, jnp.zeros((prompts, 1))], axis=1)
        mask = jnp.ones(ids.shape)

        def value(table):
            own, given = log_probs_of(table, ids), log_probs_of(table, answer)
            if kind == "sft":
                return -given.mean()
            if kind == "grpo":
                a = group_advantages(rewards.reshape(-1), GROUP, epsilon=1e-8).reshape(prompts, GROUP)
                return -(a[..., None] * own).mean()
            a = reference_advantages(members.reshape(-1), GROUP + 1).reshape(members.shape)
            return loss(grao_loss(own, mask, given, jnp.ones(given.shape), a[:, :-1], a[:, -1], clamp_reference=clamp))

        # Every prompt has a table of its own: a mean over prompts would only make the steps of each smaller.
        table = table - 2.0 * prompts * jax.grad(value)(table)
        return table, jax.nn.softmax(table)[..., 0].mean()

    start = jnp.zeros((prompts, positions, symbols))
    return jax.lax.scan(step, start, jax.random.split(jax.random.fold_in(key, 2), 300))[1]


@functools.cache
def curve(kind, clamp=True):
    keys = jax.random.split(jax.random.key(0), 4)
    return np.asarray(jax.vmap(functools.partial(train_grao, kind, clamp))(keys)).mean(axis=0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def train_dypo(routing, alpha, beta, teachers, key):
    """Success [2] on hard and on all prompts, and the share of hard prompts in the first and last 25 steps."""
    prompts, positions, symbols, batch = 60, 4, 8, 20
    slips = jax.random.bernoulli(jax.random.fold_in(key, 0), 0.25, (prompts, teachers, positions))
    wrong = jax.random.randint(jax.random.fold_in(key, 1), slips.shape, 1, symbols)
    solutions = jnp.where(slips, wrong, 0)
    bonus = jnp.repeat(jnp.array([0.0, 2.2, 4.0]), prompts // 3, total_repeat_length=prompts)
    start = jnp.zeros((prompts, positions, symbols)).at[..., 0].set(bonus[:, None])

    def step(table, key):
        choose, act, draw = jax.random.split(key, 3)
        index = jax.random.permutation(choose, prompts)[:batch]
        ids = sampled(act, table[index])
        rewards = (ids == 0).all(-1).astype(jnp.float32)
        a = group_advantages(rewards.reshape(-1), GROUP, epsilon=1e-6).reshape(rewards.shape)
        drawn = jax.random.randint(draw, (batch,), 0, teachers)
        solution = solutions[index, drawn]

        def value(table):
            own, given = log_probs_of(table[index], ids), log_probs_of(table[index], solution)
            reference = log_probs_of(start[index], ids)
            ones = (jnp.ones(ids.shape), jnp.ones(given.shape))
            objective = dypo_loss(
                own, a, ones[0], rewards, given, ones[1],
                reference_log_probs=reference, group_weight=alpha, beta=beta, routing=routing,
            )  # fmt: skip
            return loss(objective), objective.metrics["hard"][0] / batch

        gradient, hard = jax.grad(value, has_aux=True)(table)
        return table - 6.0 * batch * gradient, hard

    table, hard = jax.lax.scan(step, start, jax.random.split(jax.random.fold_in(key, 2), 250))
    success = jnp.exp(jax.nn.log_softmax(table)[..., 0].sum(axis=1))
    return jnp.stack([success[: prompts // 3].mean(), success.mean(), hard[:25].mean(), hard[-25:].mean()])


@functools.cache
def dypo(routing=True, alpha=0.5, beta=1.0, teachers=3):
    keys = jax.random.split(jax.random.key(0), 5)
    return np.asarray(jax.vmap(functools.partial(train_dypo, routing, alpha, beta, teachers))(keys)).mean(axis=0)


def test_grao_learns_where_all_lose_and_gets_beyond_the_reference():
    final = {kind: curve(kind)[-1] for kind in ("sft", "grpo", "grao")}
    assert final["sft"] < 4 / 6 + 0.01  # no better than what it imitates
    assert final["grpo"] < 0.2  # never a signal
    assert final["grao"] > final["sft"] + 0.15


def test_without_the_clamp_the_reference_is_unlearned_in_the_end():
    unclamped = curve("grao", False)
    assert unclamped.max() > unclamped[-1] + 0.05
    assert curve("grao", True)[-1] > unclamped[-1] + 0.03


def test_dypo_learns_hard_prompts_from_teachers():
    grpo, routed = dypo(routing=False, alpha=1.0), dypo()
    assert grpo[0] < 0.02
    assert routed[0] > 0.6
    assert routed[3] < 0.05 < routed[2]  # the share of hard prompts falls
    assert routed[0] > dypo(teachers=1)[0] + 0.10


def test_the_alignment_loss_adds_to_half_of_grpo_but_not_to_all_of_it():
    """With beta = 0 the alignment loss is constant. Full weight of GRPO does as well without it."""
    assert dypo()[1] > dypo(beta=0.0)[1] + 0.02
    assert abs(dypo(alpha=1.0)[1] - dypo()[1]) < 0.02
