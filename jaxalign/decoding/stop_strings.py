"""Stop strings as an automaton over tokens, so that a jitted loop notices them exactly.

A stop string may begin in the middle of one token and end in the middle of another, and one text
has many tokenisations. The automaton therefore reads bytes: Aho & Corasick (1975) for all strings
at once, and then each token's bytes are run through it from each state, once, on the host. In the
loop a row's state is one integer.
"""

from collections.abc import Sequence

import numpy as np

from jaxalign.errors import UserError

MAX_ENTRIES = 2**26  # of the table: 256 MiB


def _byte_transitions(patterns: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Aho-Corasick over bytes: next node [nodes, 256]; whether a pattern ends at a node [nodes]."""
    children: list[dict[int, int]] = [{}]
    ends = [False]
    for pattern in patterns:
        node = 0
        for byte in pattern:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                ends.append(False)
            node = children[node][byte]
        ends[node] = True
    step = np.zeros((len(children), 256), np.int32)
    queue = []
    for byte, child in children[0].items():
        step[0, byte] = child
        queue.append((child, 0))
    # Breadth first: the fallback (longest proper suffix) is shallower, hence complete.
    for node, fallback in queue:
        ends[node] = ends[node] or ends[fallback]
        step[node] = step[fallback]
        for byte, child in children[node].items():
            queue.append((child, int(step[fallback, byte])))
            step[node, byte] = child
    return step, np.array(ends)


def stop_table(stop_strings: Sequence[str], token_bytes: Sequence[bytes], vocab_size: int) -> np.ndarray:
    """Compile stop strings into next_state [states, vocab_size] int32.

    State 0 starts, the last state means stopped. token_bytes: the bytes each token id adds to the
    text (b"" for special tokens, which do not interrupt a match); ids from len(token_bytes) to
    vocab_size, which some models have, add nothing. Strings match as UTF-8 bytes. The stopped state
    is never left. Raises UserError for an empty stop string, for more tokens than vocab_size, and
    for a table beyond 256 MiB.
    """
    if len(token_bytes) > vocab_size:
        raise UserError(
            f"the tokenizer has {len(token_bytes)} tokens, the model's vocabulary {vocab_size}; "
            "use the tokenizer that belongs to the model"
        )
    if any(not string for string in stop_strings):
        raise UserError("stop_strings contains an empty string, which would stop every completion; remove it")
    step, ends = _byte_transitions([string.encode() for string in stop_strings])
    states = int((~ends).sum()) + 1
    if states * vocab_size > MAX_ENTRIES:
        raise UserError(
            f"stop_strings need {states} states x {vocab_size} tokens, more than {MAX_ENTRIES} "
            "table entries; use fewer or shorter strings, or stop_token_ids"
        )
    stopped = states - 1
    number = np.where(ends, stopped, np.cumsum(~ends) - 1)
    step = np.concatenate([number[step[~ends]], np.full((1, 256), stopped)]).astype(np.int32)

    lengths = np.zeros(vocab_size, np.int64)
    lengths[: len(token_bytes)] = [len(piece) for piece in token_bytes]
    table = np.repeat(np.arange(states, dtype=np.int32)[:, None], vocab_size, axis=1)
    for position in range(int(lengths.max(initial=0))):
        ids = np.flatnonzero(lengths > position)
        bytes_here = np.array([token_bytes[i][position] for i in ids])
        table[:, ids] = step[table[:, ids], bytes_here]
    return table
