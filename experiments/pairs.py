"""Pairs of completions as batches, their summed log-probs, and what a preference loss makes of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.questions import PROMPT_BUCKET, encode_prompt, padded
from jaxalign.controllers import label_confidence, reward_shift
from jaxalign.controllers.label_confidence import LabelConfidence
from jaxalign.controllers.reward_shift import RewardShift
from jaxalign.data.preferences import Preference, Preferences, sign
from jaxalign.decoding.sampler import bucket_length
from jaxalign.errors import UserError
from jaxalign.gradients.pair_normalisation import joined_halves, normalised_halves
from jaxalign.losses.preference import PREFERENCE_LOSSES, PairLogProbs, preference_loss
from jaxalign.losses.preference import is_batch_coupled as pairs_interact
from jaxalign.losses.preference_confidence import confidence_loss, implied_margin
from jaxalign.losses.preference_gates import common_token_gates
from jaxalign.losses.preference_tokens import length_desensitised_weights, sequence_sums
from jaxalign.losses.preference_unpaired import UnpairedLogProbs, UnpairedLoss, unpaired_loss
from jaxalign.losses.preference_unpaired import is_batch_coupled as rows_interact
from jaxalign.losses.symbolic.compilation import symbolic_loss
from jaxalign.losses.symbolic.structures import parse_structure
from jaxalign.models.scoring import completion_log_probs
from jaxalign.objective import Objective
from jaxalign.training.accumulation import CoupledLoss

TRACKED = "loss"  # the entry of TrainState.extra with the state of a loss that follows what it sees
COMPLETION_BUCKET = 8  # completions are padded to a multiple of this many tokens


class PairBatch(NamedTuple):
    """P prompts with two completions each: chosen and rejected, or (labelled) own and another prompt's."""

    prompts: chex.Array  # [P, S]
    prompt_lengths: chex.Array  # [P]
    completions: chex.Array  # [P, 2, T]
    mask: chex.Array  # [P, 2, T]
    side: chex.Array  # [P]: the label of labelled rows, else the difference of scores; [P, m]: signs of m objectives
    reference: chex.Array | None = None  # [P, 2]: summed log-probs under the reference, nats
    annotator: chex.Array | None = None  # [P]: the number of who judged; -1: somebody that training has not seen
    weight: chex.Array | None = None  # [P]: of labelled rows


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
    """Rows -> host arrays of one shape, wide enough for every row of `data`. `annotators` are numbered by order.

    With `objectives` the third column is their signs.
    """

    def __init__(
        self,
        *data: Sequence[Preference],
        labelled: bool,
        annotators: Sequence[str] = ("",),
        objectives: Sequence[str] = (),
    ):
        rows = [row for preferences in data for row in preferences]
        self._prompt_width = bucket_length([len(row.prompt_ids) for row in rows], PROMPT_BUCKET)
        self._width = bucket_length([len(ids) for row in rows for ids in row.completion_ids], COMPLETION_BUCKET)
        self._labelled, self._objectives = labelled, tuple(objectives)
        self._annotators = {name: number for number, name in enumerate(annotators)}

    def __call__(self, rows: Sequence[Preference], size: int | None = None) -> PairBatch:
        """With `size`, filled up to that many rows by rows whose masks are 0."""
        size = size or len(rows)
        filler = [rows[0]] * (size - len(rows))
        prompts, lengths = padded([row.prompt_ids for row in [*rows, *filler]], self._prompt_width)
        completions = np.zeros((size, 2, self._width), np.int32)
        mask = np.zeros((size, 2, self._width), np.float32)
        side = np.zeros((size, *self._side_shape), np.float32)
        annotator = np.full(size, -1, np.int32)
        weight = np.zeros(size, np.float32)
        for number, row in enumerate(rows):
            for which, ids in enumerate(row.completion_ids):
                completions[number, which, : len(ids)] = ids
                mask[number, which, : len(ids)] = 1
            if self._objectives:
                side[number] = [sign(row, name) for name in self._objectives]
            else:
                side[number] = row.label if self._labelled else row.score_difference or 0.0
            annotator[number] = self._annotators.get(row.annotator, -1)
            weight[number] = row.weight
        return PairBatch(prompts, lengths, completions, mask, side, None, annotator, weight)

    @property
    def _side_shape(self) -> tuple[int, ...]:
        return (len(self._objectives),) if self._objectives else ()

    def abstract(self, size: int, *, with_reference: bool) -> PairBatch:
        """The shapes of a batch of that many rows."""

        def array(*shape, dtype=jnp.float32):
            return jax.ShapeDtypeStruct((size, *shape), dtype)

        return PairBatch(
            array(self._prompt_width, dtype=jnp.int32),
            array(dtype=jnp.int32),
            array(2, self._width, dtype=jnp.int32),
            array(2, self._width),
            array(*self._side_shape),
            array(2) if with_reference else None,
            array(dtype=jnp.int32),
            array(),
        )


def make_score(decoder, preference) -> Callable[..., Sums]:
    """(params, PairBatch) -> Sums; both completions stand behind one copy of their prompt if `share_prompt`."""

    def score(params, batch: PairBatch) -> Sums:
        scored = completion_log_probs(decoder, params, *batch[:4], share_prompt=preference.share_prompt)
        weights = None
        if preference.length_desensitisation != 1:
            weights = length_desensitised_weights(batch.mask, preference.length_desensitisation)
        if preference.gate == "diff":
            gates = common_token_gates(batch.completions, batch.mask)
            weights = gates if weights is None else weights * gates
        return Sums(*sequence_sums(scored.log_probs, batch.mask, weights))

    return score


