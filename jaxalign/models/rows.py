"""Prompts and their completions as rows of the decoder.

A group's completions share one copy of their prompt: the row is [prompt | completion 1 | ... | completion K], every
completion a segment whose parent is the prompt (see `models.attention`). At G = 8 samples of 12 tokens behind a prompt
of 24 this is 120 tokens a group where separate rows take 288, with equal log-probs and gradients.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp


class Rows(NamedTuple):
    """What the decoder reads, and where to look in what it gives."""

    tokens: chex.Array  # [P, S + K T], as the next three
    positions: chex.Array
    segments: chex.Array
    parents: chex.Array
    predictors: chex.Array  # [P, K, T]: the position in the row whose hidden state predicts each completion token


def completion_rows(prompts, prompt_lengths, completions, mask) -> Rows:
    """Rows from right-padded prompts [P, S] of `prompt_lengths` [P] (>= 1) and completions, mask [P, K, T].

    Completion tokens whose mask is 0 become padding. K completions share a row; to give each completion its own row,
    repeat the prompts and pass K = 1 (`separate`).
    """
    chex.assert_rank([prompts, prompt_lengths, completions, mask], [2, 1, 3, 3])
    num_prompts, prompt_size = prompts.shape
    _, siblings, length = completions.shape
    flat = (num_prompts, siblings * length)
    prompt_index = jnp.broadcast_to(jnp.arange(prompt_size), prompts.shape)
    in_prompt = prompt_index < prompt_lengths[:, None]
    kept = mask.reshape(flat) > 0
    steps = jnp.arange(length)
    sibling = jnp.repeat(jnp.arange(siblings), length)

    tokens = jnp.concatenate([prompts, jnp.where(kept, completions.reshape(flat), 0)], axis=1)
    positions = jnp.concatenate([prompt_index, prompt_lengths[:, None] + jnp.tile(steps, siblings)[None]], axis=1)
    segments = jnp.concatenate([in_prompt.astype(jnp.int32), jnp.where(kept, 2 + sibling[None], 0)], axis=1)
    parents = jnp.concatenate([in_prompt.astype(jnp.int32), jnp.where(kept, 1, 0)], axis=1)

    within = prompt_size + jnp.arange(siblings)[:, None] * length + steps[None] - 1  # the token before, in the row
    last_of_prompt = (prompt_lengths - 1)[:, None, None]
    predictors = jnp.where(steps[None, None] == 0, last_of_prompt, within[None])
    return Rows(tokens, positions, segments, parents, predictors)


def separate(prompts, prompt_lengths, completions, mask):
    """The same arguments, one row per completion: prompts [P K, S], lengths [P K], completions and mask [P K, 1, T]."""
    siblings, length = completions.shape[1:]
    return (
        jnp.repeat(prompts, siblings, axis=0),
        jnp.repeat(prompt_lengths, siblings, axis=0),
        completions.reshape(-1, 1, length),
        mask.reshape(-1, 1, length),
    )


def gather_predictors(hidden, predictors):
    """Hidden states [P, K, T, D] that predict the completion tokens, from `hidden` [P, row, D]."""
    num_rows, siblings, length = predictors.shape
    flat = jnp.take_along_axis(hidden, predictors.reshape(num_rows, -1, 1), axis=1)
    return flat.reshape(num_rows, siblings, length, hidden.shape[-1])
