"""Supervised fine-tuning of a decoder on (prompt, completion) pairs; the loss counts completion tokens only."""

import time
from collections.abc import Callable

import jax

from experiments.questions import HeldOut, Questions, encode_prompt, make_rewards
from experiments.session import Session
from experiments.setup import build_model, build_optimizer, build_policy, fresh_state, state_layout
from jaxalign.data.order import Batches, BatchIterator
from jaxalign.data.packing import PackedSource, stack_rows
from jaxalign.data.sources import load_source, where
from jaxalign.errors import UserError
from jaxalign.losses.log_probs import token_log_probs
from jaxalign.losses.supervised import supervised_loss
from jaxalign.training.loop import Advance
from jaxalign.training.mesh import all_processes, put_batch


def make_loss(decoder, **options) -> Callable:
    """loss_fn(params, PackedRows, key, extra) -> Objective; `options` are those of `supervised_loss`."""

    def loss_fn(params, batch, key, extra):
        del key, extra
        hidden = decoder.hidden(params, batch.tokens, batch.positions, batch.segments)
        scored = token_log_probs(hidden, decoder.head(params), batch.targets, compute_dtype=decoder.compute_dtype)
        return supervised_loss(scored.log_probs, batch.target_mask, **options)

    return loss_fn


def packed_examples(spec: str, tokenizer, data, packing) -> PackedSource:
    """The examples of a source as packed rows; each completion ends with the tokenizer's end token.

    Args:
      data: the config group with `prompt_field`, `chat`, `system_prompt`.
      packing: the config group with `row_length`, `completion_field` and `too_long` ("error" or "drop").

    Raises UserError: an example without prompt or completion, or longer than a row.
    """
    source = load_source(spec)

    def pairs():
        for index in range(len(source)):
            example = source[index]
            prompt, completion = example.get(data.prompt_field), example.get(packing.completion_field)
            if not isinstance(prompt, str) or not isinstance(completion, str):
                raise UserError(
                    f"{where(source, index)} (config.data.source) has no text under {data.prompt_field!r} or "
                    f"{packing.completion_field!r}; its fields are {', '.join(map(str, example))}"
                )
            yield encode_prompt(tokenizer, prompt, data), tokenizer.encode(completion) + list(tokenizer.eos_ids[:1])

    return PackedSource(pairs(), packing.row_length, overlong=packing.too_long, empty="drop", pad_id=tokenizer.pad_id)


def run(config, workdir: str) -> None:
    """Trains with `config` in `workdir`; the same call again resumes."""
    with Session(config, workdir) as session:
        model = build_model(config)
        policy = build_policy(config, model)
        session.print(f"model: {model.source}")  # the first line: which weights, and why these
        packed = packed_examples(config.data.source, model.tokenizer, config.data, config.packing)
        batches = Batches(
            packed,
            config.packing.rows_per_step,
            seed=config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        facts = packed.statistics
        dropped = facts.dropped_overlong + facts.dropped_empty
        session.announce(
            {
                "model": model.source,
                "parameters": policy.describe(),
                "data": f"{config.data.source}: {facts.examples} examples in {facts.rows} rows of "
                f"{config.packing.row_length} tokens ({100 * facts.fill:.0f} % full, {facts.target_tokens} tokens to "
                f"learn{f', {dropped} examples dropped' if dropped else ''})",
                "held out": config.data.held_out or None,
            },
            model.mesh,
        )
        optimizer = build_optimizer(config)
        layout = state_layout(policy, optimizer)
        loss_fn = make_loss(model.decoder, **config.loss)
        train_step = policy.train_step(loss_fn, optimizer, layout, micro_batches=config.train.micro_batches)

        if session.latest is not None:
            policy.resume(model.read, session.checkpointer)
        restored = session.restore(layout.abstract, BatchIterator(batches).set_state)
        held_out = _held_out(config, model)
        if restored is not None:
            state, start = restored
        else:
            params = model.read()
            if held_out is not None:
                held_out.record(session, params, "before")
            state, start = fresh_state(config, policy.begin(params, session.checkpointer), optimizer, layout), 0

        def advance(state, step: int) -> Advance:
            began = time.perf_counter()
            rows = stack_rows(batches[step])
            state, metrics = train_step(state, put_batch(rows, model.mesh))
            metrics = {name: float(value) for name, value in metrics.items()}
            metrics["target_tokens"] = float(all_processes(rows.target_mask.sum()).sum())
            metrics["tokens_per_second"] = metrics["target_tokens"] / (time.perf_counter() - began)
            return Advance(state, metrics, [], rows)

        state, done = session.fit(
            state,
            advance,
            start=start,
            data_state=lambda done: BatchIterator(batches, done).get_state(),
            evaluate=None if held_out is None else lambda state, done: held_out.metrics(policy.evaluated(state)),
        )
        if held_out is not None and not session.stopped:
            held_out.record(session, policy.evaluated(state), "after")
        session.finish(done)


def _held_out(config, model) -> HeldOut | None:
    if not config.data.held_out:
        return None
    questions = Questions(config.data.held_out, model.tokenizer, config.data, "held_out")
    return HeldOut(model, questions, make_rewards(config.reward), config.evaluation)
