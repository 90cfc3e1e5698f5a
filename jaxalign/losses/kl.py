"""Per-token estimates of KL(policy || reference) from the log-probs of sampled tokens."""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

KlKind = Literal["k1", "k2", "k3"]


def kl_estimate(
    log_probs: jax.Array,
    reference_log_probs: jax.Array,
    kind: KlKind,
    *,
    log_ratio_clamp: float | None = None,
    value_clamp: float | None = None,
) -> jax.Array:
    """Estimates KL(policy || reference) at every sampled token, in nats.

    With d = reference_log_probs - log_probs, and tokens drawn from the policy:

    - k1 = -d: unbiased in value. As a loss term its expected gradient is 0: it regularises nothing
      on-policy and belongs in the reward.
    - k2 = d^2 / 2: biased in value; its expected gradient is that of KL(policy || reference).
    - k3 = exp(d) - d - 1: unbiased and never negative; its expected gradient is that of the reverse
      divergence KL(reference || policy).

    Gradient flows into `log_probs` only.

    Args:
      log_probs: log-probs under the policy, any shape.
      reference_log_probs: log-probs of the same tokens under the reference, same shape, constant.
      kind: which estimate.
      log_ratio_clamp: limits d to [-clamp, clamp] first (20 in some code bases; off by default). No
        gradient flows where the limit is reached.
      value_clamp: limits the estimate itself to [-clamp, clamp] (10 in some code bases).

    Raises:
      ValueError: unknown kind.

    Estimators k1, k2, k3: J. Schulman, "Approximating KL divergence" (2020); k3 as a loss term is
    equation 4 of DeepSeekMath, arXiv 2402.03300.
    """
    chex.assert_equal_shape([log_probs, reference_log_probs])
    if kind not in get_args(KlKind):
        raise ValueError(f"unknown KL estimate {kind!r}; choose one of {get_args(KlKind)}")
    d = jax.lax.stop_gradient(reference_log_probs) - log_probs
    if log_ratio_clamp is not None:
        d = jnp.clip(d, -log_ratio_clamp, log_ratio_clamp)
    if kind == "k1":
        value = -d
    elif kind == "k2":
        value = 0.5 * d**2
    else:
        value = jnp.expm1(d) - d
    if value_clamp is not None:
        value = jnp.clip(value, -value_clamp, value_clamp)
    return value
