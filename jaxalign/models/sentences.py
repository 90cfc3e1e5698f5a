"""Texts -> rows of tokens -> embeddings, many at a time and without much padding."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import UserError

LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def cut_tokens(tokenizer: Tokenizer, texts: Sequence[str], max_length: int | None) -> list[list[int]]:
    """Ids of texts with the tokenizer's special tokens; of a text that is too long the last id is kept, as its end."""
    found = tokenizer.encode_batch(texts, add_special_tokens=True)
    if max_length is None:
        return found
    return [ids if len(ids) <= max_length else ids[: max_length - 1] + ids[-1:] for ids in found]


def token_rows(rows: Sequence[Sequence[int]], length: int | None = None, pad_id: int = 0) -> dict[str, np.ndarray]:
    """What text encoders take: {"tokens": [B, length] right-padded, "lengths": [B]}; by default as long as the longest.

    Raises ValueError: a row is longer than `length`.
    """
    lengths = np.array([len(ids) for ids in rows], np.int32)
    longest = int(lengths.max(initial=1))
    if length is not None and longest > length:
        raise ValueError(f"a row of {longest} tokens does not fit {length}")
    tokens = np.full((len(rows), length or longest), pad_id, np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return {"tokens": tokens, "lengths": lengths}


@functools.partial(jax.jit, static_argnums=0)
def _embed(encoder, params, inputs):
    return encoder.embed(params, inputs)


def embed_texts(
    encoder,
    params,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    batch_tokens: int = 2048,
    lengths: Sequence[int] = LENGTHS,
) -> np.ndarray:
    """Embeddings [N, D] of N texts in their order, float32, not normalised.

    Texts of about the same length share a batch of at most `batch_tokens` tokens, padded to the next of `lengths`, so
    that there is one compilation for each of these (and a few for what is left over), however many texts there are.

    Raises UserError: the encoder has no tokenizer, or a text is longer than the last of `lengths` and is not cut.
    """
    if tokenizer is None:
        raise UserError("the encoder came without tokenizer.json, so that it takes no texts; put it into its folder")
    rows = cut_tokens(tokenizer, texts, max_length)
    if max_length is not None:
        lengths = sorted({*(each for each in lengths if each < max_length), max_length})
    groups: dict[int, list[int]] = {}
    for number, ids in enumerate(rows):
        fitting = next((each for each in lengths if each >= len(ids)), None)
        if fitting is None:
            raise UserError(f"text {number} has {len(ids)} tokens, more than {lengths[-1]}; give max_length to cut it")
        groups.setdefault(fitting, []).append(number)
    out = np.zeros((len(rows), encoder.embedding_dim), np.float32)
    pending = []
    for length, numbers in sorted(groups.items()):
        most = max(batch_tokens // length, 1)
        for start in range(0, len(numbers), most):
            some = numbers[start : start + most]
            # What is left over is filled up to a power of two, with rows that nobody reads.
            size = most if len(some) == most else min(most, 1 << (len(some) - 1).bit_length())
            batch = token_rows([rows[n] for n in some] + [[]] * (size - len(some)), length, tokenizer.pad_id)
            pending.append((some, _embed(encoder, params, batch)))
    for some, found in pending:
        out[some] = np.asarray(found)[: len(some)]
    return out
