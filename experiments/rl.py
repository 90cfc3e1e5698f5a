"""Group-relative policy-gradient training of a decoder on questions with a checkable answer.

One step: take prompts, sample a group of completions for each, reward them, turn rewards into advantages, and make
`rl.epochs` x `rl.batches_per_epoch` updates on them. What a paper changes is a setting (how advantages are made, how
the ratio is taken and clipped, how tokens are summed; see `jaxalign.methods`), never this file.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.questions import HeldOut, Questions, make_rewards, prompt_width
from experiments.rollout import Groups, RolloutWorker, abstract_groups, drop_silent_groups, reference_use
from experiments.session import Session
from experiments.setup import build_model, build_optimizer, fresh_state, state_layout
from experiments.warm_start import warm_start
from jaxalign.data.order import Batches, BatchIterator
from jaxalign.errors import UserError
from jaxalign.losses.policy_gradient import policy_loss
from jaxalign.models.scoring import completion_log_probs, frozen_copy
from jaxalign.rewards.advantages import advantages
from jaxalign.training.loop import Advance
from jaxalign.training.mesh import batch_shards, spread
from jaxalign.training.step import make_train_step


def make_loss(decoder, *, temperature: float, share_prompt: bool, **options) -> Callable:
    """loss_fn(params, Groups, key, extra) -> Objective; `options` are those of `policy_loss`."""

    def loss_fn(params, batch: Groups, key, extra):
        del key, extra
        scored = completion_log_probs(decoder, params, *batch[:4], temperature=temperature, share_prompt=share_prompt)

        def rows(x):
            return None if x is None else x.reshape(-1, *x.shape[2:])

        objective = policy_loss(
            rows(scored.log_probs),
            rows(batch.advantages),
            rows(batch.mask),
            old_log_probs=rows(batch.old_log_probs),
            reference_log_probs=rows(batch.reference_log_probs),
            entropy=rows(scored.entropy),
            **options,
        )
        return objective._replace(weight=objective.weight + batch.absent_weight.sum())

    return loss_fn


def update_batches(batch: Groups, rl, seed: int, step: int):
    """The batches of a step's updates: `epochs` passes over the prompts in new random orders, each in equal parts."""
    prompts = len(batch.prompts)
    for epoch in range(rl.epochs):
        order = np.arange(prompts)
        if rl.batches_per_epoch > 1:
            order = np.random.default_rng((seed, step, epoch)).permutation(prompts)
        for part in np.split(order, rl.batches_per_epoch):
            yield batch if rl.batches_per_epoch == 1 else jax.tree.map(lambda x, part=part: x[part], batch)


def check(config) -> None:
    """Refuses settings that cannot work together. Raises UserError."""
    rl, rollout = config.rl, config.rollout
    if rl.epochs < 1 or rl.batches_per_epoch < 1 or rollout.group_size < 1:
        raise UserError(
            "config.rl.epochs, config.rl.batches_per_epoch and config.rollout.group_size must be at least 1"
        )
    pieces = rl.batches_per_epoch * config.train.micro_batches
    if rollout.prompts_per_step % pieces:
        raise UserError(
            f"config.rollout.prompts_per_step={rollout.prompts_per_step} does not divide into "
            f"config.rl.batches_per_epoch={rl.batches_per_epoch} x config.train.micro_batches="
            f"{config.train.micro_batches} parts; the prompts of a step are dealt out whole groups at a time"
        )
    if config.reward.combine == "normalise_each" and (
        rl.advantages.get("scale") != "none" or config.reward.kl_coefficient
    ):
        raise UserError(
            "config.reward.combine='normalise_each' gives advantages: it goes with --config.rl.advantages.scale=none "
            "and --config.reward.kl_coefficient=0"
        )
    if rl.old_log_probs not in ("rollout", "scored"):
        raise UserError(f"config.rl.old_log_probs={rl.old_log_probs!r} is not known; use 'rollout' or 'scored'")
    if rollout.temperature <= 0:
        raise UserError("config.rollout.temperature must be > 0: a greedy rollout explores nothing")


