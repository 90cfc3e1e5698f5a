"""Learning from own completions and a reference answer in one objective (GRAO)."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.aggregation import masked, sum_type, token_means, where_counted
from jaxalign.objective import Objective, safe_divide
from jaxalign.rewards.reference_answer import reference_weights


def grao_loss(
    log_probs: jax.Array,
    mask: jax.Array,
    reference_answer_log_probs: jax.Array,
    reference_answer_mask: jax.Array,
    advantages: jax.Array,
    reference_advantage: jax.Array,
    *,
    imitation: float = 0.5,
    alignment: float = 0.6,
    clamp_reference: bool = True,
) -> Objective:
    """-(sum_i w_i J(o_i) + w_y J(y)), a mean over prompts, with J the mean log-prob of the tokens that count.

    The weights are those of `jaxalign.rewards.reference_answer.reference_weights`: exploration, imitation and the
    alignment regulariser, collected by log-likelihood. No ratio, no clip, no KL: for completions of the policy itself,
    used once. Gradient flows into both log-probs. An empty completion or reference answer has J = 0. A prompt with
    neither is absent.

    Args:
      log_probs: [P, G, T] in nats, of own completions.
      mask: [P, G, T], 1 = counts.
      reference_answer_log_probs: [P, R] of the reference answer under the CURRENT policy.
      reference_answer_mask: [P, R].
      advantages: [P, G], reference_advantage: [P]; constants.
      imitation, alignment, clamp_reference: of `reference_weights`.

    Returns:
      An Objective with the means over prompts: loss_own and loss_reference (the two parts of the loss),
      reference_weight, reference_weight_negative (how often it is), reference_log_prob (J(y)).

    GRAO: arXiv 2508.07750.
    """
    mask, reference_answer_mask = jnp.asarray(mask), jnp.asarray(reference_answer_mask)
    chex.assert_rank([log_probs, mask, reference_answer_log_probs, reference_answer_mask], [3, 3, 2, 2])
    chex.assert_equal_shape([log_probs, mask])
    chex.assert_equal_shape([reference_answer_log_probs, reference_answer_mask])
    chex.assert_shape(advantages, log_probs.shape[:2])
    chex.assert_shape(reference_advantage, log_probs.shape[:1])
    dtype = jnp.promote_types(sum_type(log_probs), sum_type(reference_answer_log_probs))

    def likelihood(log_probs, mask):
        log_probs = where_counted(log_probs, mask, dtype)
        return safe_divide(masked(log_probs, mask).sum(-1), mask.astype(dtype).sum(-1))

    answered = reference_answer_mask.any(axis=1)
    present = mask.any(axis=(1, 2)) | answered
    own_weights, y_weight = reference_weights(
        where_counted(advantages, present[:, None], dtype),
        where_counted(reference_advantage, present, dtype),
        imitation=imitation,
        alignment=alignment,
        clamp_reference=clamp_reference,
    )
    own_weights, y_weight = jax.lax.stop_gradient((own_weights, y_weight * answered))
    y_likelihood = likelihood(reference_answer_log_probs, reference_answer_mask)
    own = -(own_weights * likelihood(log_probs, mask)).sum(axis=1)
    reference = -y_weight * y_likelihood
    prompts = present.astype(dtype)
    means = {
        "loss_own": own,
        "loss_reference": reference,
        "reference_weight": y_weight,
        "reference_weight_negative": y_weight < 0,
        "reference_log_prob": y_likelihood,
    }
    metrics = token_means({name: x[:, None] for name, x in means.items()}, present[:, None], dtype)
    return Objective(((own + reference) * prompts).sum(), prompts.sum(), metrics)
