"""Completions of many prompts in one jitted program: prefill, decode loop, refilled slots.

The prompts are prefilled once; the completions of a group start from copies of their prompt's keys
and values. A slot is a row of the decode loop. With fewer slots than completions, a slot whose
completion has ended takes the next request from the queue inside the loop (continuous batching), so
that long completions do not leave the other rows idle. The random numbers of a completion depend on
its prompt's index, its number within the group and the position only, never on its slot or its
neighbours.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.decoding.distribution import next_token
from jaxalign.decoding.stop_strings import stop_table
from jaxalign.errors import UserError
from jaxalign.placement import spread_rows, under_mesh_of
from jaxalign.training.mesh import spread


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn and when a completion ends.

    Hashable and static: each value compiles its own program. temperature 0 is greedy; top_k 0,
    top_p 1 and min_p 0 are off (see `jaxalign.decoding.distribution`). A completion ends with a
    token of `stop_token_ids` (put the tokenizer's end-of-sequence ids there), with the token that
    completes one of `stop_strings`, or after `max_new_tokens`.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self):
        if isinstance(self.stop_strings, str):
            raise UserError(f"stop_strings={self.stop_strings!r} is one string; give a sequence of strings")
        object.__setattr__(self, "stop_token_ids", tuple(int(token) for token in self.stop_token_ids))
        object.__setattr__(self, "stop_strings", tuple(self.stop_strings))
        for name, valid, form in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "finite, at least 0 (greedy)"),
            ("top_k", self.top_k >= 0, "at least 0 (0 is off)"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1] (1 is off)"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1] (0 is off)"),
        ):
            if not valid:
                raise UserError(f"{name}={getattr(self, name)} must be {form}")


class Completions(NamedTuple):
    """N = P * G completions of at most T tokens, those of one prompt contiguous; on the device.

    log_probs are nats of softmax(logits / temperature) before truncation by top-k, top-p or min-p;
    `temperature` is the sampling temperature, or 1 if that is 0. decode_steps counts one-token
    forward passes over all slots (prefill not included), useful_fraction is the share of slots x
    decode_steps that worked on a completion not yet ended (1 if there are no steps).
    """

    ids: jax.Array  # [N, T] int32; 0 after the end
    mask: jax.Array  # [N, T] bool; True up to and including the token that ended the completion
    log_probs: jax.Array  # [N, T] float32, nats; 0 after the end
    lengths: jax.Array  # [N] int32, tokens, the ending one included
    truncated: jax.Array  # [N] bool; True where no stop token or stop string ended it
    temperature: float  # that log_probs belong to
    decode_steps: jax.Array  # scalar int32
    useful_fraction: jax.Array  # scalar float32
    weight_version: int  # as given by the caller


def bucket_length(lengths: Sequence[int], multiple: int = 16) -> int:
    """The longest of `lengths` rounded up to a multiple, so that few programs are compiled."""
    return max(-(-int(max(lengths)) // multiple), 1) * multiple


def pad_prompts(prompts: Sequence[Sequence[int]], multiple: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Token lists -> right-padded prompts [P, S] and lengths [P], int32; S by `bucket_length`."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    padded = np.zeros((len(prompts), bucket_length(lengths, multiple)), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    return padded, lengths


class Sampler:
    """Samples completions of one decoder; samplers of equal settings share compiled programs.

    decoder: see `jaxalign.models.decoder.Decoder`; used are config.vocab_size and
    config.max_positions, decode_params, prefill, decode, decode_logits and position_axis (of the
    cache's arrays, whose axis 0 are rows; 1 if the decoder does not say). slots: rows of the decode
    loop, at most; None gives each completion its own. tokenizer: needed for stop strings only (its
    `token_bytes()`). mesh: prompts are spread over its data and fsdp axes; the results are then global
    arrays, to be read by `jaxalign.training.mesh.gather` where there are several processes.
    """

    def __init__(self, decoder, sampling: SamplingConfig, *, slots: int | None = None, tokenizer=None, mesh=None):
        vocab = decoder.config.vocab_size
        if slots is not None and slots < 1:
            raise UserError(f"slots={slots} must be at least 1, or None for one slot per completion")
        for token in sampling.stop_token_ids:
            if not 0 <= token < vocab:
                raise UserError(
                    f"stop_token_ids contains {token}, but the vocabulary has {vocab} tokens; "
                    "use the ids of this model's tokenizer"
                )
        if sampling.stop_strings and tokenizer is None:
            raise UserError("stop_strings need the tokenizer; pass Sampler(..., tokenizer=...)")
        self.decoder, self.sampling, self.slots, self._mesh = decoder, sampling, slots, mesh
        self._stop_table = None
        if sampling.stop_strings:
            self._stop_table = jnp.asarray(stop_table(sampling.stop_strings, tokenizer.token_bytes(), vocab))

    def sample(
        self,
        params,
        prompts,
        prompt_lengths,
        key,
        *,
        samples_per_prompt: int = 1,
        weight_version: int = 0,
        prompt_indices=None,
    ) -> Completions:
        """Complete each right-padded prompt [P, S] of prompt_lengths [P] samples_per_prompt times.

        prompt_indices [P] (default 0..P-1) number the prompts for the random key: give the global
        indices where a larger set is sampled in parts, and the completions do not depend on the
        parts. The keys and values of all P prompts are held at once. One program is compiled per
        (P, S, samples_per_prompt); see `bucket_length`. Raises UserError for an empty prompt, for
        one that leaves no room for max_new_tokens within the model's max_positions, and for
        samples_per_prompt < 1.
        """
        chex.assert_rank([prompts, prompt_lengths], [2, 1])
        count, width = prompts.shape
        if samples_per_prompt < 1:
            raise UserError(f"samples_per_prompt={samples_per_prompt} must be at least 1")
        self._check_lengths(np.asarray(prompt_lengths), width)
        if prompt_indices is None:
            prompt_indices = np.arange(count)
        arrays = (
            np.asarray(prompts, np.int32),
            np.asarray(prompt_lengths, np.int32),
            np.asarray(prompt_indices, np.uint32),
        )
        if self._mesh is not None:
            arrays = spread(arrays, self._mesh, fill=True)  # what repeated prompts give is cut off below
        with under_mesh_of(params):
            out = _rollout(*self._static(len(arrays[0]), samples_per_prompt), params, *arrays, key, self._stop_table)
        if len(arrays[0]) > count:
            rows = {"ids", "mask", "log_probs", "lengths", "truncated"}
            out = {name: x[: count * samples_per_prompt] if name in rows else x for name, x in out.items()}
        return Completions(
            **out,
            temperature=float(self.sampling.temperature or 1.0),
            weight_version=weight_version,
        )

    def lower(self, params, prompts, prompt_lengths, key, *, samples_per_prompt: int = 1) -> jax.stages.Lowered:
        """The program of `sample` for shapes (`jax.ShapeDtypeStruct`, with their shardings), to be compiled."""
        indices = jax.ShapeDtypeStruct(prompt_lengths.shape, jnp.uint32, sharding=prompt_lengths.sharding)
        static = self._static(prompts.shape[0], samples_per_prompt)
        with under_mesh_of(params):
            return _rollout.lower(*static, params, prompts, prompt_lengths, indices, key, self._stop_table)

    def _static(self, prompts: int, samples_per_prompt: int):
        requests = prompts * samples_per_prompt
        rows = requests if self.slots is None else min(self.slots, requests)
        return self.decoder, self.sampling, rows, samples_per_prompt

    def _check_lengths(self, lengths, width):
        limit, new = self.decoder.config.max_positions, self.sampling.max_new_tokens
        if lengths.size == 0:
            raise UserError("no prompts were given; prompts must have at least one row")
        if lengths.min() < 1:
            raise UserError(f"prompt {int(lengths.argmin())} is empty; give it at least one token")
        longest = int(lengths.argmax())
        if lengths[longest] > width:
            raise UserError(
                f"prompt {longest} has {lengths[longest]} tokens by its length, but a row holds "
                f"{width}; pad prompts to the longest (see pad_prompts)"
            )
        if lengths[longest] + new > limit:
            raise UserError(
                f"prompt {longest} has {lengths[longest]} tokens and max_new_tokens is {new}, "
                f"together {lengths[longest] + new}, but the model's max_positions is {limit}; "
                "shorten the prompt or lower max_new_tokens"
            )


class _Slots(NamedTuple):
    """The rows of the decode loop, all [R]."""

    request: jax.Array  # number of the completion the slot works on
    generated: jax.Array  # its tokens so far, at least 1
    token: jax.Array  # the last of them
    matched: jax.Array  # state of the stop-string automaton
    live: jax.Array  # False once the completion has ended


class _Outputs(NamedTuple):
    ids: jax.Array  # [N, T]
    log_probs: jax.Array  # [N, T]
    lengths: jax.Array  # [N]
    stopped: jax.Array  # [N] bool


class _State(NamedTuple):
    slots: _Slots
    cache: list
    outputs: _Outputs
    queued: jax.Array  # place in the queue of the next completion to start
    decode_steps: jax.Array
    live_steps: jax.Array  # rows x steps spent on live completions


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _rollout(
    decoder,
    sampling,
    rows,
    samples_per_prompt,
    params,
    prompts,
    prompt_lengths,
    prompt_indices,
    key,
    stop_states,
):
    """`Sampler.sample` in `rows` slots; returns the fields of `Completions` that are arrays."""
    count, width = prompts.shape
    position_axis = getattr(decoder, "position_axis", 1)
    requests, new_tokens = count * samples_per_prompt, sampling.max_new_tokens
    weights = decoder.decode_params(params)
    prompt_hidden, prompt_cache = decoder.prefill(weights, prompts, prompt_lengths, width)

    def prompt_of(request):
        return request // samples_per_prompt

    def request_key(request):
        prompt_key = jax.random.fold_in(key, prompt_indices[prompt_of(request)])
        return jax.random.fold_in(prompt_key, request % samples_per_prompt)

    request_keys = jax.vmap(request_key)(jnp.arange(requests))

    def draw(hidden, request, generated):
        """Tokens [R] and log-probs [R] of completions `request`, which have `generated` so far."""
        uniforms = None
        if sampling.temperature > 0:
            position_keys = jax.vmap(jax.random.fold_in)(request_keys[request], generated)
            uniforms = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(position_keys)
        return next_token(
            decoder.decode_logits(weights, hidden),
            uniforms,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
        )

    def advance(matched, token):
        """The automaton's state after `token`, and whether the token ends the completion."""
        stopped = jnp.isin(token, jnp.array(sampling.stop_token_ids, jnp.int32))
        if stop_states is None:
            return matched, stopped
        matched = stop_states[matched, token]
        return matched, stopped | (matched == stop_states.shape[0] - 1)

    # First tokens come from the prefill, for all completions before the loop (in chunks of R rows,
    # like the loop's own draws): a slot is then given completions that need a forward pass, and no
    # pass is spent on changing them.
    chunks = jnp.minimum(jnp.arange(-(-requests // rows) * rows), requests - 1).reshape(-1, rows)
    first = jax.lax.map(lambda r: draw(prompt_hidden[prompt_of(r)], r, jnp.zeros_like(r)), chunks)
    first_token, first_log_prob = jax.tree.map(lambda a: a.reshape(-1)[:requests], first)
    first_matched, first_stopped = advance(jnp.zeros((requests,), jnp.int32), first_token)
    outputs = _Outputs(
        ids=jnp.zeros((requests, new_tokens), jnp.int32).at[:, 0].set(first_token),
        log_probs=jnp.zeros((requests, new_tokens), jnp.float32).at[:, 0].set(first_log_prob),
        lengths=jnp.ones((requests,), jnp.int32),
        stopped=first_stopped,
    )
    ended = first_stopped | (new_tokens == 1)
    queue = jnp.argsort(ended)  # stable: those to go on with, in order
    waiting = requests - ended.sum(dtype=jnp.int32)

    def start(place):
        """Slots [R] that begin the completions at these places of the queue, if it goes so far."""
        request = queue[jnp.minimum(place, requests - 1)]
        return _Slots(
            request,
            jnp.ones_like(request),
            first_token[request],
            first_matched[request],
            place < waiting,
        )

    def refill(state: _State) -> _State:
        """Ended slots begin the next completions: their prompts' keys and values are copied in."""
        place = state.queued + jnp.cumsum(~state.slots.live, dtype=jnp.int32) - 1
        fresh = start(place)
        taken = ~state.slots.live & fresh.live
        prompt = prompt_of(fresh.request)

        def choose(new, old):
            return jnp.where(taken.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        def copy(of_prompts, of_slots):
            start_of_row = jax.lax.slice_in_dim(of_slots, 0, width, axis=position_axis)
            new = choose(of_prompts[prompt], start_of_row)
            return jax.lax.dynamic_update_slice_in_dim(of_slots, new, 0, axis=position_axis)

        return state._replace(
            slots=jax.tree.map(choose, fresh, state.slots),
            cache=jax.tree.map(copy, prompt_cache, state.cache),
            queued=state.queued + taken.sum(dtype=jnp.int32),
        )

    def unfinished(state: _State):
        return state.slots.live.any() | (state.queued < waiting)

    def step(state: _State) -> _State:
        if rows < requests:
            due = (~state.slots.live).any() & (state.queued < waiting)
            state = jax.lax.cond(due, refill, lambda same: same, state)
        slots, out = state.slots, state.outputs
        # The last token sits behind the prompt, over its padding. Ended slots repeat their last
        # step, unread.
        position = prompt_lengths[prompt_of(slots.request)] + slots.generated - 1
        hidden, cache = decoder.decode(weights, slots.token, position, state.cache)
        token, log_prob = draw(hidden, slots.request, slots.generated)
        matched, stopped = advance(slots.matched, token)
        row = jnp.where(slots.live, slots.request, requests)  # out of range: not written
        generated = slots.generated + slots.live
        live = slots.live & ~stopped & (generated < new_tokens)
        return _State(
            slots=_Slots(slots.request, generated, token, matched, live),
            cache=cache,
            outputs=_Outputs(
                ids=out.ids.at[row, slots.generated].set(token, mode="drop"),
                log_probs=out.log_probs.at[row, slots.generated].set(log_prob, mode="drop"),
                lengths=out.lengths.at[row].set(generated, mode="drop"),
                stopped=out.stopped.at[row].set(stopped, mode="drop"),
            ),
            queued=state.queued,
            decode_steps=state.decode_steps + 1,
            live_steps=state.live_steps + slots.live.sum(dtype=jnp.int32),
        )

    slots = start(jnp.arange(rows, dtype=jnp.int32))

    def spread(of_prompts):
        copies = of_prompts[prompt_of(slots.request)]
        room = [(0, new_tokens if axis == position_axis else 0) for axis in range(copies.ndim)]
        return spread_rows(jnp.pad(copies, room), rest=jax.P.UNCONSTRAINED)

    cache = jax.tree.map(spread, prompt_cache)
    zero = jnp.int32(0)
    state = jax.lax.while_loop(unfinished, step, _State(slots, cache, outputs, jnp.int32(rows), zero, zero))

    out, row_steps = state.outputs, rows * state.decode_steps
    return dict(
        ids=out.ids,
        mask=jnp.arange(new_tokens) < out.lengths[:, None],
        log_probs=out.log_probs,
        lengths=out.lengths,
        truncated=~out.stopped,
        decode_steps=state.decode_steps,
        useful_fraction=jnp.where(row_steps > 0, state.live_steps / jnp.maximum(row_steps, 1), 1.0),
    )
