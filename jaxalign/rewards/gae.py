"""The KL penalty that belongs in the reward, rewards per token, and generalised advantage estimation (PPO)."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.aggregation import float_sums, masked


def kl_penalty(
    old_log_probs: jax.Array, reference_log_probs: jax.Array, mask: jax.Array, coefficient: float | jax.Array
) -> jax.Array:
    """[B]: -coefficient * sum_t mask (old_log_prob - reference_log_prob), to be added to rewards [B].

    The sum is the k1 estimate, in nats, of the KL of whole completions from the reference: as a reward
    it regularises, as a loss term it does nothing in expectation. A constant: no gradient flows.

    Args:
      old_log_probs: [B, T] in nats, under the policy that sampled the tokens.
      reference_log_probs: [B, T].
      mask: [B, T], 1 = counts; what stands at 0 has no effect. 0 for a row where nothing counts.
      coefficient: beta, in units of reward per nat (0.05 for RLOO in TRL).

    InstructGPT, arXiv 2203.02155, equation 2; RLOO, arXiv 2402.14740.
    """
    chex.assert_rank([old_log_probs, reference_log_probs, mask], 2)
    chex.assert_equal_shape([old_log_probs, reference_log_probs, mask])
    mask = jnp.asarray(mask)
    old, reference = (masked(jnp.asarray(x), mask) for x in (old_log_probs, reference_log_probs))
    return jax.lax.stop_gradient(-coefficient * (old - reference).sum(axis=1))


def token_rewards(
    scores: jax.Array,
    old_log_probs: jax.Array,
    reference_log_probs: jax.Array,
    mask: jax.Array,
    kl_coefficient: float | jax.Array,
) -> jax.Array:
    """r_t = -kl_coefficient (old_log_prob_t - reference_log_prob_t), plus the score at the last token that counts.

    Args:
      scores: [B] rewards of whole completions. A NaN (not scorable) adds 0; mask the row out if it shall
        not be learned from at all.
      old_log_probs: [B, T] in nats, under the policy that sampled the tokens.
      reference_log_probs: [B, T].
      mask: [B, T], 1 = counts; what stands at 0 has no effect.
      kl_coefficient: beta, in units of reward per nat.

    Returns:
      [B, T], 0 where the mask is 0. Constants: no gradient. Their sum over a row is the score plus
      its `kl_penalty`.

    InstructGPT, arXiv 2203.02155, equation 2, with the KL spread over the tokens as in arXiv 1909.08593.
    """
    chex.assert_rank([scores, old_log_probs, reference_log_probs, mask], [1, 2, 2, 2])
    chex.assert_equal_shape([old_log_probs, reference_log_probs, mask])
    counts = jnp.asarray(mask) != 0
    old, reference = (jnp.where(counts, float_sums(x), 0) for x in (old_log_probs, reference_log_probs))
    remaining = jnp.cumsum(counts[:, ::-1], axis=1)[:, ::-1]  # tokens that count, from here to the end
    score = jnp.nan_to_num(float_sums(scores), posinf=jnp.inf, neginf=-jnp.inf)[:, None]
    rewards = masked(-kl_coefficient * (old - reference), mask) + jnp.where(counts & (remaining == 1), score, 0)
    return jax.lax.stop_gradient(rewards)


def gae(
    token_rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    discount: float = 1.0,
    trace_decay: float = 0.95,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation, backwards over the tokens that count:

      delta_t = r_t + discount V_next - V_t,    A_t = delta_t + discount trace_decay A_next

    Next means the next token that counts; after the last one V and A are 0 (a completion cut at the
    length limit counts as ended). Returns are A + V of the advantages as they are here: whiten for the
    policy loss afterwards (`statistics.whiten`).

    Args:
      token_rewards: [B, T].
      values: [B, T] estimated before each token was taken.
      mask: [B, T], 1 = counts; what stands at 0 has no effect.
      discount: gamma in [0, 1].
      trace_decay: lambda in [0, 1].

    Returns:
      (advantages, returns), both [B, T], 0 where the mask is 0. Constants: no gradient.

    arXiv 1506.02438, equation 16.
    """
    chex.assert_rank([token_rewards, values, mask], 2)
    chex.assert_equal_shape([token_rewards, values, mask])
    counts = jnp.asarray(mask) != 0
    rewards, values = (jax.lax.stop_gradient(jnp.where(counts, float_sums(x), 0)) for x in (token_rewards, values))

    def backward(following, token):
        next_advantage, next_value = following
        reward, value, counts = token
        delta = reward + discount * next_value - value
        advantage = delta + discount * trace_decay * next_advantage
        carry = (jnp.where(counts, advantage, next_advantage), jnp.where(counts, value, next_value))
        return carry, jnp.where(counts, advantage, 0)

    end = jnp.zeros(values.shape[0], jnp.promote_types(rewards.dtype, values.dtype))
    tokens = (rewards.T, values.T, counts.T)
    _, by_time = jax.lax.scan(backward, (end, end.astype(values.dtype)), tokens, reverse=True)
    result = by_time.T
    return result, jnp.where(counts, result + values, 0)
