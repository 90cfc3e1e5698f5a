"""Examples of many lengths in rows of one: packing for supervised training, padding for prompts.

Which example goes into which row depends on the lengths alone and is planned once. The rows are
then an index-addressable source like any other, so that shuffling and resuming stay functions of
one integer (`jaxalign.data.order`).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxalign.errors import UserError


class PackedRows(NamedTuple):
    """Rows of T tokens with several examples each. Arrays are [T] for one row, [B, T] for more.

    Column t of `tokens`, `positions`, `segments`, `completion_mask` speaks of token t itself. A
    decoder's hidden state at column t has seen tokens up to t, so what it predicts stands in column
    t of `targets` and `target_mask`: `targets[t] = tokens[t + 1]`, counted where token t + 1 is a
    completion token of the same example. The loss uses these two; nothing has to be shifted
    elsewhere.
    """

    tokens: np.ndarray  # int32; padding holds the pad id, but only `segments` tells padding apart
    positions: np.ndarray  # int32; 0, 1, ... within each example
    segments: np.ndarray  # int32; 1, 2, ... by example within the row, 0 = padding
    completion_mask: np.ndarray  # float32; 1 = token t belongs to a completion
    targets: np.ndarray  # int32; the token after t, 0 where target_mask is 0
    target_mask: np.ndarray  # float32; 1 = targets[t] counts in the loss


class PackingStatistics(NamedTuple):
    examples: int  # packed
    rows: int
    tokens: int  # of the packed examples
    target_tokens: int  # that count in the loss
    fill: float  # tokens / (rows * row length)
    dropped_overlong: int
    dropped_empty: int  # without any token to learn from


class PackedSource:
    """A source of `PackedRows` [T], made from (prompt ids, completion ids) pairs by first fit.

    The mask comes from the two lengths; no token id decides what counts. A completion token without
    a token before it (empty prompt) cannot be predicted: it is in `completion_mask` but not in
    `target_mask`.

    Args:
        examples: pairs of id sequences; the completion includes its end token if one is to be
            learned.
        row_length: T.
        open_rows: how many rows are kept open for later, shorter examples; more gives a better
            fill.
        overlong: "error" or "drop" for examples longer than a row. Nothing is ever cut.
        empty: "error" or "drop" for examples without a token to learn from.
        pad_id: what padding positions hold.

    Attribute `statistics` tells the fill and what was dropped.

    Raises UserError: an example that does not fit or has nothing to learn, where the option
    says so (its index and lengths are named), or nothing left.
    """

    def __init__(
        self,
        examples: Iterable[tuple[Sequence[int], Sequence[int]]],
        row_length: int,
        *,
        open_rows: int = 32,
        overlong: str = "error",
        empty: str = "error",
        pad_id: int = 0,
    ):
        for name, value in (("overlong", overlong), ("empty", empty)):
            if value not in ("error", "drop"):
                raise UserError(f"packing option {name}={value!r} is not known; use 'error' or 'drop'")
        self._row_length, self._pad_id = row_length, pad_id
        self._examples: list[tuple[np.ndarray, int]] = []  # (ids, prompt length)
        target_tokens = dropped_overlong = dropped_empty = 0
        for index, (prompt, completion) in enumerate(examples):
            learned = len(completion) - (not len(prompt))
            if learned < 1:
                if empty == "error":
                    raise UserError(
                        f"example {index} (prompt {len(prompt)} tokens, completion "
                        f"{len(completion)}) has no token to learn from; remove it "
                        "or set empty='drop'"
                    )
                dropped_empty += 1
            elif len(prompt) + len(completion) > row_length:
                if overlong == "error":
                    raise _overlong(index, len(prompt), len(completion), row_length)
                dropped_overlong += 1
            else:
                ids = np.concatenate([np.asarray(prompt, np.int32), np.asarray(completion, np.int32)])
                self._examples.append((ids, len(prompt)))
                target_tokens += learned
        if not self._examples:
            raise UserError(
                f"no example is left to pack into rows of {row_length} tokens: "
                f"{dropped_overlong} were longer, {dropped_empty} had no token to learn from"
            )
        lengths = [len(ids) for ids, _ in self._examples]
        self._rows = plan_rows(lengths, row_length, open_rows)
        self.statistics = PackingStatistics(
            examples=len(lengths),
            rows=len(self._rows),
            tokens=sum(lengths),
            target_tokens=target_tokens,
            fill=sum(lengths) / (len(self._rows) * row_length),
            dropped_overlong=dropped_overlong,
            dropped_empty=dropped_empty,
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PackedRows:
        return _fill_row([self._examples[i] for i in self._rows[index]], self._row_length, self._pad_id)


def plan_rows(lengths: Sequence[int], row_length: int, open_rows: int = 32) -> list[list[int]]:
    """First fit with a bounded window: for each row, the indices of its examples.

    Each example goes into the first open row that has room; if none has, a new row is opened, and
    of more than `open_rows` the one with the least room is closed. Costs O(examples * open_rows).

    Raises ValueError for a length outside 1..row_length or open_rows < 1.
    """
    if open_rows < 1:
        raise ValueError(f"open_rows={open_rows} must be at least 1")
    closed: list[list[int]] = []
    window: list[tuple[int, list[int]]] = []  # (room left, indices), oldest first
    for index, length in enumerate(lengths):
        if not 1 <= length <= row_length:
            raise ValueError(f"length {length} of example {index} is outside 1..{row_length}")
        for slot, (room, members) in enumerate(window):
            if length <= room:
                window[slot] = (room - length, [*members, index])
                break
        else:
            window.append((row_length - length, [index]))
            if len(window) > open_rows:
                fullest = min(range(len(window)), key=lambda slot: window[slot][0])
                closed.append(window.pop(fullest)[1])
    return closed + [members for _, members in window]


def _fill_row(examples: Sequence[tuple[np.ndarray, int]], row_length: int, pad_id: int) -> PackedRows:
    tokens = np.full(row_length, pad_id, np.int32)
    positions, segments, targets = np.zeros((3, row_length), np.int32)
    completion_mask, target_mask = np.zeros((2, row_length), np.float32)
    start = 0
    for segment, (ids, prompt_length) in enumerate(examples, start=1):
        end = start + len(ids)
        tokens[start:end] = ids
        positions[start:end] = np.arange(len(ids))
        segments[start:end] = segment
        completion_mask[start + prompt_length : end] = 1
        # Column t predicts t + 1: the last prompt token predicts the first completion token, and
        # the last token of the example predicts nothing (what follows is another example).
        first = start + max(prompt_length - 1, 0)
        targets[first : end - 1] = ids[first - start + 1 :]
        target_mask[first : end - 1] = 1
        start = end
    return PackedRows(tokens, positions, segments, completion_mask, targets, target_mask)


def stack_rows(rows: Sequence[PackedRows], batch_size: int | None = None) -> PackedRows:
    """Rows [T] to a batch [B, T]; up to `batch_size` it is filled with rows that count nothing.

    Raises ValueError if there are no rows or more than `batch_size`.
    """
    missing = (batch_size or len(rows)) - len(rows)
    if not rows or missing < 0:
        raise ValueError(f"{len(rows)} rows do not make a batch of {batch_size}")
    row_length = rows[0].tokens.shape[0]
    padding = [_fill_row([], row_length, 0)] * missing
    return PackedRows(*(np.stack(arrays) for arrays in zip(*rows, *padding, strict=True)))


def pad_prompts(prompts: Sequence[Sequence[int]], width: int, pad_id: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as right-padded ids int32 [P, width] and their lengths int32 [P].

    Raises UserError naming the longest prompt if it does not fit (a cut prompt would be another
    question), or an empty one, after which nothing can be sampled.
    """
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    if lengths.max(initial=0) > width:
        index = int(lengths.argmax())
        raise UserError(
            f"prompt {index} has {lengths[index]} tokens, and the prompt window is {width} "
            f"({int((lengths > width).sum())} of {len(lengths)} prompts are longer); raise the "
            f"window to {lengths[index]} or remove long prompts"
        )
    if not lengths.all():
        raise UserError(f"prompt {int(lengths.argmin())} has no tokens; nothing can be sampled after it")
    ids = np.full((len(lengths), width), pad_id, np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return ids, lengths


def _overlong(index: int, prompt: int, completion: int, row_length: int) -> UserError:
    lengths = f"example {index} has {prompt} + {completion} tokens (prompt + completion)"
    if prompt >= row_length:
        return UserError(
            f"{lengths}: the prompt alone fills the window of {row_length}; raise the row "
            f"length to at least {prompt + completion}, shorten the prompt, or set overlong='drop'"
        )
    return UserError(
        f"{lengths}, more than the row length {row_length}; raise it to {prompt + completion} or set overlong='drop'"
    )
