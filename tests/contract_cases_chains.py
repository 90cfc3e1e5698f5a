"""Cases of the losses that compare the chains of one question by their scores: groups of four, the last one given."""

import numpy as np

from jaxalign.losses import chain_alignment
from jaxalign.methods import METHODS

GROUP = 4


def cases(token_case):
    """Builders by name; `token_case` is that of `tests.contract_cases`, which imports this module."""

    def builder(function, **options):
        def build(seed, rows, dtype, scorer):
            case = token_case(seed, rows, dtype, scorer, _loss(function, options), extra=_extra(rows), keep=_KEEP)
            return case._replace(as_one_program=True)

        return build

    return {
        "aft": builder(_aft, **METHODS["aft"].loss | {"constraint": "boundary"}),  # the form with all terms
        "rrhf_lists": builder(chain_alignment.rrhf_loss, **METHODS["rrhf_lists"].loss),
        "pro": builder(chain_alignment.pro_loss, **METHODS["pro"].loss),
    }


_KEEP = ("mask", "rewards")


def _aft(scores, rewards, valid, **options):
    last = np.arange(GROUP) == GROUP - 1
    imitated = np.broadcast_to(last, scores.shape)
    return chain_alignment.aft_loss(scores, rewards, valid, imitated=imitated, **options)


def _loss(function, options):
    def loss(outputs, batch):
        log_probs, mask = (x.reshape(-1, GROUP, x.shape[-1]) for x in (outputs["log_probs"], batch["mask"]))
        return function(*_scored(log_probs, batch["rewards"], mask), **options)

    return loss


def _scored(log_probs, rewards, mask):
    scores, valid = chain_alignment.chain_scores(log_probs, mask)
    return scores, rewards.reshape(valid.shape), valid


def _extra(rows):
    """Two groups as they come; one whose given chain is missing; one that is empty altogether."""

    def extra(random, batch):
        mask = np.array(batch["mask"])
        mask[0] = 1
        mask[3 * GROUP - 1] = 0
        mask[3 * GROUP :] = 0
        return {"rewards": random.integers(0, 3, rows) + (np.arange(rows) % 2), "mask": mask}

    return extra
