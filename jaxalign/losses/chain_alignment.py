"""Losses over the answers to one question, compared by their mean log-probs: AFT, RRHF over lists, PRO.

A group is a question with N chains of thought [B, N], of which some are better than others. Scores s are mean log-probs
(`chain_scores`). Pushing worse chains down without end also takes probability from better ones: every loss here can be
told not to.
"""

from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from jaxalign.diagnostics.assessment import assessment_accuracy, compared
from jaxalign.losses.aggregation import masked, sum_type, where_counted
from jaxalign.losses.ring import NEVER
from jaxalign.objective import Metrics, Objective, safe_divide

Constraint = Literal["none", "detached", "boundary"]


def chain_scores(log_probs: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(scores [B, N] in nats per token, valid [B, N] bool): the mean log-prob of each chain [B, N, T] where mask is 1.

    An empty chain has the score 0, the best that there is, and is therefore not valid.
    """
    chex.assert_rank([log_probs, mask], 3)
    chex.assert_equal_shape([log_probs, mask])
    mask = jnp.asarray(mask)
    lengths = mask.astype(sum_type(log_probs)).sum(-1)
    return safe_divide(masked(log_probs, mask).sum(-1), lengths), lengths > 0


def distinct_chains(ids: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, N] bool: the first of equal chains, by their token ids [B, N, T] where mask is 1.

    Copies of a chain would count its pairs several times. All empty chains are copies of each other.
    """
    chex.assert_rank([ids, mask], 3)
    chex.assert_equal_shape([ids, mask])
    tokens = jnp.where(jnp.asarray(mask) != 0, ids, -1)
    equal = (tokens[:, :, None] == tokens[:, None, :]).all(-1)
    return ~jnp.tril(equal, -1).any(-1)


class _Groups(NamedTuple):
    scores: jax.Array  # [B, N], 0 where there is no chain
    feedback: jax.Array  # [B, N], likewise
    valid: jax.Array  # [B, N] bool
    better: jax.Array  # [B, N, N] bool: i is better than j
    present: jax.Array  # [B] bool: any chain at all

    @property
    def first(self) -> jax.Array:
        """s_i of the pairs (i, j)."""
        return self.scores[:, :, None]

    def second(self, constant: bool) -> jax.Array:
        """s_j of the pairs (i, j)."""
        scores = jax.lax.stop_gradient(self.scores) if constant else self.scores
        return scores[:, None, :]

    @property
    def best(self) -> jax.Array:
        """[B, N]: the first of those that nobody is better than."""
        known = self.valid & ~jnp.isnan(self.feedback)
        top = jnp.argmax(jnp.where(known, self.feedback, -jnp.inf), axis=1)
        return known & jax.nn.one_hot(top, self.scores.shape[1], dtype=bool)


def _groups(scores: jax.Array, feedback: jax.Array, valid: jax.Array) -> _Groups:
    chex.assert_rank([scores, feedback, valid], 2)
    chex.assert_equal_shape([scores, feedback, valid])
    dtype, valid = sum_type(scores), jnp.asarray(valid) != 0
    scores, feedback = where_counted(scores, valid, dtype), where_counted(feedback, valid, dtype)
    return _Groups(scores, feedback, valid, compared(feedback, valid), valid.any(1))


def _log_one_plus_sum(exponents: jax.Array, kept: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """log(1 + sum exp(e)) over what is kept; 0 with zero gradient where nothing is."""
    return jax.nn.softplus(jax.nn.logsumexp(jnp.where(kept, exponents, NEVER), axis=axes))


def _objective(groups: _Groups, comparison: jax.Array, imitated: jax.Array, likelihood_weight: float) -> Objective:
    """Comparison [B] and the likelihood of what is imitated [B, N], summed over questions."""
    dtype = groups.scores.dtype
    chosen = (imitated & groups.valid).astype(dtype)
    likelihood = -safe_divide((chosen * groups.scores).sum(1), chosen.sum(1))
    per_question = comparison + likelihood_weight * likelihood
    return Objective(per_question.sum(), groups.present.sum(dtype=dtype), _metrics(groups, comparison, likelihood))


def _metrics(groups: _Groups, comparison: jax.Array, likelihood: jax.Array) -> Metrics:
    dtype = groups.scores.dtype
    questions = groups.present.sum(dtype=dtype)
    scores = jax.lax.stop_gradient(groups.scores)
    comparison, likelihood = jax.lax.stop_gradient((comparison, likelihood))
    better, worse = (groups.better.any(axis).astype(dtype) for axis in (2, 1))
    return {
        "loss_comparison": (comparison.sum(), questions),
        "loss_likelihood": (likelihood.sum(), questions),
        "pairs": (groups.better.sum(dtype=dtype), questions),
        "score_better": ((better * scores).sum(), better.sum()),
        "score_worse": ((worse * scores).sum(), worse.sum()),
        "assessment_accuracy": assessment_accuracy(scores, groups.feedback, groups.valid),
    }


def aft_loss(
    scores: jax.Array,
    feedback: jax.Array,
    valid: jax.Array,
    *,
    imitated: jax.Array | None = None,
    constraint: Constraint = "detached",
    beta: float = 0.15,
    detach_boundary: bool = True,
    likelihood_weight: float = 1.0,
) -> Objective:
    """Contrast of better and worse chains, under a constraint, beside the likelihood of chains to imitate.

    Over the pairs (i, j) of a question in which i is better than j, sg(.) a constant:

      none      log(1 + sum exp(s_j - s_i))
      detached  log(1 + sum exp(sg(s_j) - s_i))                                  the same value; the worse is not moved
      boundary  log(1 + sum [exp(s_j - s_i) + exp(2 B_j - s_i - s_j)]),          B_j = sg(min_i s_i) - beta

    and likelihood_weight times minus the mean score of the imitated chains. "boundary" moves a worse chain towards B_j:
    its gradient has the sign of s_j - B_j, and is 0 there. A chain between two others is better in one pair and worse
    in another, and each pair has its own part of the gradient.

    Args:
      scores: [B, N] nats per token, with gradient; of `chain_scores`.
      feedback: [B, N], right or wrong (bool), or a reward of each chain; equal ones make no pair, and NaN (not
        scorable) makes none. The same chain twice must have the same feedback (and is better left out, by
        `distinct_chains`).
      valid: [B, N], 0 = no chain.
      imitated: [B, N] bool, the chains to be fine-tuned on, such as the reference answer; None for none.
      constraint: one of the three above.
      beta: nats per token that the boundary lies below the least likely better chain; of "boundary" alone.
      detach_boundary: False lets "boundary" move that chain through B_j too.

    Returns:
      An Objective with weight = questions with any chain; one without pairs has log(1) = 0 for its contrast. A NaN in a
      score that counts stays in the total, as in every loss here. Metrics: loss_comparison, loss_likelihood, pairs (per
      question), score_better and score_worse (chains that are so in any pair), assessment_accuracy, and under
      "boundary" below_boundary (the share of worse chains that lie below theirs).

    Raises:
      ValueError: an unknown constraint, or `beta` < 0.

    AFT: arXiv 2309.02144. Deviations: the likelihood is a mean over questions of the mean over tokens, not over all
    tokens of the batch, so that both parts have one weight; 2 B_j - s_i stands where the paper has a constant, which
    makes B_j the exact boundary of every pair.
    """
    if constraint not in get_args(Constraint):
        raise ValueError(f"unknown constraint {constraint!r}; choose one of {get_args(Constraint)}")
    if not beta >= 0:
        raise ValueError(f"beta={beta} must be at least 0 nats per token")
    groups = _groups(scores, feedback, valid)
    first, second = groups.first, groups.second(constant=constraint == "detached")
    exponents, kept = second - first, groups.better
    if constraint == "boundary":
        worse = groups.better.any(1)
        least = jnp.where(worse, jnp.where(groups.better, first, jnp.inf).min(1), 0)
        boundary = (jax.lax.stop_gradient(least) if detach_boundary else least) - beta
        exponents = jnp.concatenate([exponents, 2 * boundary[:, None, :] - first - second], axis=1)
        kept = jnp.concatenate([kept, kept], axis=1)
    comparison = _log_one_plus_sum(exponents, kept, (1, 2))
    imitated = jnp.zeros_like(groups.valid) if imitated is None else jnp.asarray(imitated) != 0
    objective = _objective(groups, comparison, imitated, likelihood_weight)
    if constraint == "boundary":
        below = (worse & (groups.scores < boundary)).sum(dtype=groups.scores.dtype)
        objective.metrics["below_boundary"] = (below, worse.sum(dtype=below.dtype))
    return objective


def rrhf_loss(
    scores: jax.Array,
    rewards: jax.Array,
    valid: jax.Array,
    *,
    detach_worse: bool = False,
    likelihood_weight: float = 1.0,
) -> Objective:
    """sum relu(s_j - s_i) over the pairs in which i is better than j, minus likelihood_weight times the best's score.

    Arguments and metrics as of `aft_loss`. The best chain is the one of the highest reward, the first of equals;
    without a scorable one there is none. `detach_worse` makes s_j a constant of each pair: AFT's constraint for this
    loss.

    RRHF: arXiv 2304.05302. The likelihood is the mean over the tokens of the best chain, never over its padding.
    `preference_loss(loss="rrhf")` is the loss of a question with two chains.
    """
    groups = _groups(scores, rewards, valid)
    gaps = groups.second(constant=detach_worse) - groups.first
    comparison = jnp.where(groups.better, jax.nn.relu(gaps), 0).sum((1, 2))
    return _objective(groups, comparison, groups.best, likelihood_weight)


def pro_loss(
    scores: jax.Array,
    rewards: jax.Array,
    valid: jax.Array,
    *,
    detach_worse: bool = False,
    score_temperature: float = 1.0,
    likelihood_weight: float = 1.0,
) -> Objective:
    """Each chain against all that are worse, minus likelihood_weight times the score of the best:

      -sum_i [ s_i / t - log(exp(s_i / t) + sum_{j worse than i} exp(s_j / t)) ],   t = score_temperature

    Chains from best to worst and each chosen among what is left: Plackett and Luce's likelihood of the order. Arguments
    and metrics as of `aft_loss`. `detach_worse` makes the s_j constants. Chains of equal reward are not compared, where
    the paper has a strict order.

    Raises:
      ValueError: `score_temperature` is not positive.

    PRO: arXiv 2306.17492, with one temperature for all pairs (there 1 / difference of rewards).
    """
    if not score_temperature > 0:
        raise ValueError(f"score_temperature={score_temperature} must be positive")
    groups = _groups(scores, rewards, valid)
    gaps = (groups.second(constant=detach_worse) - groups.first) / score_temperature
    comparison = _log_one_plus_sum(gaps, groups.better, (2,)).sum(1)
    return _objective(groups, comparison, groups.best, likelihood_weight)
