"""Cases of the losses that learn from an answer that comes with the prompt: the last row of each group of four."""

import numpy as np

from jaxalign.losses import dypo, grao
from jaxalign.methods import METHODS

GROUP = 4  # three completions and the answer


def cases(token_case):
    """Builders by name; `token_case` is that of `tests.contract_cases`, which imports this module."""

    def builder(make):
        def build(seed, rows, dtype, scorer):
            loss, extra, keep = make(rows)
            case = token_case(seed, rows, dtype, scorer, loss, extra=extra, keep=keep)
            return case._replace(as_one_program=True)

        return build

    return {"grao": builder(_grao), "dypo": builder(_dypo)}


def _grouped(x):
    return x.reshape(-1, GROUP, *x.shape[1:])


def _masks(batch):
    """Two groups as they come; one whose answer is missing; one that is empty altogether."""
    mask = np.array(batch["mask"])
    mask[0] = 1  # no group without own tokens but the last
    mask[2 * GROUP + GROUP - 1] = 0
    mask[3 * GROUP :] = 0
    return mask


def _grao(rows):
    def loss(outputs, batch):
        log_probs, mask, advantages = (_grouped(x) for x in (outputs["log_probs"], batch["mask"], batch["advantages"]))
        given = (log_probs[:, -1], mask[:, -1])
        weights = (advantages[:, :-1], advantages[:, -1])
        return grao.grao_loss(log_probs[:, :-1], mask[:, :-1], *given, *weights, **METHODS["grao"].loss)

    def extra(random, batch):
        return {"advantages": random.normal(size=rows), "mask": _masks(batch)}

    return loss, extra, ("mask", "advantages")


def _dypo(rows):
    def loss(outputs, batch):
        names = ("mask", "advantages", "rewards", "old_log_probs", "reference_log_probs")
        own = {name: _grouped(batch[name])[:, :-1] for name in names}
        log_probs, mask = _grouped(outputs["log_probs"]), _grouped(batch["mask"])
        given = {"teacher_log_probs": log_probs[:, -1], "teacher_mask": mask[:, -1]}
        return dypo.dypo_loss(log_probs[:, :-1], **own, **given, **METHODS["dypo"].loss)

    def extra(random, batch):
        rewards = np.zeros(rows)
        rewards[GROUP : GROUP + 2] = 1  # hard, mid, easy by turns
        rewards[2 * GROUP : 3 * GROUP] = 1
        return {"advantages": random.normal(size=rows), "rewards": rewards, "mask": _masks(batch)}

    return loss, extra, ("mask", "advantages", "rewards")
