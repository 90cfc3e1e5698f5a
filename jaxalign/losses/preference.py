"""Losses of pairs (chosen, rejected) of completions: one core whose rows are DPO, IPO, SimPO, CPO, ORPO and the others.

Most losses are a margin under a link (`jaxalign.losses.preference_links`); the rest are functions of the same sums.
`PREFERENCE_LOSSES` is the table. Losses of single completions with a label (KTO) are in `preference_unpaired`.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses import preference_links as links
from jaxalign.losses.aggregation import sum_type, where_counted
from jaxalign.losses.preference_links import Divergence
from jaxalign.losses.preference_table import PREFERENCE_LOSSES, Terms
from jaxalign.objective import Metrics, Objective, safe_divide

PreferenceLoss = Literal[
    "dpo",
    "robust_dpo",
    "dpo_norm",
    "hinge",
    "ipo",
    "ipo_norm",
    "exo",
    "discopop",
    "exponential",
    "squared",
    "truncated_quadratic",
    "savage",
    "odpo",
    "rdpo",
    "dpop",
    "nca",
    "bco_pair",
    "sppo",
    "apo_zero",
    "apo_down",
    "aot",
    "aot_unpaired",
    "mpo",
    "cpo",
    "slic",
    "simpo",
    "alphapo",
    "rrhf",
    "orpo",
]
Likelihood = Literal["token-mean", "sequence-mean", "sequence-sum"]


class PairLogProbs(NamedTuple):
    """What a loss of pairs reads; every array is [B]."""

    chosen: jax.Array  # S_w, nats: summed log-prob of the chosen completion under the policy
    rejected: jax.Array  # S_l
    reference_chosen: jax.Array | None  # R_w, R_l: the same under the reference; None for losses without one
    reference_rejected: jax.Array | None
    chosen_length: jax.Array  # n_w, tokens that were summed
    rejected_length: jax.Array  # n_l
    mask: jax.Array  # 1 = the pair counts; a weight >= 0


def is_batch_coupled(
    loss: str, *, likelihood: Likelihood = "token-mean", likelihood_weight: float | None = None, **other: Any
) -> bool:
    """Whether the pairs of a batch interact, so that micro-batches do not add up to the whole."""
    del other
    weight = PREFERENCE_LOSSES[loss].likelihood_weight if likelihood_weight is None else likelihood_weight
    return PREFERENCE_LOSSES[loss].by_rank or (weight != 0 and likelihood == "token-mean")


def preference_loss(
    pairs: PairLogProbs,
    *,
    loss: PreferenceLoss = "dpo",
    beta: float | None = None,
    label_smoothing: float | None = None,
    divergence: Divergence | None = None,
    divergence_alpha: float | None = None,
    target_margin: float | None = None,
    length_penalty: float | None = None,
    chosen_penalty: float | None = None,
    temperature: float | None = None,
    power: float | None = None,
    reward_shift: float | jax.Array | None = None,
    likelihood_weight: float | None = None,
    likelihood: Likelihood = "token-mean",
    offset: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> Objective:
    """The loss of a batch of pairs, a mean over the pairs that count.

    With a = S - R the log-ratio, D = a_w - a_l, z = beta D, m = S / n the mean log-prob, e = label_smoothing,
    ls = log sigmoid, relu(x) = max(x, 0) with gradient 0 at the kink, and l(x) = -(1 - e) ls(x) - e ls(-x):

    | loss                | per pair                                                     | defaults                  |
    |---------------------|--------------------------------------------------------------|---------------------------|
    | dpo                 | l(z); cDPO for e > 0                                         | beta .1, e 0              |
    | robust_dpo          | [-(1 - e) ls(z) + e ls(-z)] / (1 - 2 e)                      | beta .1, e .1             |
    | dpo_norm            | l(beta (a_w / n_w - a_l / n_l))                              | beta .1, e 0              |
    | hinge               | relu(1 - z)                                                  | beta .1                   |
    | ipo                 | (D - 1 / (2 beta))^2                                         | beta .1                   |
    | ipo_norm            | (a_w / n_w - a_l / n_l - 1 / (2 beta))^2                     | beta .1                   |
    | exo                 | KL((sigmoid(z), sigmoid(-z)) to (1 - e, e))                  | beta .1, e 1e-3           |
    | discopop            | -ls(z)(1 - s) + exp(-z) s, s = sigmoid(z / temperature)      | beta .05, temperature .05 |
    | exponential         | exp(-z)                                                      | beta .1                   |
    | squared             | (1 - z)^2                                                    | beta .1                   |
    | truncated_quadratic | relu(1 - z)^2                                                | beta .1                   |
    | savage              | 1 / (1 + exp(z))^2                                           | beta .1                   |
    | odpo                | -ls(z - offset)                                              | beta .1                   |
    | rdpo                | -ls(z + length_penalty (n_w - n_l))                          | beta .1, penalty .01      |
    | dpop                | -ls(beta (D - chosen_penalty relu(R_w - S_w)))               | beta .3, penalty 50       |
    | nca                 | -ls(beta a_w) - ls(-beta a_w) / 2 - ls(-beta a_l) / 2        | beta .1                   |
    | bco_pair            | -ls(beta a_w - shift) - ls(shift - beta a_l)                 | beta .1, shift 0          |
    | sppo                | (a_w - 1 / (2 beta))^2 + (a_l + 1 / (2 beta))^2              | beta 1e-3                 |
    | apo_zero            | 1 - sigmoid(beta a_w) + sigmoid(beta a_l)                    | beta .1                   |
    | apo_down            | sigmoid(beta a_w) + 1 - sigmoid(z)                           | beta .1                   |
    | aot                 | l(beta u), u = sort(S_w - S_l) - sort(R_w - R_l)             | beta .1, e 0              |
    | aot_unpaired        | l(beta u), u = sort(a_w) - sort(a_l)                         | beta .1, e 0              |
    | mpo                 | .8 dpo + .2 bco_pair                                         | beta .1, likelihood 1     |
    | cpo                 | l(beta (S_w - S_l))                                          | beta .1, likelihood 1     |
    | slic                | relu(target_margin - S_w + S_l)                              | margin 1, likelihood .1   |
    | simpo               | l(beta (m_w - m_l) - target_margin)                          | beta 2, margin .5         |
    | alphapo             | simpo with (1 - exp(-power m)) / power for m                 | as simpo; power .25      |
    | rrhf                | relu(m_l - m_w)                                              | likelihood 1              |
    | orpo                | -beta ls(o(m_w) - o(m_l)), o(m) = m - log(1 - exp(m))        | beta .1, likelihood 1     |

    To every loss is added likelihood_weight times the negative log-likelihood of the chosen completions (defaults
    above; 0 elsewhere). Option None means the loss's own default, and one that a loss does not know is refused.

    The sorts of aot and aot_unpaired are over all pairs of the batch that count, and their terms belong to ranks: they
    couple the pairs of a batch, as likelihood "token-mean" does (`is_batch_coupled`).

    Gradient flows into `chosen` and `rejected` alone. Pairs with mask 0 or with an empty completion have weight 0, and
    nothing that stands there has any effect.

    Args:
      pairs: see `PairLogProbs`. bfloat16 is computed in float32.
      loss: a row of the table.
      beta: > 0; for orpo the weight lambda of the odds-ratio term.
      label_smoothing: e in [0, 0.5): the rate at which labels are taken to be flipped. exo wants e > 0.
      divergence, divergence_alpha: replace a by `preference_links.divergence_score` (f-DPO) in dpo, robust_dpo,
        dpo_norm, hinge, ipo, ipo_norm, exo and discopop; reverse_kl, alpha .5.
      target_margin: gamma of simpo and alphapo, the margin of slic.
      length_penalty: alpha of rdpo, per token.
      chosen_penalty: lambda of dpop.
      temperature: of discopop; at most 1.
      power: alpha of alphapo.
      reward_shift: delta of bco_pair; a constant, which the caller may track from batch to batch.
      likelihood_weight, likelihood: the term above. "token-mean" is over all chosen tokens of the batch,
        "sequence-mean" over those of each pair and then over pairs, "sequence-sum" is the mean of -S_w (CPO's formula).
      offset: [B], of odpo: by how much, in units of reward, the chosen completion is to win.
      weights: [B], constants that multiply the loss of each pair without entering the weight it is divided by (WPO).

    Returns:
      An Objective of weight sum(mask). Metrics are means over pairs: reward_chosen and reward_rejected (beta a; beta m
      for simpo, alphapo, orpo and m for rrhf; beta S for cpo and S for slic; whatever the divergence is), margin (their
      difference), accuracy (margin > 0), log_prob_chosen and log_prob_rejected (sums, nats), and over tokens
      chosen_token_nll; score_clip_fraction where a divergence has an exponent.

    Raises:
      ValueError: unknown names, options out of range or not of this loss, no reference where one is needed.

    arXiv: DPO 2305.18290, IPO 2310.12036, SLiC 2305.10425, SimPO 2405.14734, CPO 2401.08417, ORPO 2403.07691, R-DPO
    2403.19159, DPOP 2402.13228, EXO 2402.00856, NCA 2402.05369, SPPO 2405.00675, AOT 2406.05882, DiscoPOP 2406.08414,
    f-DPO 2309.16240, APO 2408.06266, robust DPO 2403.00409, exponential to savage 2402.05749, ODPO 2402.10571, AlphaPO
    2501.03884, RRHF 2304.05302, MPO 2411.10442. Deviations: TRL normalises IPO by length (here `ipo_norm`) and lets
    ORPO's likelihood run over the prompt too; the likelihood terms of CPO, SLiC and RRHF are sums over tokens in their
    papers (here `likelihood="sequence-sum"`).
    """
    given = {
        "beta": beta,
        "label_smoothing": label_smoothing,
        "divergence": divergence,
        "divergence_alpha": divergence_alpha,
        "target_margin": target_margin,
        "length_penalty": length_penalty,
        "chosen_penalty": chosen_penalty,
        "temperature": temperature,
        "power": power,
        "reward_shift": reward_shift,
    }
    row, options = _resolve(loss, given)
    chex.assert_rank([x for x in pairs if x is not None], 1)
    chex.assert_equal_shape([x for x in (*pairs, offset, weights) if x is not None])
    if (pairs.reference_chosen is None or pairs.reference_rejected is None) and row.needs_reference:
        raise ValueError(f"loss {loss!r} needs the log-probs of a reference; simpo, cpo and orpo do without")
    if (offset is not None) != (loss == "odpo"):
        raise ValueError("loss 'odpo' and an offset belong together")
    if weights is not None and row.by_rank:
        raise ValueError(f"the terms of loss {loss!r} belong to ranks; it takes no weights of pairs")
    if likelihood not in get_args(Likelihood):
        raise ValueError(f"unknown likelihood {likelihood!r}; choose one of {get_args(Likelihood)}")

    terms, mask = _terms(pairs, row.needs_reference, offset)
    per_pair = row.function(terms, options)
    # Terms by rank stand where the pairs that count come first.
    rank_mask = -jnp.sort(-mask) if row.by_rank else mask
    factor = 1 if weights is None else jax.lax.stop_gradient(where_counted(weights, mask, mask.dtype))
    total = jnp.sum(rank_mask * factor * jnp.where(rank_mask > 0, per_pair, 0))
    weight = mask.sum()
    if likelihood_weight is None:
        likelihood_weight = row.likelihood_weight
    if likelihood_weight != 0:
        total = total + likelihood_weight * weight * _negative_log_likelihood(terms, mask, likelihood)
    metrics = _metrics(terms, mask, row.reward, options)
    return Objective(total, weight, metrics)


def margin_sensitivities(pairs: PairLogProbs, **options: Any) -> tuple[jax.Array, jax.Array]:
    """(d_w, d_l) [B]: how hard the loss pushes S_w up and S_l down, -dL/dS_w and +dL/dS_l, L the total of the batch.

    `options` are those of `preference_loss`. For dpo both are beta sigmoid(-z); ipo's are negative beyond its target;
    a likelihood term "sequence-sum" adds its weight to d_w. Where pairs interact (`is_batch_coupled`) they are those of
    the whole batch. Constants. arXiv 2410.13828, table of derivatives.
    """
    constants: PairLogProbs = jax.lax.stop_gradient(pairs)

    def total(sums: tuple[jax.Array, jax.Array]) -> jax.Array:
        return preference_loss(constants._replace(chosen=sums[0], rejected=sums[1]), **options).total

    d_chosen, d_rejected = jax.grad(total)((constants.chosen, constants.rejected))
    return -d_chosen, d_rejected


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "beta": (lambda x: x > 0, "more than 0"),
    "label_smoothing": (lambda x: 0 <= x < 0.5, "in [0, 0.5)"),
    "divergence": (lambda x: x in get_args(Divergence), f"one of {get_args(Divergence)}"),
    "temperature": (lambda x: 0 < x <= 1, "in (0, 1]"),
    "length_penalty": (lambda x: x >= 0, "at least 0"),
    "chosen_penalty": (lambda x: x >= 0, "at least 0"),
}


def _resolve(loss: str, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The row of a loss and its options, the given ones over its own."""
    if loss not in PREFERENCE_LOSSES:
        raise ValueError(f"unknown preference loss {loss!r}; choose one of {tuple(PREFERENCE_LOSSES)}")
    row = PREFERENCE_LOSSES[loss]
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if name not in row.options:
            raise ValueError(f"loss {loss!r} has no option {name!r}; it has {', '.join(row.options) or 'none'}")
        holds, words = _RANGES.get(name, (lambda x: True, ""))
        if not holds(value):
            raise ValueError(f"{name}={value} of loss {loss!r} must be {words}")
    if loss == "exo" and given.get("label_smoothing") == 0:
        raise ValueError("label_smoothing=0 of loss 'exo' must be more than 0: its divergence is infinite there")
    return row, {**row.options, **given}


def _terms(pairs: PairLogProbs, needs_reference: bool, offset: jax.Array | None) -> tuple[Terms, jax.Array]:
    """What losses read, in the type of long sums, 0 where a pair does not count; and the mask without empty pairs."""
    dtype = sum_type(pairs.chosen)
    mask = jnp.asarray(pairs.mask).astype(dtype) * (pairs.chosen_length > 0) * (pairs.rejected_length > 0)

    def counted(x: jax.Array) -> jax.Array:
        return where_counted(x, mask, dtype)

    chosen, rejected = counted(pairs.chosen), counted(pairs.rejected)
    if needs_reference:
        assert pairs.reference_chosen is not None and pairs.reference_rejected is not None
        references = (counted(pairs.reference_chosen), counted(pairs.reference_rejected))
        reference_chosen, reference_rejected = jax.lax.stop_gradient(references)
    else:
        reference_chosen = reference_rejected = jnp.zeros_like(chosen)
    terms = Terms(
        chosen,
        rejected,
        reference_chosen,
        reference_rejected,
        counted(pairs.chosen_length),
        counted(pairs.rejected_length),
        None if offset is None else jax.lax.stop_gradient(counted(offset)),
        mask > 0,
    )
    return terms, mask


def _negative_log_likelihood(terms: Terms, mask: jax.Array, likelihood: Likelihood) -> jax.Array:
    """The mean as named, over the chosen completions that count."""
    if likelihood == "token-mean":
        return safe_divide(-(mask * terms.chosen).sum(), (mask * terms.chosen_length).sum())
    per_pair = terms.mean_chosen if likelihood == "sequence-mean" else terms.chosen
    return safe_divide(-(mask * per_pair).sum(), mask.sum())


def _metrics(terms: Terms, mask: jax.Array, reward: str, options: dict[str, Any]) -> Metrics:
    beta = options.get("beta", 1.0)
    chosen, rejected = (beta * x for x in terms.rewards(reward))
    means = {
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "margin": chosen - rejected,
        "accuracy": chosen > rejected,
        "log_prob_chosen": terms.chosen,
        "log_prob_rejected": terms.rejected,
    }
    divergence = options.get("divergence")
    if divergence in ("forward_kl", "alpha"):
        alpha = options["divergence_alpha"]
        both = [links.clipped_scores(a, divergence, alpha).astype(mask.dtype) for a in terms.rewards("log_ratio")]
        means["score_clip_fraction"] = (both[0] + both[1]) / 2
    weight = mask.sum()
    metrics = {name: ((mask * jax.lax.stop_gradient(x)).sum(), weight) for name, x in means.items()}
    tokens = (mask * terms.chosen_length).sum()
    return metrics | {"chosen_token_nll": (-(mask * jax.lax.stop_gradient(terms.chosen)).sum(), tokens)}
