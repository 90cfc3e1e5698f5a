"""Advantages: how good is a completion, relative to what?

Rewards [B] of P prompts times G completions (those of a prompt next to each other) become advantages
[B], the factors of the policy gradient. A NaN reward means "not scorable": it is left out of every
statistic and its advantage is 0. Rewards are constants here: nothing receives gradient. Token-level
advantages (PPO) are in `jaxalign.rewards.gae`.
"""

import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args

import chex
import jax
import jax.numpy as jnp

from jaxalign.errors import UserError
from jaxalign.objective import safe_divide
from jaxalign.rewards import statistics
from jaxalign.rewards.groups import constants, grouped
from jaxalign.rewards.median import median_advantages
from jaxalign.rewards.reference_answer import reference_advantages

Scale = Literal["group", "batch", "none"]
Combination = Literal["sum", "normalise_each"]


def group_advantages(
    rewards: jax.Array, group_size: int, *, scale: Scale = "group", ddof: int = 1, epsilon: float = 1e-4
) -> jax.Array:
    """A = (r - mean_g) / (s + epsilon), with mean_g over the rewards of the same prompt.

    `scale` says what s is:
    - "group": the standard deviation of the group (GRPO);
    - "batch": that of all rewards of the batch;
    - "none": A = r - mean_g, not divided at all (Dr. GRPO).

    A group of equal rewards gives exact zeros, and so does G = 1.

    Args:
      rewards: [B], groups next to each other; NaN = not scorable.
      group_size: G, completions per prompt; divides B.
      scale: see above.
      ddof: s^2 is the sum of squares divided by (number of rewards - ddof).
      epsilon: in units of reward; 1e-4 in TRL, 1e-6 in Tunix and verl.

    Returns:
      [B] advantages.

    Raises:
      UserError: G does not divide B, or an unknown scale.

    GRPO: arXiv 2402.03300, section 4.1.2; Dr. GRPO: arXiv 2503.20783, section 3.2.
    """
    groups = grouped(rewards, group_size)
    if scale not in get_args(Scale):
        raise UserError(f"scale={scale!r} of group advantages is not known; choose one of {get_args(Scale)}")
    scorable = ~jnp.isnan(groups)
    centred = statistics.deviations(groups, scorable)
    if scale == "group":
        centred = statistics.scaled(centred, jnp.sqrt(statistics.variance(centred, scorable, ddof=ddof)) + epsilon)
    elif scale == "batch":
        of_batch = statistics.deviations(groups, scorable, axis=None)
        variance = statistics.variance(of_batch, scorable, ddof=ddof, axis=None)
        centred = statistics.scaled(centred, jnp.sqrt(variance) + epsilon)
    return centred.reshape(-1)


def leave_one_out_advantages(
    rewards: jax.Array, group_size: int, *, standardise: bool = False, epsilon: float = 1e-4
) -> jax.Array:
    """A_i = r_i - mean of the other rewards of its group = G / (G - 1) (r_i - mean_g)   (RLOO).

    Equal rewards and G = 1 give exact zeros.

    Args:
      rewards: [B], groups next to each other; NaN = not scorable (G is then the number of the others).
      group_size: G, completions per prompt; divides B.
      standardise: A <- (A - mean) / (std + epsilon) over the batch, with ddof 1.
      epsilon: in units of reward.

    Returns:
      [B] advantages.

    Raises:
      UserError: G does not divide B.

    RLOO: arXiv 2402.14740; the estimator is that of Kool et al., "Buy 4 REINFORCE samples, get a baseline
    for free!" (2019).
    """
    groups = grouped(rewards, group_size)
    scorable = ~jnp.isnan(groups)
    count = scorable.sum(axis=1, keepdims=True).astype(groups.dtype)
    result = statistics.deviations(groups, scorable) * safe_divide(count, count - 1)
    if standardise:
        result = statistics.deviations(result, scorable, axis=None)
        variance = statistics.variance(result, scorable, ddof=1, axis=None)
        result = statistics.scaled(result, jnp.sqrt(variance) + epsilon)
    return result.reshape(-1)


def baseline_advantages(
    rewards: jax.Array,
    baseline: str | float | jax.Array = "batch_mean",
    *,
    whiten: bool = False,
    ddof: int = 1,
    epsilon: float = 1e-8,
) -> jax.Array:
    """A = r - b   (REINFORCE with a baseline).

    Args:
      rewards: [B]; NaN = not scorable.
      baseline: b: "batch_mean", one number, or an array [] or [B] in units of reward. A moving average
        comes from `jaxalign.controllers.ema_baseline`.
      whiten: A <- (A - mean) / sqrt(variance + epsilon) over the batch.
      ddof, epsilon: of the whitening.

    Returns:
      [B] advantages.

    Raises:
      UserError: an unknown baseline.

    REINFORCE: R. J. Williams, Machine Learning 8 (1992), equation 11.
    """
    chex.assert_rank(rewards, 1)
    values = constants(rewards)
    scorable = ~jnp.isnan(values)
    if not isinstance(baseline, str):
        b = jnp.asarray(baseline, values.dtype)
        chex.assert_rank(b, {0, 1})
        result = jnp.where(scorable, values - jax.lax.stop_gradient(b), 0)
    elif baseline == "batch_mean":
        result = statistics.deviations(values, scorable)
    else:
        raise UserError(f"baseline {baseline!r} is not known; use 'batch_mean', a number or an array")
    return statistics.whiten(result, scorable, ddof=ddof, epsilon=epsilon) if whiten else result


