"""Contract cases of compiled formulas: rows 2 i and 2 i + 1 of the batch are the two completions of pair i."""

import functools

from jaxalign.losses.aggregation import masked
from jaxalign.losses.symbolic.compilation import symbolic_loss
from jaxalign.losses.symbolic.named import get_loss
from jaxalign.methods import METHODS

_TWO_MODELS = "chosen & (rejected -> reference_rejected) given chosen ^ rejected | reference_chosen"


def symbolic_case(token_case, options, seed, rows, dtype, scorer):
    """A loss of pairs whose sums are made of token log-probs."""

    def loss(outputs, batch):
        mask = batch["mask"]
        policy, reference = (masked(x, mask).sum(1) for x in (outputs["log_probs"], batch["reference_log_probs"]))
        lengths = (mask != 0).sum(1)
        return symbolic_loss(
            chosen=policy[::2],
            rejected=policy[1::2],
            reference_chosen=reference[::2],
            reference_rejected=reference[1::2],
            chosen_length=lengths[::2],
            rejected_length=lengths[1::2],
            mask=lengths[::2] > 0,
            **options,
        )

    def extra(random, batch):
        del random
        return {"reference_log_probs": -abs(batch["reference_log_probs"])}  # noise must not make them positive

    return token_case(seed, rows, dtype, scorer, loss, extra=extra)


def cases(token_case):
    settings = {f"symbolic {name}": get_loss(name).options for name in ("orpo", "slic", "uncpo")}
    settings["symbolic_dpa"] = METHODS["symbolic_dpa"].loss
    settings["symbolic, every option"] = {
        "formula": _TWO_MODELS,
        "beta": 0.5,
        "log_prob": "sequence-mean",
        "shift": -0.2,
        "likelihood_weight": 0.3,
    }
    return {name: functools.partial(symbolic_case, token_case, options) for name, options in settings.items()}
