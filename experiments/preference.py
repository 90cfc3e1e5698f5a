"""Preference training of a decoder: pairs (chosen, rejected) or labelled completions, under any loss of the two tables.

A step scores both completions of each pair with one forward pass, and the loss reads their summed log-probs. The
reference is a frozen copy of the first weights, or its log-probs alone. What a paper changes is a setting of the loss
(`config.loss`, see `jaxalign.losses.preference` and `preference_unpaired`), never this file.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.entanglement import EntanglementMonitor
from experiments.multi_objective import Objectives, check_objectives, takes_objectives
from experiments.own_samples import sample_pairs
from experiments.pairs import TRACKED, Collate, Measure, PairBatch, Sums, make_loss, make_score, read_preferences
from experiments.prompt_distributions import weigh_by_prompts
from experiments.questions import HeldOut, Questions, make_rewards
from experiments.reference_cache import reference_log_probs
from experiments.session import Session
from experiments.setup import build_model, build_optimizer, build_policy, check_micro_batches, fresh_state, state_layout
from experiments.warm_start import first_weights
from jaxalign import objective
from jaxalign.data.order import Batches, BatchIterator
from jaxalign.data.preferences import Preference
from jaxalign.errors import UserError
from jaxalign.models.scoring import frozen_copy
from jaxalign.training import report
from jaxalign.training.loop import Advance
from jaxalign.training.mesh import all_processes, gather, spread


class Scorer:
    """Summed log-probs of any number of rows, `size` at a time, by one compiled program."""

    def __init__(self, model, collate: Collate, preference):
        self._collate, self._size, self._mesh = collate, preference.pairs_per_step, model.mesh
        self._score = jax.jit(make_score(model.decoder, preference))

    def batch(self, params, batch: PairBatch) -> Sums:
        """Of a batch on the devices; there too."""
        return self._score(params, batch._replace(reference=None, annotator=None, weight=None))

    def __call__(self, params, rows: Sequence[Preference]) -> Sums:
        """Of rows; on the host."""
        found = []
        for start in range(0, len(rows), self._size):
            part = rows[start : start + self._size]
            found.append(gather(self.batch(params, spread(self._collate(part, self._size), self._mesh))))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(rows)], *found)


class HeldOutPairs:
    """Loss, margins, accuracies and log-probs on held-out rows, all of them in one call of the loss."""

    def __init__(self, rows: Sequence[Preference], scorer: Scorer, measure, collate: Collate):
        self._rows, self._scorer, self._measure = rows, scorer, measure
        batch = collate(rows)
        self._side, self._annotator = batch.side, batch.annotator
        self._reference = None

    def __len__(self) -> int:
        return len(self._rows)

    def set_reference(self, reference) -> None:
        """Scores the rows by the reference's weights, once."""
        self.use_reference(self._scorer(reference, self._rows).log_probs)

    def use_reference(self, log_probs) -> None:
        """[N, 2] of the rows by the reference, known already."""
        self._reference = log_probs

    def metrics(self, params, tracked=None) -> dict[str, float]:
        """`tracked` is the state of a loss that has one."""
        sums, mask = self._scorer(params, self._rows), np.ones(len(self._rows), np.float32)
        found = self._measure(sums, self._reference, self._side, mask, state=tracked, annotator=self._annotator)
        means = objective.metric_means(found.metrics) | {"loss": objective.loss(found)}
        return {f"pairs/{name}": float(value) for name, value in means.items()}

    def record(self, session: Session, params, when: str) -> None:
        """Hands the table of the session the accuracy (that of each objective on the rows that it judges), and the mean
        log-probs of both completions."""
        if session.has("held-out log-prob, first completion", when):
            return
        session.print(f"  scoring {len(self)} held-out rows {when} training ...")
        sums = self._scorer(params, self._rows)
        for name, sign in zip(self._measure.objectives, self._side.T, strict=False):
            if sign.any():
                session.record(f"held-out accuracy, {name} (ties 1/2)", when, self._right(sums, sign)[sign != 0])
        if not (self._measure.labelled or self._measure.objectives):
            session.record("held-out preference accuracy (ties 1/2)", when, self._right(sums))
        session.record("held-out log-prob, first completion", when, sums.log_probs[:, 0], "nats")
        session.record("held-out log-prob, second completion", when, sums.log_probs[:, 1], "nats")

    def _right(self, sums: Sums, sign=1.0) -> np.ndarray:
        rewards = sums.log_probs if self._reference is None else sums.log_probs - self._reference
        if self._measure.uses_means:
            rewards = rewards / np.maximum(sums.lengths, 1)
        return (1 + np.sign(sign * (rewards[:, 0] - rewards[:, 1]))) / 2


