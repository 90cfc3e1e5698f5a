"""Pairs of completions as batches, their summed log-probs, and what a preference loss makes of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.questions import PROMPT_BUCKET, encode_prompt, padded
from jaxalign.data.preferences import Preference, Preferences
from jaxalign.decoding.sampler import bucket_length
from jaxalign.errors import UserError
from jaxalign.losses.preference import PREFERENCE_LOSSES, PairLogProbs, preference_loss
from jaxalign.losses.preference import is_batch_coupled as pairs_interact
from jaxalign.losses.preference_tokens import length_desensitised_weights, sequence_sums
from jaxalign.losses.preference_unpaired import UnpairedLogProbs, UnpairedLoss, unpaired_loss
from jaxalign.losses.preference_unpaired import is_batch_coupled as rows_interact
from jaxalign.losses.symbolic.compilation import symbolic_loss
from jaxalign.losses.symbolic.structures import parse_structure
from jaxalign.models.scoring import completion_log_probs
from jaxalign.objective import Objective
from jaxalign.training.accumulation import CoupledLoss

COMPLETION_BUCKET = 8  # completions are padded to a multiple of this many tokens


class PairBatch(NamedTuple):
    """P prompts with two completions each: chosen and rejected, or (labelled) own and another prompt's."""

    prompts: chex.Array  # [P, S]
    prompt_lengths: chex.Array  # [P]
    completions: chex.Array  # [P, 2, T]
    mask: chex.Array  # [P, 2, T]
    side: chex.Array  # [P]: the label of labelled rows, else the difference of scores
    reference: chex.Array | None = None  # [P, 2]: summed log-probs under the reference, nats


class Sums(NamedTuple):
    """Summed log-probs (nats) and lengths (tokens) of both completions, [P, 2]."""

    log_probs: chex.Array
    lengths: chex.Array


def read_preferences(spec: str, tokenizer, config) -> Preferences:
    """The good rows of a source, as the config's groups `data`, `preference` and `loss` want them."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text) + list(tokenizer.eos_ids[:1])

    return Preferences(
        spec,
        lambda prompt: encode_prompt(tokenizer, prompt, config.data),
        encode,
        config.data,
        labelled=config.preference.labelled,
        needs_scores=config.loss.get("loss") == "odpo",
    )


class Collate:
    """Rows -> host arrays of one shape, wide enough for every row of `data`."""

    def __init__(self, *data: Sequence[Preference], labelled: bool):
        rows = [row for preferences in data for row in preferences]
        self._prompt_width = bucket_length([len(row.prompt_ids) for row in rows], PROMPT_BUCKET)
        self._width = bucket_length([len(ids) for row in rows for ids in row.completion_ids], COMPLETION_BUCKET)
        self._labelled = labelled

    def __call__(self, rows: Sequence[Preference], size: int | None = None) -> PairBatch:
        """With `size`, filled up to that many rows by rows whose masks are 0."""
        size = size or len(rows)
        filler = [rows[0]] * (size - len(rows))
        prompts, lengths = padded([row.prompt_ids for row in [*rows, *filler]], self._prompt_width)
        completions = np.zeros((size, 2, self._width), np.int32)
        mask = np.zeros((size, 2, self._width), np.float32)
        side = np.zeros(size, np.float32)
        for number, row in enumerate(rows):
            for which, ids in enumerate(row.completion_ids):
                completions[number, which, : len(ids)] = ids
                mask[number, which, : len(ids)] = 1
            side[number] = row.label if self._labelled else row.score_difference or 0.0
        return PairBatch(prompts, lengths, completions, mask, side)

    def abstract(self, size: int, *, with_reference: bool) -> PairBatch:
        """The shapes of a batch of that many rows."""

        def array(*shape, dtype=jnp.float32):
            return jax.ShapeDtypeStruct((size, *shape), dtype)

        return PairBatch(
            array(self._prompt_width, dtype=jnp.int32),
            array(dtype=jnp.int32),
            array(2, self._width, dtype=jnp.int32),
            array(2, self._width),
            array(),
            array(2) if with_reference else None,
        )


def make_score(decoder, preference) -> Callable[..., Sums]:
    """(params, PairBatch) -> Sums; both completions stand behind one copy of their prompt if `share_prompt`."""

    def score(params, batch: PairBatch) -> Sums:
        scored = completion_log_probs(decoder, params, *batch[:4], share_prompt=preference.share_prompt)
        weights = None
        if preference.length_desensitisation != 1:
            weights = length_desensitised_weights(batch.mask, preference.length_desensitisation)
        return Sums(*sequence_sums(scored.log_probs, batch.mask, weights))

    return score


class Measure:
    """What the config's loss makes of sums: the same for a training batch and for all held-out pairs together.

    Raises UserError: unknown loss, a formula that cannot be read.
    """

    def __init__(self, config):
        self.options = dict(config.loss)
        self.labelled = config.preference.labelled
        self.symbolic = "formula" in self.options
        if self.symbolic:
            self.name = f"of the formula {self.options['formula']}"
            variables = parse_structure(self.options["formula"]).variables
            self.needs_reference = any(name.startswith("reference") for name in variables)
            self.uses_means = self.options["log_prob"] == "sequence-mean"
            self.batch_coupled = False
            return
        self.name = self.options["loss"]
        known = get_args(UnpairedLoss) if self.labelled else tuple(PREFERENCE_LOSSES)
        if self.options["loss"] not in known:
            raise UserError(
                f"config.loss.loss={self.options['loss']!r} is not known here; use one of {', '.join(known)}"
            )
        self._offset_scale = config.preference.offset_scale
        self.needs_reference = self.labelled or PREFERENCE_LOSSES[self.options["loss"]].needs_reference
        # whether the implicit reward is per token: of the losses without a reference that read mean log-probs
        self.uses_means = not self.labelled and PREFERENCE_LOSSES[self.options["loss"]].reward == "mean_log_prob"
        self.batch_coupled = (rows_interact if self.labelled else pairs_interact)(**self.options)

    def __call__(self, sums: Sums, reference, side, mask) -> Objective:
        first, second = sums.log_probs[:, 0], sums.log_probs[:, 1]
        references = (None, None) if reference is None else (reference[:, 0], reference[:, 1])
        if self.labelled:
            rows = UnpairedLogProbs(first, references[0], second, references[1], side, sums.lengths[:, 0], mask)
            return unpaired_loss(rows, **self.options)
        pairs = PairLogProbs(first, second, *references, sums.lengths[:, 0], sums.lengths[:, 1], mask)
        if self.symbolic:
            return symbolic_loss(**pairs._asdict(), **self.options)
        offset = {"offset": self._offset_scale * side} if self.options["loss"] == "odpo" else {}
        return preference_loss(pairs, **self.options, **offset)


def make_loss(decoder, preference, measure: Measure) -> Callable:
    """loss_fn(params, PairBatch, key, extra) -> Objective; cut at the sums if the rows of a batch interact."""
    score = make_score(decoder, preference)

    def outputs(params, batch: PairBatch, key, extra) -> Sums:
        del key, extra
        return score(params, batch)

    def objective(sums: Sums, batch: PairBatch, key, extra) -> Objective:
        del key, extra
        return measure(sums, batch.reference, batch.side, jnp.ones_like(batch.side))

    loss = CoupledLoss(outputs, objective)
    return loss if measure.batch_coupled else loss.__call__
