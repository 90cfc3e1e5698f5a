"""The clipped policy-gradient loss, whose settings are PPO, RLOO, GRPO, Dr. GRPO, DAPO, GSPO and REINFORCE.

What the methods change is the advantage (`jaxalign.rewards`), the level of the importance ratio, the
clip range, the KL term and the aggregation. The settings of each are in `jaxalign.methods`.
"""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.aggregation import Aggregation, aggregate, masked, sum_type, token_means, where_counted
from jaxalign.losses.kl import KlKind, kl_estimate
from jaxalign.objective import Objective, safe_divide

RatioLevel = Literal["token", "sequence", "sequence-token", "sequence-sum", "on-policy"]


def log_importance_ratio(
    log_probs: jax.Array,
    old_log_probs: jax.Array | None,
    mask: jax.Array,
    level: RatioLevel = "token",
    *,
    log_ratio_clamp: float | None = None,
) -> jax.Array:
    """The logarithm of `importance_ratio`, [B, T]."""
    if level not in get_args(RatioLevel):
        raise ValueError(f"unknown level of the importance ratio {level!r}; choose one of {get_args(RatioLevel)}")
    dtype = sum_type(log_probs)
    log_probs = where_counted(log_probs, mask, dtype)
    constant = jax.lax.stop_gradient(log_probs)
    if old_log_probs is None or level == "on-policy":
        old_log_probs = constant
    difference = log_probs - jax.lax.stop_gradient(where_counted(old_log_probs, mask, dtype))
    if level in ("token", "on-policy"):
        log_ratio = difference
    else:
        per_row = masked(difference, mask).sum(axis=1, keepdims=True)
        if level != "sequence-sum":
            per_row = safe_divide(per_row, mask.astype(dtype).sum(axis=1, keepdims=True))
        if level == "sequence-token":
            log_ratio = log_probs - constant + jax.lax.stop_gradient(per_row)
        else:
            log_ratio = jnp.broadcast_to(per_row, difference.shape)
    return log_ratio if log_ratio_clamp is None else jnp.clip(log_ratio, -log_ratio_clamp, log_ratio_clamp)


def importance_ratio(
    log_probs: jax.Array,
    old_log_probs: jax.Array | None,
    mask: jax.Array,
    level: RatioLevel = "token",
    *,
    log_ratio_clamp: float | None = None,
) -> jax.Array:
    """rho [B, T]: how much likelier the policy makes what the old policy sampled.

    With d_t = log_prob_t - old_log_prob_t and sums and means over the tokens of a row that count:

    | level          | rho_t                                       | gradient of log rho_t      |
    |----------------|---------------------------------------------|----------------------------|
    | token          | exp(d_t)                                    | that of log_prob_t         |
    | sequence       | exp(mean d)   (GSPO)                        | that of the mean log-prob  |
    | sequence-token | exp(mean d)   (GSPO-token)                  | that of log_prob_t         |
    | sequence-sum   | exp(sum d)    (RLOO)                        | that of the summed log-prob|
    | on-policy      | 1, whatever `old_log_probs` are (REINFORCE) | that of log_prob_t         |

    Gradient flows into `log_probs` only.

    Args:
      log_probs: [B, T] in nats, under the policy.
      old_log_probs: [B, T] under the policy that sampled; None: `log_probs` held constant, so that rho = 1.
      mask: [B, T], 1 = counts. At mask 0 the result is finite and without meaning.
      level: see above.
      log_ratio_clamp: limits log rho to [-clamp, clamp]; no gradient flows beyond. Off by default (verl: 20).

    Raises:
      ValueError: unknown level.

    GSPO: arXiv 2507.18071, equation 7; GSPO-token: equation 14.
    """
    return jnp.exp(log_importance_ratio(log_probs, old_log_probs, mask, level, log_ratio_clamp=log_ratio_clamp))


def _check_clips(clip_low: float, clip_high: float, dual_clip: float | None, ratio_cap: float | None) -> None:
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip_low={clip_low} and clip_high={clip_high} are distances from 1 and cannot be negative")
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip={dual_clip} is a limit of the ratio and must be more than 1")
    if ratio_cap is not None and ratio_cap <= 1 + clip_high:
        raise ValueError(f"ratio_cap={ratio_cap} must be more than 1 + clip_high = {1 + clip_high}")


def _is_zero(coefficient: float | jax.Array) -> bool:
    return isinstance(coefficient, int | float) and coefficient == 0


