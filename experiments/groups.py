"""The batch of a step's updates: groups of completions, and what may be left out of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.losses.aggregation import aggregate
from jaxalign.rewards.groups import kept_completions


class Groups(NamedTuple):
    """A batch of P prompts with G completions each; every array has the prompts in front.

    Where prompts have different numbers of completions, each completion is a row with G = 1 of its own.
    """

    prompts: chex.Array  # [P, S]
    prompt_lengths: chex.Array  # [P]
    completions: chex.Array  # [P, G, T]
    mask: chex.Array  # [P, G, T]
    advantages: chex.Array  # [P, G], or [P, G, T] where a value function makes them
    absent_weight: chex.Array  # [P]; their sum is the loss weight of groups that were left out
    old_log_probs: chex.Array | None  # [P, G, T]; None: the policy of this very update sampled them
    reference_log_probs: chex.Array | None  # [P, G, T]; None: no KL term in the loss
    rewards: chex.Array | None = None  # [P, G], where a loss grades its groups itself; NaN = not scorable
    old_values: chex.Array | None = None  # [P, G, T] of the value function that was there at sampling
    returns: chex.Array | None = None  # [P, G, T] what it should have said

    def change_groups(self, change: Callable[[np.ndarray], np.ndarray]) -> "Groups":
        """The batch with `change` applied to every array [P, G, ...]."""
        names = ("completions", "mask", "advantages", "old_log_probs", "reference_log_probs", "rewards")
        arrays = {name: getattr(self, name) for name in names}
        return self._replace(**{name: change(x) for name, x in arrays.items() if x is not None})


def reference_use(config) -> str:
    """What the reference policy is for: "loss", "reward", "report" or "" (it is not held at all)."""
    if config.rl.loss.get("kl_coefficient") or config.rl.loss.get("group_weight", 1.0) < 1:
        return "loss"
    if config.reward.kl_coefficient:
        return "reward"
    return "report" if config.rl.report_kl_prompts else ""


def has_critic(config) -> bool:
    """Whether a value function makes the advantages."""
    return config.experiment == "rl" and config.rl.objective == "ppo_loss"


def abstract_groups(config, width: int, *, with_old: bool) -> Groups:
    """The shapes of a step's batch, for prompts of `width` tokens."""
    prompts, group_size = config.rollout.prompts_per_step, config.rollout.group_size - config.rl.leave_out
    if config.prompts.allocation.enabled:
        prompts, group_size = prompts * group_size, 1
    group_size += bool(config.data.answer_fields)
    tokens = jax.ShapeDtypeStruct((prompts, group_size, config.rollout.max_new_tokens), jnp.float32)
    whole = jax.ShapeDtypeStruct(tokens.shape, jnp.int32)
    each = jax.ShapeDtypeStruct((prompts, group_size), jnp.float32)
    with_critic = has_critic(config)
    return Groups(
        prompts=jax.ShapeDtypeStruct((prompts, width), jnp.int32),
        prompt_lengths=jax.ShapeDtypeStruct((prompts,), jnp.int32),
        completions=whole,
        mask=tokens,
        advantages=tokens if with_critic else each,
        absent_weight=jax.ShapeDtypeStruct((prompts,), jnp.float32),
        old_log_probs=tokens if with_old else None,
        reference_log_probs=tokens if reference_use(config) == "loss" else None,
        rewards=each if config.data.answer_fields else None,
        old_values=tokens if with_critic else None,
        returns=tokens if with_critic else None,
    )


def update_batches(batch: Groups, rl, seed: int, step: int):
    """The batches of a step's updates: `epochs` passes over the prompts in new random orders, each in equal parts."""
    prompts = len(batch.prompts)
    for epoch in range(rl.epochs):
        order = np.arange(prompts)
        if rl.batches_per_epoch > 1:
            order = np.random.default_rng((seed, step, epoch)).permutation(prompts)
        for part in np.split(order, rl.batches_per_epoch):
            yield batch if rl.batches_per_epoch == 1 else jax.tree.map(lambda x, part=part: x[part], batch)


def drop_silent_groups(batch: Groups, multiple: int, aggregation: str, count_empty: bool) -> Groups:
    """The batch without the groups whose advantages are all 0, filled up with empty ones to a multiple of prompts.

    Without a KL and an entropy term such groups add nothing to the loss but their weight, which is kept
    (`absent_weight`): loss and gradient stay the same. The metrics of the loss are then those of the groups left.
    """
    loud = (batch.advantages != 0).any(axis=-1)
    order = np.argsort(~loud, kind="stable")
    size = max(-(-int(loud.sum()) // multiple), 1) * multiple
    if size >= len(order):
        return batch
    kept = jax.tree.map(lambda x: x[order[:size]], batch)
    mask = kept.mask * loud[order[:size], None, None]

    def weight(mask) -> float:
        flat = mask.reshape(-1, mask.shape[-1])
        # The weight of scaled sums is that of plain ones.
        mode = "seq-mean-token-sum" if aggregation == "seq-mean-token-scale" else aggregation
        return float(aggregate(np.zeros_like(flat), flat, mode, count_empty=count_empty)[1])

    absent = (weight(batch.mask) - weight(mask)) / size
    return kept._replace(mask=mask, absent_weight=np.full(size, absent, np.float32))


def with_signal(batches: Sequence[Groups], signal: Sequence[np.ndarray], prompts: int) -> Groups:
    """The first `prompts` groups with a signal [P] of several batches (DAPO's dynamic sampling).

    If there are not enough, groups without one fill up the shape; they are masked and count nothing.
    """
    width = max(batch.prompts.shape[1] for batch in batches)
    padded = [b._replace(prompts=np.pad(b.prompts, ((0, 0), (0, width - b.prompts.shape[1])))) for b in batches]
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *padded)
    loud = np.concatenate(signal)
    order = np.argsort(~loud, kind="stable")[:prompts]
    kept = jax.tree.map(lambda x: x[order], together)
    return kept._replace(mask=kept.mask * loud[order, None, None])


def without_smallest(batch: Groups, weights: np.ndarray, rewards: np.ndarray, leave_out: int) -> Groups:
    """Groups without the `leave_out` completions of smallest |advantage|; others that are not kept are masked."""
    found = kept_completions(jnp.asarray(weights.reshape(-1)), rewards.reshape(-1), rewards.shape[1], leave_out)
    indices, kept = map(np.asarray, found)

    def taken(x):
        return np.take_along_axis(x, indices.reshape(*indices.shape, *[1] * (x.ndim - 2)), axis=1)

    batch = batch.change_groups(taken)
    return batch._replace(mask=batch.mask * kept[..., None])
