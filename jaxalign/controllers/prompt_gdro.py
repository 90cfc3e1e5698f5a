"""Weights of prompts by difficulty class: the classes where the policy does badly weigh more (Prompt-GDRO)."""

from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from jaxalign.objective import safe_divide

Score = Literal["average", "standardised"]
Weighting = Literal["normalised", "exponential"]


class PromptGdro(NamedTuple):
    average: jax.Array  # [C] float32: moving average of the MEAN loss of each class, so that rare classes count
    seen: jax.Array  # [C] bool: the first mean replaces the average, which takes the bias of its start away


def init(classes: int) -> PromptGdro:
    return PromptGdro(jnp.zeros(classes, jnp.float32), jnp.zeros(classes, bool))


def update(
    state: PromptGdro,
    classes: jax.Array,
    losses: jax.Array,
    *,
    decay: float = 0.12,
    step_size: float = 0.65,
    mixing: float = 0.01,
    max_weight: float = 15.0,
    score: Score = "average",
    limit: float | None = None,
    share_floor: float | None = None,
    weighting: Weighting = "normalised",
) -> tuple[PromptGdro, jax.Array]:
    """Exponential weights on the moving average of each class's loss:

      S_c <- l_c at first sight, else (1 - decay) S_c + decay l_c   (classes that are absent keep S_c)
      q_c = (1 - mixing) exp(step_size s_c) / sum + mixing / (number present), over the classes present
      w_i = q of the class of prompt i, rescaled to mean 1, at most max_weight

    with l_c the mean loss of the batch's prompts of class c, and s_c = S_c or (S_c - mean) / max(0.001, std) over the
    classes seen, within 3. The weights multiply finished advantages; they must not enter the statistics of a group.

    What the loss should be: 1 - mean reward. The surrogate loss -mean A of a group is exactly 0 for
    standardised advantages before the first update, so that the adversary would see nothing on-policy.

    Args:
      state: from `init` or the last `update`.
      classes: [N] int, of the prompts of the batch, from before their outcomes were known.
      losses: [N]; NaN = not scorable, left out of the mean.
      decay: beta in (0, 1].
      step_size: eta, per unit of loss.
      mixing: gamma in [0, 1], the share of the uniform distribution.
      max_weight: of one prompt; the mean of the weights is below 1 where it acts.
      score: see above.
      limit: |s_c| is at most this (the paper); off by default.
      share_floor: l_c is divided by max(share of the class in the batch, this floor); off by default. Without a floor
        a class of one percent would be multiplied by 100.
      weighting: "exponential" is the paper's w = min(exp(step_size s_c), max_weight), not normalised; "normalised"
        that of its released code.

    Returns:
      (state, weights [N]), constants.

    Raises:
      ValueError: an unknown score or weighting.

    GDRO: arXiv 2601.19280.
    """
    chex.assert_rank([classes, losses], 1)
    chex.assert_equal_shape([classes, losses])
    if score not in get_args(Score) or weighting not in get_args(Weighting):
        raise ValueError(
            f"score={score!r} or weighting={weighting!r} is not known; choose from {get_args(Score)}, "
            f"{get_args(Weighting)}"
        )
    size = state.average.shape[0]
    losses = jax.lax.stop_gradient(jnp.asarray(losses, jnp.float32))
    member = jax.nn.one_hot(classes, size)  # [N, C]
    scored = member * ~jnp.isnan(losses)[:, None]
    count = scored.sum(axis=0)
    mean = safe_divide(scored.T @ jnp.nan_to_num(losses), count)
    if share_floor is not None:
        mean = mean / jnp.maximum(safe_divide(count, count.sum()), share_floor)
    moved = jnp.where(state.seen, (1 - decay) * state.average + decay * mean, mean)
    state = PromptGdro(jnp.where(count > 0, moved, state.average), state.seen | (count > 0))

    s = state.average
    if score == "standardised":
        known = state.seen.astype(jnp.float32)
        centred = jnp.where(state.seen, s - safe_divide((s * known).sum(), known.sum()), 0)
        std = jnp.sqrt(safe_divide((centred**2).sum(), known.sum()))
        s = jnp.clip(centred / jnp.maximum(std, 1e-3), -3, 3)
    if limit is not None:
        s = jnp.clip(s, -limit, limit)
    if weighting == "exponential":
        return state, jnp.minimum(jnp.exp(step_size * s), max_weight)[classes]
    present = member.sum(axis=0) > 0
    softmax = jax.nn.softmax(jnp.where(present, step_size * s, -jnp.inf))
    q = jnp.where(present, (1 - mixing) * softmax + safe_divide(jnp.asarray(mixing), present.sum()), 0)
    weights = q[classes]
    return state, jnp.minimum(safe_divide(weights, weights.mean()), max_weight)
