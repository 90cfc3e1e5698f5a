"""The whole loss of PPO: the clipped surrogate, and the regression of the value function beside it."""

import jax

from jaxalign.losses.kl import KlKind
from jaxalign.losses.policy_gradient import policy_loss
from jaxalign.losses.value import value_loss
from jaxalign.objective import Objective


def ppo_loss(
    log_probs: jax.Array,
    values: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    old_values: jax.Array,
    returns: jax.Array,
    old_log_probs: jax.Array | None = None,
    reference_log_probs: jax.Array | None = None,
    entropy: jax.Array | None = None,
    value_coefficient: float = 0.1,
    value_clip: float | None = 0.2,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    kl_coefficient: float = 0.0,
    kl: KlKind = "k3",
    entropy_coefficient: float = 0.0,
) -> Objective:
    """policy_loss + value_coefficient value_loss, both as means over tokens.

    Gradient flows into `log_probs`, `entropy` and `values`. What stands at mask 0 has no effect.

    Args:
      log_probs: [B, T] in nats, of the sampled tokens under the policy.
      values: [B, T] of the value function before each token was taken, in units of reward.
      advantages, returns: [B, T] constants (`jaxalign.rewards.gae.gae`; advantages whitened).
      mask: [B, T], 1 = counts.
      old_values: [B, T] at the time of sampling.
      old_log_probs: [B, T]; None: the policy of this very update sampled.
      reference_log_probs, entropy: as in `policy_loss`.
      value_coefficient: c1 of the paper; 0.1 in TRL, 0.5 where policy and value share nothing.
      value_clip: see `value_loss`.
      The others: as in `policy_loss`.

    Returns:
      An Objective with the metrics of both, and value_loss.

    PPO: arXiv 1707.06347, equation 9 (its sign turned; the entropy bonus is `entropy_coefficient`).
    """
    policy = policy_loss(
        log_probs,
        advantages,
        mask,
        old_log_probs=old_log_probs,
        reference_log_probs=reference_log_probs,
        entropy=entropy,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        kl_coefficient=kl_coefficient,
        kl=kl,
        entropy_coefficient=entropy_coefficient,
        aggregation="token-mean",
    )
    value = value_loss(values, old_values, returns, mask, clip=value_clip)
    constants = jax.lax.stop_gradient((value.total, value.weight))
    return Objective(
        policy.total + value_coefficient * value.total,
        policy.weight,
        policy.metrics | value.metrics | {"value_loss": constants},
    )
