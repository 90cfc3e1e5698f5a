"""The distribution of the next token: temperature, top-k, top-p, min-p, and one draw per row.

A draw inverts the cumulative distribution in two levels: a block of 256 tokens by the blocks' sums,
then a token of that block. It costs one pass over the logits and two uniform numbers a row, whereas
the Gumbel trick needs a random number per vocabulary entry, which on a CPU is dearer than the
product with the head. Nothing here sorts: top-k and top-p find their threshold by bisection over
the bits of the logits, an order of magnitude faster on a CPU than a sort, which is also what XLA
makes of `jax.lax.top_k` inside a loop there. What is not asked for is not compiled, because all
settings are Python numbers.
"""

import chex
import jax
import jax.numpy as jnp

BLOCK = 256


def _blocks(x, fill):
    """[B, V] -> [B, blocks, BLOCK], padded with `fill`."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK)), constant_values=fill).reshape(x.shape[0], -1, BLOCK)


def _pick(weights, uniform):
    """Draw an index [B] by weights [B, K] >= 0: invert their running sum at uniform [B]."""
    running = jnp.cumsum(weights, axis=-1)
    # Running sums are rounded and need not be monotone, so a weight of 0 is excluded by name, not
    # by comparison; where rounding leaves no candidate at the upper end, the last positive weight
    # is meant.
    passed = (running > (uniform * running[:, -1])[:, None]) & (weights > 0)
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    return jnp.where(passed.any(axis=-1), jnp.argmax(passed, axis=-1), last)


def _draw(weights, uniforms, vocab: int):
    """One token a row by weights [B, blocks, BLOCK] >= 0; uniforms as for `sample`."""
    block = _pick(weights.sum(axis=-1), uniforms[:, 0])
    inside = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
    token = block * BLOCK + _pick(inside, uniforms[:, 1])
    # NaN weights must not give an id out of range.
    return jnp.minimum(token, vocab - 1).astype(jnp.int32)


def sample(logits, uniforms):
    """Draw one token a row from softmax(logits); logits [B, V] -> int32 [B].

    uniforms [B, 2] in [0, 1]: one number draws the block, the other the token within it, which
    keeps the resolution for rare tokens that a remainder of the first would have lost. A token of
    probability 0 (logit -inf, or exp underflowing in float32) is never returned.
    """
    chex.assert_rank([logits, uniforms], 2)
    weights = _blocks(jnp.exp(logits - logits.max(axis=-1, keepdims=True)), 0.0)
    return _draw(weights, uniforms, logits.shape[1])


def greedy(logits):
    """The most probable token, the lowest id among equals; logits [B, V] -> int32 [B]."""
    chex.assert_rank(logits, 2)
    # Two levels, because XLA's argmax over one long axis is slow on a CPU.
    blocks = _blocks(logits, -jnp.inf)
    block = jnp.argmax(blocks.max(axis=-1), axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return (block * BLOCK + jnp.argmax(inside, axis=-1)).astype(jnp.int32)


def _ordered_bits(x):
    """float32 -> uint32 with the same order (-0.0 counts as 0.0)."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _largest(holds, bits: int, rows: int):
    """Per row the largest number of `bits` bits for which `holds` ([B] -> [B], decreasing) is true.

    0 where it holds nowhere.
    """

    def set_bit(i, found):
        trial = found | (jnp.uint32(1) << (bits - 1 - i).astype(jnp.uint32))
        return jnp.where(holds(trial), trial, found)

    return jax.lax.fori_loop(0, bits, set_bit, jnp.zeros((rows,), jnp.uint32))


def _most_probable(logits, weights, target):
    """Boolean [B, V]: the smallest set of highest logits whose weights sum to target or more.

    weights [B, V] >= 0; target [B], positive and at most the whole sum. Among equal logits lower
    ids come first.
    """
    rows, vocab = logits.shape
    order = _ordered_bits(logits)

    def reaches(keep):
        return jnp.where(keep, weights, 0.0).sum(axis=-1) >= target

    threshold = _largest(lambda t: reaches(order >= t[:, None]), 32, rows)[:, None]
    above, equal = order > threshold, order == threshold

    def cut_ties():
        # The same search over the ids, counted from the highest, so that lower ids stay.
        from_top = (vocab - 1 - jnp.arange(vocab)).astype(jnp.uint32)
        cut = _largest(lambda t: reaches(above | equal & (from_top >= t[:, None])), vocab.bit_length(), rows)
        return equal & (from_top >= cut[:, None])

    return above | jax.lax.cond((equal.sum(axis=-1) > 1).any(), cut_ties, lambda: equal)


def truncate(logits, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0):
    """Set to -inf the logits [B, V] of tokens that must not be drawn.

    The logits are taken after division by the temperature. In this order, each on what the former
    left: top_k > 0 keeps the top_k most probable tokens; top_p < 1 the smallest set of most
    probable tokens whose mass (renormalised) is at least top_p; min_p > 0 the tokens with at least
    min_p times the highest probability (Nguyen et al., arXiv 2407.01082). Among equal logits lower
    ids are kept first. The most probable token always stays.
    """
    chex.assert_rank(logits, 2)
    rows, vocab = logits.shape
    if 0 < top_k < vocab:
        keep = _most_probable(logits, jnp.ones_like(logits), jnp.full((rows,), top_k, logits.dtype))
        logits = jnp.where(keep, logits, -jnp.inf)
    if top_p < 1.0:
        weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
        # `tiny` keeps the most probable token for any top_p > 0, even if the product underflows.
        target = jnp.maximum(top_p * weights.sum(axis=-1), jnp.finfo(jnp.float32).tiny)
        logits = jnp.where(_most_probable(logits, weights, target), logits, -jnp.inf)
    if min_p > 0.0:
        lowest = logits.max(axis=-1, keepdims=True) + jnp.log(jnp.float32(min_p))
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    return logits


def next_token(logits, uniforms, *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0):
    """Choose one token a row: logits [B, V]; uniforms [B, 2], not read if temperature is 0.

    Returns (tokens int32 [B], log_probs float32 [B]). The log-prob (nats) is that of softmax(logits
    / temperature) *before* truncation by top-k, top-p and min-p, which is what a policy-gradient
    loss recomputes; at temperature 0 (greedy, the first of equals) it is that of softmax(logits).
    """
    vocab = logits.shape[1]
    logits = logits.astype(jnp.float32)
    # Before the division, which then can overflow to -inf only. The highest logit is 0 from here on.
    logits = logits - logits.max(axis=-1, keepdims=True)
    if temperature > 0:
        logits = logits / temperature
    # The passes over the vocabulary are most of the time: one exponential serves draw and log-prob.
    weights = _blocks(jnp.exp(logits), 0.0)
    if temperature == 0:
        tokens = greedy(logits)
    else:
        kept = truncate(logits, top_k=top_k, top_p=top_p, min_p=min_p)
        tokens = _draw(weights if kept is logits else _blocks(jnp.exp(kept), 0.0), uniforms, vocab)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    return tokens, chosen - jnp.log(weights.sum(axis=-1).sum(axis=-1))
