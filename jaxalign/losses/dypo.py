"""Each prompt learns as its own group of completions asks: from a teacher, from the group, or not at all (DYPO)."""

from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.aggregation import masked, sum_type, token_means, where_counted
from jaxalign.losses.policy_gradient import policy_loss
from jaxalign.objective import Metrics, Objective, safe_divide

Normalisation = Literal["all", "routed"]
TeacherReduction = Literal["token-mean", "sum"]


class Grades(NamedTuple):
    """[Q] bool each; at most one holds. None does where nothing is scorable."""

    hard: jax.Array  # every completion is wrong
    mid: jax.Array
    easy: jax.Array  # every completion is right


def grade(rewards: jax.Array) -> Grades:
    """Grades of [Q, k] correctness in {0, 1}; NaN = not scorable, left out.

    Grade by correctness, not by shaped rewards: threshold those first. What is neither 0 nor 1 makes its prompt mid.
    """
    chex.assert_rank(rewards, 2)
    rewards = jax.lax.stop_gradient(jnp.asarray(rewards))
    known = ~jnp.isnan(rewards)
    scored = known.any(axis=1)
    hard = ((rewards == 0) | ~known).all(axis=1) & scored
    easy = ((rewards == 1) | ~known).all(axis=1) & scored
    return Grades(hard, scored & ~hard & ~easy, easy)


