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

from experiments import given_answers
from experiments.curriculum import Curriculum, try_out
from experiments.groups import (
    abstract_groups,
    drop_silent_groups,
    has_critic,
    reference_use,
    update_batches,
    with_signal,
)
from experiments.objectives import make_loss
from experiments.questions import HeldOut, Questions, make_rewards, prompt_width
from experiments.rollout import Plan, RolloutWorker, over_draws
from experiments.session import Session
from experiments.setup import build_model, build_optimizer, build_policy, fresh_state, state_layout
from experiments.warm_start import first_weights
from jaxalign.data.order import Batches, BatchIterator
from jaxalign.errors import UserError
from jaxalign.models.scoring import frozen_copy
from jaxalign.rewards.advantages import advantages
from jaxalign.training.loop import Advance
from jaxalign.training.mesh import batch_shards, spread


def build_loss(config, decoder) -> Callable:
    """The loss of `config.rl.objective` with the options of `config.rl.loss`."""
    rl, options = config.rl, dict(config.rl.loss)
    if options.get("aggregation") == "seq-mean-token-scale" and options["scale_length"] is None:
        options["scale_length"] = float(config.rollout.max_new_tokens)
    return make_loss(
        decoder,
        temperature=config.rollout.temperature,
        share_prompt=rl.share_prompt,
        objective=rl.objective,
        detach_values=rl.detach_values,
        **options,
    )


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
    prompts, alone = config.prompts, rollout.max_draws == 1 and rl.leave_out == 0
    allocation = prompts.allocation
    if not 0 <= rl.leave_out < rollout.group_size:
        raise UserError(f"config.rl.leave_out={rl.leave_out} must be less than config.rollout.group_size")
    if rollout.max_draws < 1 or (rollout.max_draws > 1 and (prompts.sampling.enabled or prompts.weighting.enabled)):
        raise UserError("config.rollout.max_draws must be 1 where config.prompts chooses or weighs prompts")
    if prompts.baseline and rollout.group_size > 1:
        raise UserError("config.prompts.baseline tracks one completion of each prompt: set config.rollout.group_size=1")
    if allocation.enabled and not (alone and allocation.least <= rollout.group_size <= allocation.most):
        raise UserError(
            "config.prompts.allocation wants least <= config.rollout.group_size <= most, config.rollout.max_draws=1 "
            "and config.rl.leave_out=0"
        )
    if config.reward.combine != "sum" and (allocation.enabled or config.reward.reference_completions):
        raise UserError("config.prompts.allocation and config.reward.reference_completions want reward.combine='sum'")
    answers, of_answers = bool(config.data.answer_fields), rl.objective in given_answers.OBJECTIVES
    if answers != of_answers or (answers and (rl.leave_out or allocation.enabled)):
        raise UserError(
            f"config.data.answer_fields={config.data.answer_fields} does not go with config.rl.objective="
            f"{rl.objective!r}: the losses of given answers need them, without leave_out and allocation; no other does"
        )
    if rl.objective in given_answers.CHAIN_LOSSES and (rollout.group_size < 2 or prompts.weighting.enabled):
        raise UserError(
            f"config.rl.objective={rl.objective!r} compares the chains of a question and knows no advantages: it wants "
            "config.rollout.group_size of at least 2 and no config.prompts.weighting"
        )
    if rl.objective in given_answers.COMPARED and config.reward.reference_completions:
        raise UserError(
            f"config.rl.objective={rl.objective!r} compares completions with the given answer, whose reward is no "
            "quantile: set config.reward.reference_completions=0"
        )
    if has_critic(config) and not (
        alone and not allocation.enabled and not prompts.baseline and not config.reward.reference_completions
    ):
        raise UserError(
            "config.rl.objective='ppo_loss' makes its advantages by a value function: it wants config.rollout."
            "max_draws=1, config.rl.leave_out=0, no config.prompts.allocation, no config.prompts.baseline and "
            "config.reward.reference_completions=0"
        )
    if has_critic(config) != (rl.advantages.kind == "gae"):
        raise UserError(
            f"config.rl.advantages.kind={rl.advantages.kind!r} does not go with config.rl.objective={rl.objective!r}: "
            "'gae' goes with 'ppo_loss', and only with it"
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
        policy = build_policy(config, model)
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
        curriculum = Curriculum(config, len(train_questions))
        updates = rl.epochs * rl.batches_per_epoch
        optimizer = build_optimizer(config, updates)
        session.announce(
            {
                "model": model.source,
                "parameters": policy.describe(),
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
        # A policy that a warm start made is nowhere on disk, so its frozen copy is kept in the state. (The reference of
        # an adapter is its base, which is held anyway.)
        reference_in_state = needs_reference and config.warm_start.steps > 0 and policy.adapter is None
        copy = jax.eval_shape(lambda: frozen_copy(model.decoder, model.decoder.init(jax.random.key(0))))
        extra = {"reference": copy} if reference_in_state else {}
        if curriculum.active:
            extra["prompts"] = jax.eval_shape(curriculum.start)
        layout = state_layout(policy, optimizer, extra)
        loss_fn = build_loss(config, model.decoder)
        shapes = abstract_groups(config, width, with_old=updates > 1)
        # Traced once for its complaints: an option that a loss refuses is told before any weights are read.
        jax.eval_shape(loss_fn, policy.abstract_weights(), shapes, layout.abstract.key, layout.abstract.extra)
        if not has_critic(config):
            rewards_of_step = jax.ShapeDtypeStruct((rollout.prompts_per_step * rollout.group_size,), jnp.float32)
            jax.eval_shape(
                lambda r: advantages(rewards=r, group_size=rollout.group_size, **rl.advantages), rewards_of_step
            )
        train_step = policy.train_step(loss_fn, optimizer, layout, micro_batches=config.train.micro_batches)

        def read_first():
            return first_weights(config, model, session.print)

        reference = None
        if session.latest is not None:  # before the state: two sets of weights never coexist
            policy.resume(read_first, session.checkpointer)
            if needs_reference and not reference_in_state and policy.adapter is None:
                reference = frozen_copy(model.decoder, model.read())
        restored = session.restore(layout.abstract, BatchIterator(batches).set_state)
        if restored is not None:
            state, start = restored
        else:
            weights = read_first()
            if held_out is not None and not needs_reference:  # else at the end, by the copy that is held anyway
                held_out.record(session, weights, "before")
            if needs_reference and policy.adapter is None:
                reference = frozen_copy(model.decoder, weights)
            extra = {"reference": reference} if reference_in_state else {}
            if curriculum.active:
                trials = None
                if curriculum.trials:
                    session.print(f"  {curriculum.trials} completions of every question before training ...")
                    key = jax.random.fold_in(jax.random.key(config.seed), 3)
                    chunk = rollout.prompts_per_step
                    trials = try_out(rollout_worker, weights, train_questions, curriculum.trials, chunk, key)
                extra["prompts"] = curriculum.start(trials)
            params = policy.begin(weights, session.checkpointer)
            state, start = fresh_state(config, params, optimizer, layout, extra), 0
        if policy.adapter is not None:
            reference = policy.base
        # Without these terms groups of equal rewards add nothing. The batch has two sizes, half of the prompts and all,
        # so that only two programs are compiled.
        terms = rl.loss.get("kl_coefficient") or rl.loss.get("entropy_coefficient") or rl.batches_per_epoch > 1
        leave_out = rl.drop_silent_groups and rl.objective == "policy_loss" and not terms
        multiple = math.lcm(config.train.micro_batches * batch_shards(model.mesh), -(-rollout.prompts_per_step // 2))

        def remember(state, memory: dict):
            placed = jax.device_put(memory, layout.shardings.extra["prompts"])
            return state.replace(extra=state.extra | {"prompts": placed})

        def advance(state, step: int) -> Advance:
            frozen = state.extra["reference"] if reference_in_state else reference
            memory, known, drawn = state.extra.get("prompts", {}), None, []
            for position in range(step * rollout.max_draws, (step + 1) * rollout.max_draws):
                examples, plan = batches[position], Plan()
                if curriculum.active:
                    indices = curriculum.choose(memory, step)
                    memory, known, plan = curriculum.plan(
                        memory, batches.indices(position) if indices is None else indices
                    )
                    examples = [train_questions[int(index)] for index in known.indices]
                drawn.append(rollout_worker(policy.weights(state.params), frozen, examples, position, plan))
                if drawn[-1].problem:
                    session.note(f"  step {step + 1}: {drawn[-1].problem}")
                if sum(int(one.signal.sum()) for one in drawn) >= rollout.prompts_per_step:
                    break
            batch, table, metrics = drawn[-1].batch, drawn[-1].table, over_draws([one.metrics for one in drawn])
            if rollout.max_draws > 1:
                batch = with_signal([x.batch for x in drawn], [x.signal for x in drawn], rollout.prompts_per_step)
            if curriculum.active:
                memory, batch, of_prompts = curriculum.weigh(memory, known, drawn[-1])
                metrics |= of_prompts
                state = remember(state, memory)  # it goes through the update, which donates its state
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
            if curriculum.active:
                memory = state.extra["prompts"]
                weights = policy.weights(state.params)
                memory, of_prompts = curriculum.learn(memory, known, drawn[-1], weights, rollout_worker)
                metrics |= of_prompts
                state = remember(state, memory)
            completions = rollout.prompts_per_step * rollout.group_size * len(drawn)
            metrics["tokens_per_second"] = completions * metrics["completion_length"] / seconds
            return Advance(state, metrics, table, batch)

        state, done = session.fit(
            state,
            advance,
            start=start,
            data_state=lambda done: BatchIterator(batches, done * rollout.max_draws).get_state(),
            evaluate=None if held_out is None else lambda state, done: held_out.metrics(policy.evaluated(state)),
        )
        if held_out is not None and not session.stopped:
            weights = policy.evaluated(state)
            state = state.replace(params=None, opt_state=None)  # all is saved: room for the evaluations
            if needs_reference:
                held_out.record(session, state.extra.get("reference", reference), "before")
            held_out.record(session, weights, "after")
        session.finish(done)
