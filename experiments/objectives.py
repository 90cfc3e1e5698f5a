"""From scored groups to the objective of a step: one entry for each loss of the table of methods."""

import functools
from collections.abc import Callable

import jax.numpy as jnp

from experiments.groups import Groups
from jaxalign.losses.chain_alignment import aft_loss, chain_scores, distinct_chains, pro_loss, rrhf_loss
from jaxalign.losses.dypo import dypo_loss
from jaxalign.losses.grao import grao_loss
from jaxalign.losses.log_probs import TokenLogProbs
from jaxalign.losses.policy_gradient import policy_loss
from jaxalign.losses.ppo import ppo_loss
from jaxalign.models.scoring import log_probs_of_states, predicting_states
from jaxalign.models.value_head import head_values
from jaxalign.objective import Objective


def _policy(scored: TokenLogProbs, batch: Groups, **options) -> Objective:
    def rows(x):
        return None if x is None else x.reshape(-1, *x.shape[2:])

    return policy_loss(
        rows(scored.log_probs),
        rows(batch.advantages),
        rows(batch.mask),
        old_log_probs=rows(batch.old_log_probs),
        reference_log_probs=rows(batch.reference_log_probs),
        entropy=rows(scored.entropy),
        **options,
    )


def _own(x):
    """Without the last member of each group, which is the given answer."""
    return None if x is None else x[:, :-1]


def _grao(scored: TokenLogProbs, batch: Groups, **options) -> Objective:
    given = (scored.log_probs[:, -1], batch.mask[:, -1])
    advantages = (_own(batch.advantages), batch.advantages[:, -1])
    return grao_loss(_own(scored.log_probs), _own(batch.mask), *given, *advantages, **options)


def _dypo(scored: TokenLogProbs, batch: Groups, **options) -> Objective:
    return dypo_loss(
        _own(scored.log_probs),
        _own(batch.advantages),
        _own(batch.mask),
        _own(batch.rewards),
        scored.log_probs[:, -1],
        batch.mask[:, -1],
        old_log_probs=_own(batch.old_log_probs),
        reference_log_probs=_own(batch.reference_log_probs),
        **options,
    )


def _chains(loss: Callable[..., Objective], scored: TokenLogProbs, batch: Groups, **options) -> Objective:
    """The losses of chains by their mean log-probs, on the distinct chains of each group by their rewards.

    The chains are those of the policy at the beginning of this step, not a set sampled once before training. The given
    one comes first: of equal chains the first counts, and of equally good ones RRHF and PRO imitate the first.
    """
    arrays = (scored.log_probs, batch.completions, batch.mask, batch.rewards)
    log_probs, ids, mask, rewards = (jnp.roll(x, 1, axis=1) for x in arrays)
    scores, there = chain_scores(log_probs, mask)
    valid = there & distinct_chains(ids, mask)
    if loss is aft_loss:
        options["imitated"] = jnp.zeros_like(valid).at[:, 0].set(True)
    result = loss(scores, rewards, valid, **options)
    counts = (x.sum(dtype=scores.dtype) for x in (there & ~valid, there))
    return result._replace(metrics=result.metrics | {"copies": tuple(counts)})


def _ppo(scored: TokenLogProbs, values, batch: Groups, **options) -> Objective:
    def rows(x):
        return None if x is None else x.reshape(-1, x.shape[-1])

    arrays = ("advantages", "mask", "old_values", "returns", "old_log_probs", "reference_log_probs")
    given = {name: rows(getattr(batch, name)) for name in arrays}
    return ppo_loss(rows(scored.log_probs), rows(values), entropy=rows(scored.entropy), **given, **options)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "policy_loss": _policy,
    "grao_loss": _grao,
    "dypo_loss": _dypo,
    **{loss.__name__: functools.partial(_chains, loss) for loss in (aft_loss, rrhf_loss, pro_loss)},
}


def make_loss(
    decoder,
    *,
    temperature: float,
    share_prompt: bool,
    objective: str = "policy_loss",
    detach_values: bool = True,
    **options,
) -> Callable:
    """loss_fn(params, Groups, key, extra) -> Objective; `options` are those of the loss that `objective` names."""

    def loss_fn(params, batch: Groups, key, extra):
        del key, extra
        hidden = predicting_states(decoder, params, *batch[:4], share_prompt=share_prompt)
        scored = log_probs_of_states(decoder, params, hidden, batch.completions, temperature=temperature)
        if objective == "ppo_loss":
            values = head_values(params, hidden, detached=detach_values).reshape(batch.mask.shape)
            result = _ppo(scored, values, batch, **options)
        else:
            result = OBJECTIVES[objective](scored, batch, **options)
        return result._replace(weight=result.weight + batch.absent_weight.sum())

    return loss_fn