def group_alignment_loss(
    sequence_log_probs: jax.Array, reference_log_probs: jax.Array, rewards: jax.Array, beta: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """[Q]: the mean over all pairs (s right, f wrong) of a group of softplus(-beta d), and [Q] the mean of d, with

      d = [log pi(s) - log pi_ref(s)] - [log pi(f) - log pi_ref(f)]

    0, with zero gradient, for a group without a pair. Gradient flows into `sequence_log_probs`: -beta / (#s #f)
    sum_f (1 - sigmoid(beta d)) for a right completion, the opposite sum over s for a wrong one.

    Args:
      sequence_log_probs: [Q, k], SUMS over tokens in nats.
      reference_log_probs: [Q, k] under the frozen reference. Under the policy that sampled d would stay near 0.
      rewards: [Q, k] in {0, 1}; NaN = not scorable, in no pair.
      beta: per nat.

    DYPO: arXiv 2604.08926.
    """
    chex.assert_rank([sequence_log_probs, reference_log_probs, rewards], 2)
    chex.assert_equal_shape([sequence_log_probs, reference_log_probs, rewards])
    gain = sequence_log_probs - jax.lax.stop_gradient(reference_log_probs)
    pairs = (rewards == 1)[:, :, None] & (rewards == 0)[:, None, :]
    d = gain[:, :, None] - gain[:, None, :]
    count = pairs.sum(axis=(1, 2))
    terms = jnp.where(pairs, jax.nn.softplus(-beta * jnp.where(pairs, d, 0)), 0)
    return safe_divide(terms.sum(axis=(1, 2)), count), safe_divide(jnp.where(pairs, d, 0).sum(axis=(1, 2)), count)


def dypo_loss(
    log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    rewards: jax.Array,
    teacher_log_probs: jax.Array,
    teacher_mask: jax.Array,
    *,
    old_log_probs: jax.Array | None = None,
    reference_log_probs: jax.Array | None = None,
    group_weight: float = 0.5,
    beta: float = 1.0,
    teacher_weight: float = 1.0,
    teacher_reduction: TeacherReduction = "token-mean",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coefficient: float = 0.0,
    normalise: Normalisation = "all",
    routing: bool | jax.Array = True,
) -> Objective:
    """With I the grades of the prompts (`grade`):

      I_hard teacher_weight L_SFT + I_mid (group_weight L_GRPO + (1 - group_weight) L_GAL)

    summed over prompts, with the number of ALL prompts as weight ("all"; easy ones count with 0), or with each part
    divided by the share of the prompts that are routed to it ("routed", as if every part had a queue of its own).
    L_SFT is minus the log-prob of the teacher's solution, L_GRPO minus the clipped surrogate, a mean over completions
    of their mean over tokens, L_GAL the `group_alignment_loss`. A prompt without any token is absent; a hard prompt
    without a teacher's solution is skipped and counted.

    Gradient flows into `log_probs` and `teacher_log_probs`. On-policy and at the reference, GRPO and GAL of binary
    rewards have parallel gradients: GAL differs only once pairs have moved apart.

    Args:
      log_probs: [Q, k, T] in nats.
      advantages: [Q, k].
      mask: [Q, k, T], 1 = counts.
      rewards: [Q, k] correctness in {0, 1}; NaN = not scorable.
      teacher_log_probs: [Q, S] of ONE teacher's solution under the policy, drawn anew at each visit.
      teacher_mask: [Q, S]; all 0: no solution.
      old_log_probs: [Q, k, T] under the policy that sampled; None: on-policy.
      reference_log_probs: [Q, k, T]; needed unless group_weight is 1 and kl_coefficient 0.
      group_weight: alpha in [0, 1].
      beta: of GAL, per nat.
      teacher_weight: gamma.
      teacher_reduction: "token-mean" divides L_SFT by the solution's length, "sum" (the paper) does not.
      clip_low, clip_high, kl_coefficient: of L_GRPO, with the k3 estimate of the KL.
      normalise: see above. "routed" makes the rows of a batch interact.
      routing: False is plain GRPO on all prompts. May be a traced scalar: the gate that opens after some steps.

    Returns:
      An Objective with the shares of hard, mid and easy prompts and of hard_without_teacher, the parts loss_teacher,
      loss_group and loss_alignment (means over their prompts), and pair_margin (mean d, nats).

    Raises:
      ValueError: no reference log-probs where they are needed, a weight or name out of its range.

    DYPO: arXiv 2604.08926. Its appendix writes the ratio against the reference; here it is against the policy that
    sampled, as in GRPO.
    """
    if not 0 <= group_weight <= 1:
        raise ValueError(f"group_weight={group_weight} must lie in [0, 1]")
    if normalise not in get_args(Normalisation) or teacher_reduction not in get_args(TeacherReduction):
        raise ValueError(
            f"normalise={normalise!r} or teacher_reduction={teacher_reduction!r} is not known; choose from "
            f"{get_args(Normalisation)}, {get_args(TeacherReduction)}"
        )
    if reference_log_probs is None and (kl_coefficient or group_weight < 1):
        raise ValueError(f"group_weight={group_weight} and kl_coefficient={kl_coefficient} need reference_log_probs")
    mask, teacher_mask = jnp.asarray(mask), jnp.asarray(teacher_mask)
    chex.assert_rank([log_probs, mask, teacher_log_probs, teacher_mask], [3, 3, 2, 2])
    chex.assert_equal_shape([log_probs, mask])
    chex.assert_equal_shape([teacher_log_probs, teacher_mask])
    chex.assert_shape([advantages, rewards], log_probs.shape[:2])
    dtype = jnp.promote_types(sum_type(log_probs), sum_type(teacher_log_probs))

    present = mask.any(axis=(1, 2)) | teacher_mask.any(axis=1)
    has_teacher = teacher_mask.any(axis=1)
    correct = jnp.where(present[:, None], rewards, jnp.nan)
    grades = grade(correct)
    taught = (grades.hard & has_teacher & routing).astype(dtype)
    mid = jnp.where(routing, grades.mid, present).astype(dtype)

    teacher = -masked(where_counted(teacher_log_probs, teacher_mask, dtype), teacher_mask).sum(axis=1)
    if teacher_reduction == "token-mean":
        teacher = safe_divide(teacher, teacher_mask.astype(dtype).sum(axis=1))

    def one(log_probs, advantages, mask, old_log_probs, reference_log_probs):
        objective = policy_loss(
            log_probs,
            advantages,
            mask,
            old_log_probs=old_log_probs,
            reference_log_probs=reference_log_probs,
            clip_low=clip_low,
            clip_high=clip_high,
            kl_coefficient=kl_coefficient,
            count_empty=True,
        )
        return objective.total / log_probs.shape[0]

    group = jax.vmap(one)(log_probs, advantages, mask, old_log_probs, reference_log_probs).astype(dtype)
    alignment, margin = jnp.zeros_like(group), jnp.zeros_like(group)
    if reference_log_probs is not None:
        own, reference = (masked(where_counted(x, mask, dtype), mask).sum(2) for x in (log_probs, reference_log_probs))
        alignment, margin = group_alignment_loss(own, reference, correct, beta)
    alpha = jnp.where(routing, group_weight, 1.0).astype(dtype)

    weight = present.astype(dtype).sum()
    parts = [
        (taught, teacher_weight * teacher),
        (mid, alpha * group + (1 - alpha) * alignment),
    ]
    total = jnp.zeros((), dtype)
    for share, value in parts:
        scale = safe_divide(weight, share.sum()) if normalise == "routed" else 1
        total += scale * (share * value).sum()

    shown = {name: (share, present) for name, share in grades._asdict().items()}
    shown |= {
        "hard_without_teacher": (grades.hard & ~has_teacher, present),
        "loss_teacher": (teacher, taught),
        "loss_group": (group, mid),
        "loss_alignment": (alignment, mid),
        "pair_margin": (margin, mid),
    }
    metrics: Metrics = {}
    for name, (value, where) in shown.items():
        metrics |= token_means({name: value[:, None]}, where[:, None], dtype)
    return Objective(total, weight, metrics)