def policy_loss(
    log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    old_log_probs: jax.Array | None = None,
    reference_log_probs: jax.Array | None = None,
    entropy: jax.Array | None = None,
    ratio: RatioLevel = "token",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    ratio_cap: float | None = None,
    kl_coefficient: float | jax.Array = 0.0,
    kl: KlKind = "k3",
    entropy_coefficient: float | jax.Array = 0.0,
    aggregation: Aggregation = "seq-mean-token-mean",
    scale_length: float | None = None,
    count_empty: bool = False,
    log_ratio_clamp: float | None = None,
    kl_value_clamp: float | None = None,
) -> Objective:
    """The clipped surrogate loss of PPO and its descendants.

    With rho the importance ratio and A the advantage, per token:

      o = min(min(rho, ratio_cap) A, clip(rho, 1 - clip_low, 1 + clip_high) A)
      o = max(o, dual_clip A)   where A < 0
      loss = -o + kl_coefficient KL - entropy_coefficient H

    aggregated by `aggregation`. Gradient flows into `log_probs` (through rho and KL) and `entropy`.
    What stands at mask 0 has no effect on values or gradients.

    REINFORCE is ratio="on-policy" with aggregation="seq-mean-token-sum": the gradient is that of
    -(1/S) sum_i A_i sum_t mask log_prob, while the value, with rho = 1, is -(1/S) sum_i A_i n_i. RLOO is
    ratio="sequence-sum" with "seq-mean-token-mean": o is one number per row, and its mean over the row
    is that number.

    Args:
      log_probs: [B, T] in nats, of the sampled tokens under the policy. bfloat16 is summed in float32.
      advantages: [B] or [B, T]; constants.
      mask: [B, T], 1 = counts.
      old_log_probs: [B, T] under the policy that sampled; None: on-policy.
      reference_log_probs: [B, T] under the reference; needed for a KL term, and reported if given.
      entropy: [B, T] in nats; needed for an entropy term, and reported if given.
      ratio: level of the importance ratio, see `importance_ratio`.
      clip_low, clip_high: distances of the clip range from 1.
      dual_clip: c > 1, limits the loss of a token with negative advantage (3 in verl); off by default.
      ratio_cap: upper limit of rho outside the clip term; off by default.
      kl_coefficient: beta, per nat. May be a traced scalar.
      kl: estimate of KL(policy || reference) used as a loss term, see `kl_estimate`.
      entropy_coefficient: c_H, per nat. May be a traced scalar.
      aggregation, scale_length, count_empty: see `aggregate`.
      log_ratio_clamp: limits log rho and the log-ratio of the KL to [-clamp, clamp]; off by default.
      kl_value_clamp: limits the KL estimate in the loss; off by default.

    Returns:
      An Objective whose metrics are token means: clip_fraction, clip_fraction_low (A < 0 and
      rho < 1 - clip_low), clip_fraction_high (A > 0 and rho > 1 + clip_high), ratio, kl (k3, unclamped in
      value, whatever `kl` is) if a reference is given, entropy if given.

    Raises:
      ValueError: a term without its input, a limit out of its range, an unknown name.

    PPO: arXiv 1707.06347, equation 7; GRPO: arXiv 2402.03300, equation 3; Dr. GRPO: arXiv 2503.20783; DAPO:
    arXiv 2503.14476, equation 8; GSPO: arXiv 2507.18071, equation 5; RLOO: arXiv 2402.14740; dual clip:
    arXiv 1912.09729; ratio cap: arXiv 2505.07291.
    """
    _check_clips(clip_low, clip_high, dual_clip, ratio_cap)
    if reference_log_probs is None and not _is_zero(kl_coefficient):
        raise ValueError(f"kl_coefficient={kl_coefficient} needs reference_log_probs")
    if entropy is None and not _is_zero(entropy_coefficient):
        raise ValueError(f"entropy_coefficient={entropy_coefficient} needs the entropy")
    mask = jnp.asarray(mask)
    chex.assert_rank([log_probs, mask, advantages], [2, 2, {1, 2}])
    chex.assert_equal_shape(
        [x for x in (log_probs, mask, old_log_probs, reference_log_probs, entropy) if x is not None]
    )
    chex.assert_equal_shape_prefix([log_probs, advantages], advantages.ndim)
    dtype = sum_type(log_probs)
    per_token = advantages if advantages.ndim == 2 else jnp.broadcast_to(advantages[:, None], mask.shape)
    a = jax.lax.stop_gradient(where_counted(per_token, mask, dtype))
    log_probs = where_counted(log_probs, mask, dtype)
    log_rho = log_importance_ratio(log_probs, old_log_probs, mask, ratio, log_ratio_clamp=log_ratio_clamp)
    rho = jnp.exp(jax.lax.stop_gradient(log_rho))

    # min and max of multiples of A are limits of rho that depend on the sign of A. Written so, a token
    # beyond its limit takes no part in exp: where rho overflows its gradient would be 0 * inf.
    limits = [limit for limit in (dual_clip, ratio_cap) if limit is not None]
    upper = jnp.where(a < 0, min(limits, default=jnp.inf), 1 + clip_high)
    lower = jnp.where(a < 0, 1 - clip_low, -jnp.inf)
    too_low, too_high = rho < lower, rho > upper
    inside = jnp.exp(jnp.where(too_low | too_high, 0, log_rho))
    per_token_loss = -jnp.where(too_low, lower, jnp.where(too_high, upper, inside)) * a

    means: dict[str, jax.Array] = {
        "clip_fraction_low": too_low,
        "clip_fraction_high": too_high & (a > 0),
        "ratio": rho,
    }
    means["clip_fraction"] = means["clip_fraction_low"] | means["clip_fraction_high"]
    if reference_log_probs is not None:
        reference = where_counted(reference_log_probs, mask, dtype)
        means["kl"] = kl_estimate(log_probs, reference, "k3", log_ratio_clamp=log_ratio_clamp)
        if not _is_zero(kl_coefficient):
            term = kl_estimate(log_probs, reference, kl, log_ratio_clamp=log_ratio_clamp, value_clamp=kl_value_clamp)
            per_token_loss = per_token_loss + kl_coefficient * term
    if entropy is not None:
        means["entropy"] = where_counted(entropy, mask, dtype)
        if not _is_zero(entropy_coefficient):
            per_token_loss = per_token_loss - entropy_coefficient * means["entropy"]
    total, weight = aggregate(per_token_loss, mask, aggregation, scale_length=scale_length, count_empty=count_empty)
    return Objective(total, weight, token_means(means, mask, dtype))
