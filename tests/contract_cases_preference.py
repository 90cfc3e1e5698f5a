"""Contract cases of preference losses: rows 2 i and 2 i + 1 of the batch are the two completions of pair i."""

import functools

from jaxalign.losses.multi_objective import multi_objective_loss
from jaxalign.losses.preference import PREFERENCE_LOSSES, PairLogProbs, is_batch_coupled, preference_loss
from jaxalign.losses.preference_confidence import confidence_loss
from jaxalign.losses.preference_tokens import sequence_sums
from jaxalign.losses.preference_unpaired import UnpairedLogProbs, unpaired_loss
from jaxalign.losses.preference_unpaired import is_batch_coupled as rows_interact
from jaxalign.methods import METHODS


def _sums(outputs, batch):
    """[B, 2] sums of policy and reference, and lengths."""
    sums, lengths = sequence_sums(outputs["log_probs"], batch["mask"])
    references, _ = sequence_sums(batch["reference_log_probs"], batch["mask"])
    return (x.reshape(-1, 2) for x in (sums, references, lengths))


def pair_case(token_case, options, seed, rows, dtype, scorer):
    """Any setting of `preference_loss`; the sums are made of token log-probs."""

    def loss(outputs, batch):
        sums, references, lengths = _sums(outputs, batch)
        arrays = {"offset": references[:, 0] / 10} if options["loss"] == "odpo" else {}
        columns = (sums[:, 0], sums[:, 1], references[:, 0], references[:, 1], lengths[:, 0], lengths[:, 1])
        return preference_loss(PairLogProbs(*columns, lengths[:, 0] > 0), **options, **arrays)

    return token_case(seed, rows, dtype, scorer, loss)._replace(additive=not is_batch_coupled(**options))


def label_case(token_case, options, seed, rows, dtype, scorer):
    """Any setting of `unpaired_loss`: the first of two rows is labelled, the second is its mismatched completion."""

    def loss(outputs, batch):
        sums, references, lengths = _sums(outputs, batch)
        label = batch["label"].reshape(-1, 2)[:, 0]
        columns = (sums[:, 0], references[:, 0], sums[:, 1], references[:, 1], label, lengths[:, 0], lengths[:, 0] > 0)
        return unpaired_loss(UnpairedLogProbs(*columns), **options)

    def extra(random, batch):
        del random, batch
        return {"label": [row // 2 % 2 for row in range(rows)]}

    case = token_case(seed, rows, dtype, scorer, loss, extra=extra, per_row=("label",))
    return case._replace(additive=not rows_interact(**options))


def confidence_case(token_case, options, seed, rows, dtype, scorer):
    """`confidence_loss` with three annotators, and one that is none of them."""

    def loss(outputs, batch):
        sums, references, lengths = _sums(outputs, batch)
        annotator = batch["annotator"].reshape(-1, 2)[:, 0]
        columns = (sums[:, 0], sums[:, 1], references[:, 0], references[:, 1], lengths[:, 0], lengths[:, 1])
        pairs = PairLogProbs(*columns, lengths[:, 0] > 0)
        return confidence_loss(pairs, (0.9, 0.7, 0.4), annotator, **options)

    def extra(random, batch):
        del random, batch
        return {"annotator": [row // 2 % 4 for row in range(rows)]}

    return token_case(seed, rows, dtype, scorer, loss, extra=extra, per_row=("annotator",))


def objectives_case(token_case, options, seed, rows, dtype, scorer):
    """`multi_objective_loss` of two objectives that agree, disagree and are tied."""

    def loss(outputs, batch):
        sums, references, lengths = _sums(outputs, batch)
        signs = batch["signs"].reshape(-1, 2).T
        columns = (sums[:, 0], sums[:, 1], references[:, 0], references[:, 1], lengths[:, 0], lengths[:, 1])
        return multi_objective_loss(PairLogProbs(*columns, lengths[:, 0] > 0), signs, (0.7, 0.3), **options)

    def extra(random, batch):
        del batch
        return {"signs": random.integers(-1, 2, rows)}

    case = token_case(seed, rows, dtype, scorer, loss, extra=extra, per_row=("signs",))
    return case._replace(additive=not options.get("drop_ties", False))


def cases(token_case):
    pairs = {name: {"loss": name} for name in PREFERENCE_LOSSES}
    pairs |= {name: row.loss for name, row in METHODS.items() if row.pieces[0].endswith(":preference_loss")}
    pairs["cpo with another likelihood"] = {"loss": "cpo", "likelihood": "sequence-mean"}
    pairs["dpo of an alpha divergence"] = {"loss": "dpo", "divergence": "alpha"}
    labels = {name: {"loss": name} for name in ("kto", "bco", "apo_zero_unpaired")}
    labels["bco"] = {"loss": "bco", "reduction": "class-balanced", "reward_shift": 0.1}
    doubted = {"lcpo": METHODS["lcpo"].loss}
    several = {name: METHODS[name].loss for name in ("raco", "amopo")}
    several["raco without ties"] = {"drop_ties": True}
    return {
        **{name: functools.partial(pair_case, token_case, options) for name, options in pairs.items()},
        **{name: functools.partial(label_case, token_case, options) for name, options in labels.items()},
        **{name: functools.partial(confidence_case, token_case, options) for name, options in doubted.items()},
        **{name: functools.partial(objectives_case, token_case, options) for name, options in several.items()},
    }
