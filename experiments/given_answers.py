"""Answers that come with the questions, as the last members of their groups: references, teachers, given chains."""

from typing import NamedTuple

import numpy as np

from experiments.groups import Groups
from jaxalign.errors import UserError

CHAIN_LOSSES = ("aft_loss", "rrhf_loss", "pro_loss")  # of jaxalign/losses/chain_alignment.py
COMPARED = ("grao_loss", *CHAIN_LOSSES)  # losses that compare the answer with the completions, by rewards
OBJECTIVES = (*COMPARED, "dypo_loss")  # all losses of given answers


class GivenAnswers(NamedTuple):
    texts: list[str]
    ids: np.ndarray  # [N, T]
    mask: np.ndarray  # [N, T]
    rewards: np.ndarray  # [N]; NaN: not a member of the group's statistics


def draw_answers(config, tokenizer, examples: list[dict], step: int) -> GivenAnswers:
    """One answer of each example, drawn anew in each step from the fields `data.answer_fields`; not rewarded.

    Raises UserError: an example without the field, or an answer that exceeds the generation budget.
    """
    fields, budget = config.data.answer_fields, config.rollout.max_new_tokens
    drawn = np.random.default_rng((config.seed, step)).integers(len(fields), size=len(examples))
    texts = []
    ids, mask = np.zeros((len(examples), budget), np.int32), np.zeros((len(examples), budget), np.float32)
    for row, (example, field) in enumerate(zip(examples, (fields[index] for index in drawn), strict=True)):
        text = example.get(field)
        if not isinstance(text, str):
            raise UserError(
                f"the question {example['prompt'][:60]!r} has no text under {field!r}, which config.data.answer_fields "
                f"names; its fields are {', '.join(map(str, example))}"
            )
        answer = tokenizer.encode(text) + list(tokenizer.eos_ids[:1])
        if len(answer) > budget:
            raise UserError(
                f"the answer {text[:60]!r} has {len(answer)} tokens, more than config.rollout.max_new_tokens={budget}; "
                "raise the budget or leave such examples out"
            )
        texts.append(text)
        ids[row, : len(answer)], mask[row, : len(answer)] = answer, 1
    return GivenAnswers(texts, ids, mask, np.full(len(texts), np.nan, np.float32))


def with_given(batch: Groups, given: GivenAnswers, weights: np.ndarray) -> Groups:
    """The batch with the given answers as the last member of each group."""
    added = {"completions": given.ids, "mask": given.mask, "advantages": weights, "rewards": given.rewards}

    def joined(name: str, x):
        if x is None:
            return None
        last = added.get(name, np.zeros((len(x), *x.shape[2:]), x.dtype))
        return np.concatenate([x, last[:, None].astype(x.dtype)], axis=1)

    names = ("completions", "mask", "advantages", "old_log_probs", "reference_log_probs", "rewards")
    return batch._replace(**{name: joined(name, getattr(batch, name)) for name in names})