def check(config) -> None:
    """Refuses settings that cannot work together. Raises UserError."""
    check_objectives(config)
    preference = config.preference
    check_micro_batches(config, "preference.pairs_per_step")
    if not 0 <= preference.length_desensitisation <= 1:
        raise UserError(
            f"config.preference.length_desensitisation={preference.length_desensitisation} must be in [0, 1]; 1 is off"
        )
    if preference.shift.enabled and config.loss.get("loss") not in ("bco", "bco_pair", "mpo"):
        raise UserError(
            "config.preference.shift.enabled follows the rewards for the losses bco, bco_pair and mpo, and no other "
            "reads it"
        )
    if preference.shift.enabled and preference.confidence.enabled:
        raise UserError("config.preference.shift.enabled and config.preference.confidence.enabled exclude each other")
    if preference.density_ratio.enabled and not preference.labelled:
        raise UserError("config.preference.density_ratio.enabled weighs labelled completions; pairs share their prompt")
    if preference.confidence.enabled and (preference.labelled or "formula" in config.loss):
        raise UserError("config.preference.confidence.enabled doubts pairs under a loss of the preference table")
    if preference.labelled and preference.length_desensitisation != 1:
        raise UserError("config.preference.length_desensitisation compares the completions of a pair: labels have none")
    if preference.gate not in ("identity", "diff"):
        raise UserError(f"config.preference.gate={preference.gate!r} is not known; use identity or diff")
    if preference.gradient not in ("loss", "normalised"):
        raise UserError(f"config.preference.gradient={preference.gradient!r} is not known; use loss or normalised")
    of_pairs = {
        "config.preference.gate": preference.gate != "identity",
        "config.preference.gradient": preference.gradient != "loss",
        "config.diagnostics.entanglement": config.diagnostics.entanglement,
    }
    for name, used in of_pairs.items():
        if used and preference.labelled:
            raise UserError(f"{name} is about chosen and rejected completions, and this loss takes labelled ones")
    if preference.reference not in ("live", "cached"):
        raise UserError(f"config.preference.reference={preference.reference!r} is not known; use live or cached")
    if preference.reference == "cached" and (config.diagnostics.entanglement or preference.density_ratio.enabled):
        raise UserError(
            "config.preference.reference='cached' lets the reference go after its log-probs are known, and "
            "config.diagnostics.entanglement and config.preference.density_ratio read its weights; use live"
        )
    if config.diagnostics.entanglement and min(config.diagnostics.every, config.diagnostics.pairs) < 1:
        raise UserError("config.diagnostics.every and config.diagnostics.pairs must be at least 1")


def check_start(policy: Sums, reference: Sums, measure, side) -> None:
    """Before the first step the policy is its reference: margin 0, KL 0, and the loss (of DPO: log 2) that follows.

    Raises UserError: it is not.
    """
    mask = np.ones(len(side), np.float32)
    found = measure(policy, reference.log_probs, side, mask)
    wanted = measure(reference, reference.log_probs, side, mask)
    losses = float(objective.loss(found)), float(objective.loss(wanted))
    difference = np.abs(np.asarray(policy.log_probs) - np.asarray(reference.log_probs)).max()
    allowed = 1e-2 + 1e-3 * np.abs(np.asarray(reference.log_probs)).max()  # rounding of long sums in bfloat16
    if not (difference <= allowed and math.isclose(*losses, rel_tol=1e-2, abs_tol=1e-2)):
        raise UserError(
            f"before the first step the policy is not its reference: summed log-probs differ by up to {difference:.3g} "
            f"nats and the loss is {losses[0]:.6g} instead of {losses[1]:.6g}; both must be computed from the same "
            "weights, template and masks"
        )