def run(config, workdir: str) -> None:
    """Trains with `config` in `workdir`; the same call again resumes."""
    check(config)
    rl, rollout = config.rl, config.rollout
    with Session(config, workdir) as session:
        model = build_model(config)
        session.print(f"model: {model.source}")  # the first line: which weights, and why these
        train_questions = Questions(config.data.source, model.tokenizer, config.data, "source")
        rewards = session.enter(make_rewards(config.reward))
        batches = Batches(train_questions, rollout.prompts_per_step, seed=config.seed)
        width = prompt_width(train_questions)
        rollout_worker = RolloutWorker(config, model, rewards, width)
        held_out = None
        if config.data.held_out:
            questions = Questions(config.data.held_out, model.tokenizer, config.data, "held_out")
            held_out = HeldOut(model, questions, rewards, config.evaluation)
        updates = rl.epochs * rl.batches_per_epoch
        optimizer = build_optimizer(config, updates)
        session.announce(
            {
                "model": model.source,
                "parameters": model.describe(),
                "data": f"{config.data.source}: {len(train_questions)} questions"
                + (f"; held out: {len(held_out.questions)} of {config.data.held_out}" if held_out else ""),
                "step": f"{rollout.prompts_per_step} prompts x {rollout.group_size} completions of at most "
                f"{rollout.max_new_tokens} tokens, {updates} update(s)",
                "reward": ", ".join(
                    f"{weight:g} x {name}" for name, weight in zip(rewards.names, rewards.weights, strict=True)
                ),
            },
            model.mesh,
        )

        needs_reference = bool(reference_use(config))
        # A policy that a warm start made is nowhere on disk, so its frozen copy is kept in the state.
        reference_in_state = needs_reference and config.warm_start.steps > 0
        copy = jax.eval_shape(lambda: frozen_copy(model.decoder, model.decoder.init(jax.random.key(0))))
        extra = {"reference": copy} if reference_in_state else {}
        layout = state_layout(model, optimizer, extra)
        loss_options = dict(config.rl.loss)
        if loss_options["aggregation"] == "seq-mean-token-scale" and loss_options["scale_length"] is None:
            loss_options["scale_length"] = float(rollout.max_new_tokens)
        loss_fn = make_loss(
            model.decoder, temperature=rollout.temperature, share_prompt=rl.share_prompt, **loss_options
        )
        shapes = abstract_groups(config, width, with_old=updates > 1)
        # Traced once for its complaints: an option that a loss refuses is told before any weights are read.
        jax.eval_shape(loss_fn, layout.abstract.params, shapes, layout.abstract.key, layout.abstract.extra)
        jax.eval_shape(
            lambda rewards: advantages(rewards=rewards, group_size=rollout.group_size, **rl.advantages),
            jax.ShapeDtypeStruct((rollout.prompts_per_step * rollout.group_size,), jnp.float32),
        )
        train_step = make_train_step(
            loss_fn,
            optimizer,
            mesh=model.mesh,
            shardings=layout.shardings,
            micro_batches=config.train.micro_batches,
        )

        reference = None
        if session.latest is not None and needs_reference and not reference_in_state:
            reference = frozen_copy(model.decoder, model.read())  # before the state: two sets of weights never coexist
        restored = session.restore(layout.abstract, BatchIterator(batches).set_state)
        if restored is not None:
            state, start = restored
        else:
            params = warm_start(config, model, session) if config.warm_start.steps else model.read()
            if held_out is not None and not needs_reference:  # else at the end, by the copy that is held anyway
                held_out.record(session, params, "before")
            if needs_reference:
                reference = frozen_copy(model.decoder, params)
            extra = {"reference": reference} if reference_in_state else {}
            state, start = fresh_state(config, params, optimizer, layout, extra), 0
        # Without these terms groups of equal rewards add nothing. The batch has two sizes, half of the prompts and all,
        # so that only two programs are compiled.
        terms = rl.loss.kl_coefficient or rl.loss.entropy_coefficient or rl.batches_per_epoch > 1
        leave_out = rl.drop_silent_groups and not terms
        multiple = math.lcm(config.train.micro_batches * batch_shards(model.mesh), -(-rollout.prompts_per_step // 2))

        def advance(state, step: int) -> Advance:
            frozen = state.extra["reference"] if reference_in_state else reference
            batch, metrics, table, problem = rollout_worker(state.params, frozen, batches[step], step)
            if problem:
                session.note(f"  step {step + 1}: {problem}")
            began = time.perf_counter()
            if leave_out:
                batch = drop_silent_groups(batch, multiple, rl.loss.aggregation, rl.loss.count_empty)
            history: list[dict[str, Any]] = []
            for part in update_batches(batch, rl, config.seed, step):
                state, found = train_step(state, spread(part, model.mesh))
                history.append(found)
            history = jax.device_get(history)
            # Counters and the learning rate are those after the last update, everything else is a mean over updates.
            last = {"skipped", "skipped_in_a_row", "learning_rate"}
            of_the_step = last | {"loss", "grad_norm"}
            for name in history[0]:
                values = [float(found[name]) for found in history]
                # Not what the rollout tells over all completions, and no means over no token at all.
                if name not in metrics and (name in of_the_step or batch.mask.any()):
                    metrics[name] = values[-1] if name in last else sum(values) / len(values)
            metrics["update/seconds"] = time.perf_counter() - began
            seconds = metrics["rollout/seconds"] + metrics["reward/seconds"] + metrics["update/seconds"]
            completions = rollout.prompts_per_step * rollout.group_size
            metrics["tokens_per_second"] = completions * metrics["completion_length"] / seconds
            return Advance(state, metrics, table, batch)

        state, done = session.fit(
            state,
            advance,
            start=start,
            data_state=lambda done: BatchIterator(batches, done).get_state(),
            evaluate=None if held_out is None else lambda state, done: held_out.metrics(state.params),
        )
        if held_out is not None and not session.stopped:
            state = state.replace(opt_state=None)  # all is saved: room for the evaluations
            if needs_reference:
                held_out.record(session, state.extra.get("reference", reference), "before")
            held_out.record(session, state.params, "after")
        session.finish(done)