class Measure:
    """What the config's loss makes of sums: the same for a training batch and for all held-out pairs together.

    A loss may follow what it sees: `start` is its state before training, `follow` the state after a batch, and the
    state that a call is given decides how the batch is read. It lives in `TrainState.extra[TRACKED]`.

    Raises UserError: unknown loss, a formula that cannot be read.
    """

    objectives: tuple[str, ...] = ()  # see experiments.multi_objective
    combine = None

    def __init__(self, config):
        self.options = dict(config.loss)
        self._shift, self._confidence = dict(config.preference.shift), dict(config.preference.confidence)
        self.shifts, self.doubts = self._shift.pop("enabled"), self._confidence.pop("enabled")
        self.tracked = self.shifts or self.doubts
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

    def start(self, annotators: int) -> RewardShift | LabelConfidence:
        """The state of a `tracked` loss before training."""
        return reward_shift.init() if self.shifts else label_confidence.init(annotators, self._confidence["start"])

    def follow(self, state, sums: Sums, reference, side, mask, annotator):
        """The state after a batch; once per step."""
        if self.shifts:
            columns = slice(0, 1) if self.labelled else slice(0, 2)  # of a pair, chosen is desirable and rejected not
            rewards = self.options["beta"] * (sums.log_probs[:, columns] - reference[:, columns])
            counts = mask[:, None] * (sums.lengths[:, columns] > 0)
            label = side[:, None] if self.labelled else jnp.broadcast_to(jnp.array([1.0, 0.0]), rewards.shape)
            return reward_shift.update(state, *map(jnp.ravel, (rewards, label, counts)), **self._shift)[0]
        pairs, options = self._pairs(sums, reference, side, mask)
        confidences, _ = label_confidence.confidence(implied_margin(pairs, **options), state, annotator)
        counts = mask * (sums.lengths > 0).all(axis=1)
        settings = {name: self._confidence[name] for name in ("rate", "estimate")}
        return label_confidence.update(state, confidences, annotator, counts, **settings)[0]

    def __call__(
        self, sums: Sums, reference, side, mask, *, state=None, annotator=None, weight=None, training: bool = False
    ) -> Objective:
        """`state` None: the loss as it is without one. In training BCO's shift holds the batch that it is used for."""
        shift = {}
        if self.shifts and state is not None:
            if training:
                state = self.follow(state, sums, reference, side, mask, annotator)
            shift = {"reward_shift": state.shift}
        if self.labelled:
            completion, mismatched = sums.log_probs[:, 0], sums.log_probs[:, 1]
            columns = (completion, reference[:, 0], mismatched, reference[:, 1], side, sums.lengths[:, 0], mask)
            return unpaired_loss(UnpairedLogProbs(*columns), **self.options | shift, weights=weight)
        pairs, options = self._pairs(sums, reference, side, mask)
        if self.symbolic:
            return symbolic_loss(**pairs._asdict(), **options)
        if self.doubts and state is not None:  # confidences come from the reliability before the batch
            return confidence_loss(pairs, state, annotator, mode=self._confidence["mode"], **options)
        return preference_loss(pairs, **options | shift)

    def _pairs(self, sums: Sums, reference, side, mask) -> tuple[PairLogProbs, dict]:
        """What a loss of pairs reads, and its options."""
        offset = {"offset": self._offset_scale * side} if self.options.get("loss") == "odpo" else {}
        return pair_log_probs(sums, reference, mask), self.options | offset


def pair_log_probs(sums: Sums, reference, mask) -> PairLogProbs:
    """`reference` [P, 2], or None."""
    references = (None, None) if reference is None else (reference[:, 0], reference[:, 1])
    columns = (sums.log_probs[:, 0], sums.log_probs[:, 1], *references, sums.lengths[:, 0], sums.lengths[:, 1])
    return PairLogProbs(*columns, mask)


def make_loss(decoder, preference, measure) -> Callable:
    """loss_fn(params, PairBatch, key, extra) -> Objective; cut at the sums if the rows of a batch interact, or if the
    loss follows what it sees, or if its gradient comes in parts (of both completions, or of several objectives).

    measure: a `Measure`, or `experiments.multi_objective.Objectives`.
    """
    score = make_score(decoder, preference)
    halves = preference.gradient == "normalised"

    def outputs(params, batch: PairBatch, key, extra) -> Sums:
        del key, extra
        return score(params, batch)

    def arguments(sums, batch: PairBatch):
        return sums, batch.reference, batch.side, jnp.ones(len(batch.side), batch.side.dtype)

    def objective(sums, batch: PairBatch, key, extra) -> Objective:
        del key
        sums = joined_halves(sums) if halves else sums
        known = dict(state=extra.get(TRACKED), annotator=batch.annotator, weight=batch.weight if weighted else None)
        return measure(*arguments(sums, batch), **known, training=True)

    def update(sums: Sums, batch: PairBatch, extra):
        return {TRACKED: measure.follow(extra[TRACKED], *arguments(sums, batch), batch.annotator)}

    weighted = preference.density_ratio.enabled
    combine, copies = (normalised_halves, 2) if halves else (measure.combine, len(measure.objectives) or 1)
    loss = CoupledLoss(outputs, objective, update if measure.tracked else None, None, combine, copies if combine else 1)
    return loss if measure.batch_coupled or measure.tracked or combine else loss.__call__