def batch_mean_advantages(
    rewards: jax.Array, group_size: int, *, whiten: bool = False, ddof: int = 1, epsilon: float = 1e-8
) -> jax.Array:
    """`baseline_advantages` with the mean of the batch, which knows no groups; G must divide B all the same."""
    values = grouped(rewards, group_size).reshape(-1)
    return baseline_advantages(values, "batch_mean", whiten=whiten, ddof=ddof, epsilon=epsilon)


ADVANTAGES: dict[str, Callable[..., jax.Array]] = {
    "group": group_advantages,
    "leave_one_out": leave_one_out_advantages,
    "batch_mean": batch_mean_advantages,
    "median": median_advantages,
    "reference": reference_advantages,
}


def advantages(kind: str, rewards: jax.Array, group_size: int, **options: Any) -> jax.Array:
    """Advantages [B] of the kind named, with its keyword options.

    Raises:
      UserError: an unknown kind or option, or a group size that does not divide B; when tracing.
    """
    if kind not in ADVANTAGES:
        raise UserError(f"advantages of kind {kind!r} are not known; choose from {', '.join(sorted(ADVANTAGES))}")
    parameters = inspect.signature(ADVANTAGES[kind]).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise UserError(f"advantages of kind {kind!r} have no option {option!r}; they have {', '.join(known)}")
    return ADVANTAGES[kind](rewards, group_size, **options)


def groups_with_signal(rewards: jax.Array, group_size: int) -> jax.Array:
    """[P] bool: does the prompt's group hold two different (scorable) rewards?

    The others have zero advantage everywhere; DAPO samples them anew (arXiv 2503.14476, equation 11).
    UserError if G does not divide B.
    """
    groups = grouped(rewards, group_size)
    return ~statistics.all_equal(groups, ~jnp.isnan(groups))[:, 0]


def combine_rewards(
    rewards: jax.Array,
    weights: jax.Array,
    group_size: int,
    *,
    how: Combination = "sum",
    scale: Scale = "group",
    ddof: int = 1,
    epsilon: float = 1e-4,
) -> jax.Array:
    """K rewards of a completion as one.

    - "sum": sum_k w_k r_k. Follow with any kind of advantages.
    - "normalise_each": each reward becomes its `group_advantages` (with `scale`, `ddof`, `epsilon`), so
      that none drowns another by its spread; then sum_k w_k A_k; then (x - mean) / (std + epsilon) over
      the batch. The mean of every group is 0 already: follow with `group_advantages(scale="none")`,
      which changes nothing, and not with another division.

    Args:
      rewards: [N, K]; NaN = not scorable, which adds 0.
      weights: [K].
      group_size: G, completions per prompt; divides N.
      how: see above.
      scale, ddof, epsilon: of "normalise_each".

    Returns:
      [N]; NaN where all K rewards are NaN.

    Raises:
      UserError: K weights are expected, G does not divide N, or an unknown `how`.

    "normalise_each" is `multi_objective_aggregation="normalize_then_sum"` of TRL.
    """
    chex.assert_rank([rewards, weights], [2, 1])
    if rewards.shape[1] != weights.shape[0]:
        raise UserError(f"{weights.shape[0]} weights are given for {rewards.shape[1]} rewards")
    if how not in get_args(Combination):
        raise UserError(f"how={how!r} of combining rewards is not known; choose one of {get_args(Combination)}")
    grouped(rewards[:, 0], group_size)
    values = constants(rewards)
    scorable = ~jnp.isnan(values)
    if how == "normalise_each":
        columns = [
            group_advantages(column, group_size, scale=scale, ddof=ddof, epsilon=epsilon)
            for column in jnp.unstack(values, axis=1)
        ]
        values = jnp.stack(columns, axis=1)
    known = scorable.any(axis=1)
    combined = jnp.where(scorable, values, 0) @ jnp.asarray(weights, values.dtype)
    if how == "normalise_each":
        combined = statistics.deviations(combined, known)
        combined = statistics.scaled(combined, jnp.sqrt(statistics.variance(combined, known, ddof=ddof)) + epsilon)
    return jnp.where(known, combined, jnp.nan)