def run(config, workdir: str) -> None:
    """Trains with `config` in `workdir`; the same call again resumes."""
    check(config)
    preference = config.preference
    with Session(config, workdir) as session:
        measure = Objectives(config) if takes_objectives(config) else Measure(config)
        model = build_model(config)
        policy = build_policy(config, model)
        session.print(f"model: {model.source}")  # the first line: which weights, and why these
        first_params = None

        def start_params():
            """The first policy; read, and trained if there is a warm start, once."""
            nonlocal first_params
            if first_params is None:
                first_params = first_weights(config, model, session.print)
            return first_params

        spec = config.data.source
        if config.samples.per_question:
            path = session.workdir / "samples.jsonl"
            if not all_processes(np.array(path.exists()))[0]:  # the first process writes it
                with make_rewards(config.reward) as rewards:
                    sample_pairs(config, model, start_params(), rewards, path, session)
            spec = str(path)
        train = read_preferences(spec, model.tokenizer, config)
        held_out_rows = ()
        if config.data.held_out_pairs:
            held_out_rows = read_preferences(config.data.held_out_pairs, model.tokenizer, config).rows
            held_out_rows = held_out_rows[: config.evaluation.max_pairs]
        collate = Collate(
            train.rows,
            held_out_rows,
            labelled=preference.labelled,
            annotators=train.annotators,
            objectives=measure.objectives,
        )
        batches = Batches(train, preference.pairs_per_step, seed=config.seed)
        held_out = None
        if config.data.held_out:
            questions = Questions(config.data.held_out, model.tokenizer, config.data, "held_out")
            rewards = session.enter(make_rewards(config.reward))
            held_out = HeldOut(model, questions, rewards, config.evaluation)
        optimizer = build_optimizer(config)
        kind = "labelled completions" if preference.labelled else "pairs"
        session.announce(
            {
                "model": model.source,
                "parameters": policy.describe(),
                "data": f"{spec}: {len(train)} {kind}"
                + (f", {train.describe_left_out()}" if train.left_out else "")
                + (f"; held out: {len(held_out_rows)} of {config.data.held_out_pairs}" if held_out_rows else ""),
                "objectives": measure.check_judged(train, spec) if measure.objectives else None,
                "step": f"{preference.pairs_per_step} {kind} under the loss {measure.name}",
                "held out": config.data.held_out or None,
            },
            model.mesh,
        )

        # A policy that a warm start made is nowhere on disk, so its frozen copy is kept in the state. (The reference of
        # an adapter is its base, which is held anyway.)
        cached = measure.needs_reference and preference.reference == "cached"
        reference_in_state = (
            measure.needs_reference and config.warm_start.steps > 0 and policy.adapter is None and not cached
        )
        copy = jax.eval_shape(lambda: frozen_copy(model.decoder, model.decoder.init(jax.random.key(0)), exact=True))
        tracked = {TRACKED: measure.start(len(train.annotators))} if measure.tracked else {}
        held = {"reference": copy} if reference_in_state else {}
        if cached:
            known = {"train": train.rows, "held_out": held_out_rows}
            held = {"reference_log_probs": {name: np.zeros((len(rows), 2), np.float32) for name, rows in known.items()}}
        layout = state_layout(policy, optimizer, tracked | held)
        loss_fn = make_loss(model.decoder, preference, measure)
        # Traced once for its complaints: an option that a loss refuses is told before any weights are read.
        shapes = collate.abstract(preference.pairs_per_step, with_reference=measure.needs_reference)
        arguments = policy.abstract_weights(), shapes, layout.abstract.key, layout.abstract.extra
        jax.eval_shape(lambda *given: loss_fn(*given), *arguments)
        train_step = policy.train_step(loss_fn, optimizer, layout, micro_batches=config.train.micro_batches)
        scorer = Scorer(model, collate, preference)
        pairs = HeldOutPairs(held_out_rows, scorer, measure, collate) if held_out_rows else None

        monitor = None
        if config.diagnostics.entanglement:
            monitor = EntanglementMonitor(config, model, policy, measure, collate, train.rows)

        reference = None
        if session.latest is not None:  # before the state: two sets of weights never coexist
            policy.resume(start_params, session.checkpointer)
            if measure.needs_reference and not reference_in_state and not cached and policy.adapter is None:
                reference = frozen_copy(model.decoder, model.read(), exact=True)
        restored = session.restore(layout.abstract, BatchIterator(batches).set_state)
        if restored is not None:
            state, start = restored
            reference = state.extra["reference"] if reference_in_state else policy.base or reference
        else:
            params = policy.begin(start_params(), session.checkpointer)
            first_params = None  # policy and state own them from here on
            weights = policy.weights(params)
            if measure.needs_reference:
                reference = policy.base or frozen_copy(model.decoder, params, exact=True)
                first = batches[0]
                check_start(scorer(weights, first), scorer(reference, first), measure, collate(first).side)
            if held_out is not None:
                held_out.record(session, weights, "before")
            if cached:
                folder = Path(preference.reference_folder or session.workdir / "reference")
                scoring = {name: preference[name] for name in ("share_prompt", "length_desensitisation", "gate")}
                scoring["compute_dtype"] = config.model.compute_dtype
                found = {
                    name: reference_log_probs(
                        folder, reference, rows, lambda r: scorer(reference, r).log_probs, scoring, session.print
                    )
                    for name, rows in known.items()
                }
                held = {"reference_log_probs": found}
            elif reference_in_state:
                held = {"reference": reference}
            if pairs is not None:
                if cached:
                    pairs.use_reference(found["held_out"])
                elif measure.needs_reference:
                    pairs.set_reference(reference)
                pairs.record(session, weights, "before")
            state, start = fresh_state(config, params, optimizer, layout, tracked | held), 0
        if cached:
            known_log_probs = jax.tree.map(np.asarray, gather(state.extra["reference_log_probs"]))
            reference = policy.base
        if restored is not None and pairs is not None and measure.needs_reference:
            if cached:
                pairs.use_reference(known_log_probs["held_out"])
            else:
                pairs.set_reference(reference)
        if preference.density_ratio.enabled:
            weigh_by_prompts(train.rows, model, reference, preference, session)

        def advance(state, step: int) -> Advance:
            frozen = state.extra["reference"] if reference_in_state else reference
            began = time.perf_counter()
            batch = collate(batches[step])
            if cached:
                batch = batch._replace(reference=known_log_probs["train"][batches.indices(step)])
            on_device = spread(batch, model.mesh)
            if measure.needs_reference and not cached:
                on_device = on_device._replace(reference=scorer.batch(frozen, on_device).log_probs)
            # of the weights that this step starts from, which it will not leave behind
            found = {} if monitor is None or not monitor.due(step) else monitor.metrics(state, frozen)
            state, metrics = train_step(state, on_device)
            metrics = {name: float(value) for name, value in metrics.items()} | found
            metrics["completion_length"] = float(batch.mask.sum() / (2 * preference.pairs_per_step))
            tokens = float(batch.mask.sum() + batch.prompt_lengths.sum())
            metrics["tokens_per_second"] = tokens / (time.perf_counter() - began)
            return Advance(state, metrics, [], batch)

        def evaluate(state, done: int) -> dict[str, float]:
            del done
            weights = policy.evaluated(state)
            metrics = {} if held_out is None else held_out.metrics(weights)
            return metrics | ({} if pairs is None else pairs.metrics(weights, state.extra.get(TRACKED)))

        state, done = session.fit(
            state,
            advance,
            start=start,
            data_state=lambda done: BatchIterator(batches, done).get_state(),
            evaluate=None if held_out is None and pairs is None else evaluate,
        )
        if not session.stopped:
            for evaluation in (held_out, pairs):
                if evaluation is not None:
                    evaluation.record(session, policy.evaluated(state), "after")
            if monitor is not None:
                maps = monitor.heat_maps(state.params)
                if session.is_main:
                    report.write_heat_maps(session.workdir, maps)
        if measure.doubts:
            found = zip(train.annotators, np.asarray(state.extra[TRACKED].reliability), strict=True)
            each = ", ".join(f"{name or 'everybody'} {value:.3f}" for name, value in found)
            session.print(f"reliability of labels: {each}")
        session.finish(done)
