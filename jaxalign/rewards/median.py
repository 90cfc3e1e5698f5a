"""Advantages around the median of a group: fewer wrong signs than around the mean where groups are small (MC-GRPO)."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jaxalign.errors import UserError
from jaxalign.objective import safe_divide
from jaxalign.rewards import statistics
from jaxalign.rewards.groups import grouped

MedianScale = Literal["mad", "std", "none"]


def _middle(values: jax.Array, counts: jax.Array) -> jax.Array:
    """[P, 1]: the middle order statistic (of two the lower) of the counting entries of each row; 0 if none."""
    ordered = jnp.sort(jnp.where(counts, values, jnp.inf), axis=1)
    number = counts.sum(axis=1, keepdims=True)
    middle = jnp.take_along_axis(ordered, jnp.maximum(number - 1, 0) // 2, axis=1)
    return jnp.where(number > 0, middle, 0)


def median_advantages(
    rewards: jax.Array,
    group_size: int,
    *,
    scale: MedianScale = "mad",
    epsilon: float = 1e-3,
    compensate: bool = False,
    limit: float | None = None,
) -> jax.Array:
    """A = (r - m) / (s + epsilon), with m the median of the group.

    `scale` says what s is:
    - "mad": the median of |r - m| (no factor 1.4826);
    - "std": the standard deviation of the group, ddof 1;
    - "none": A = r - m, not divided at all.

    Medians are the middle order statistic, of two middle ones the lower. The completion at the median, the
    pivot, has A = 0 and is to be left out of the update (`jaxalign.rewards.groups.kept_completions`), so that of
    G + 1 completions G are trained on. With an even number of completions more than the pivot may have A = 0.
    A group of equal rewards gives exact zeros.

    With binary rewards and an odd group the MAD is always 0: the minority of a group gets +-1 / epsilon and everybody
    else exactly 0. Successes are then reinforced only where they are rarer than failures and failures punished only
    where those are rarer, with a size set by epsilon; choose scale="none", or a `limit` of 5 to 10, for such rewards.

    Args:
      rewards: [B], groups next to each other; NaN = not scorable.
      group_size: completions sampled per prompt, G + 1 and odd; divides B.
      scale: see above.
      epsilon: in units of reward. 1e-3 in the released code, 1e-4 with its "std".
      compensate: A <- A n / (number of |A| > 1e-6) per group, n being its scorable completions (one of the two
        released trainers).
      limit: of |A|; off by default, not in the paper.

    Returns:
      [B] advantages, constants.

    Raises:
      UserError: the group size does not divide B, or an unknown scale.

    MC-GRPO: arXiv 2601.22582.
    """
    groups = grouped(rewards, group_size)
    if scale not in get_args(MedianScale):
        raise UserError(f"scale={scale!r} of median advantages is not known; choose one of {get_args(MedianScale)}")
    scorable = ~jnp.isnan(groups)
    groups = jnp.where(scorable, groups, 0)
    result = jnp.where(scorable, groups - _middle(groups, scorable), 0)
    if scale == "mad":
        result = statistics.scaled(result, _middle(jnp.abs(result), scorable) + epsilon)
    elif scale == "std":
        variance = statistics.variance(statistics.deviations(groups, scorable), scorable, ddof=1)
        result = statistics.scaled(result, jnp.sqrt(variance) + epsilon)
    if compensate:
        active = (jnp.abs(result) > 1e-6).sum(axis=1, keepdims=True)
        result = result * safe_divide(scorable.sum(axis=1, keepdims=True).astype(result.dtype), active)
    if limit is not None:
        result = jnp.clip(result, -limit, limit)
    return result.reshape(-1)


def sign_flip_rate(advantages: jax.Array, rewards: jax.Array, baseline: jax.Array, kept: jax.Array) -> jax.Array:
    """Share of the kept completions whose advantage has the opposite sign of `rewards - baseline`.

    With the median of an odd number 2k + 1 of continuous rewards, the pivot left out and the population's median as
    baseline it is (1/2k) sum_j C(2k + 1, j) 2^-(2k + 1) (k - j if j <= k else j - k - 1), whatever the law of the
    rewards: 1/8, 7/64, 19/192. With the mean of two rewards of a symmetric law it is 1/4.

    All arguments have one shape (`baseline` broadcasts to it). 0 if nothing is kept.
    """
    wrong = (advantages * (rewards - baseline) < 0) & kept
    return safe_divide(wrong.sum().astype(jnp.float32), kept.sum())
