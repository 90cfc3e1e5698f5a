"""Log-probs and entropies of tokens from hidden states and the head, without the [tokens, vocabulary] array.

The only way from hidden states to the vocabulary in training and scoring. The logits exist for one
block of the vocabulary and one chunk of the tokens at a time, in the forward and in the backward pass.
The loops themselves are in `streaming.py`.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.losses.streaming import Plan, streamed_log_probs
from jaxalign.placement import device_count, platform

# Bytes of logits (float32, one block of one chunk) per device, and the tokens that they are made of. On a CPU the
# passes over the logits run at the speed of the cache that holds them; a GPU wants large products, and gains little
# beyond this (see docs/performance.md). TPUs have not been measured.
_LOGITS_BYTES = {"cpu": 4 * 2**20, "gpu": 64 * 2**20}
_LOGITS_BYTES_ELSEWHERE = 16 * 2**20
_CHUNK_TOKENS = 4096
_SMALLEST_BLOCK = 512


class TokenLogProbs(NamedTuple):
    """Both in nats and of the shape of `ids`; float32, or float64 for float64 inputs."""

    log_probs: jax.Array
    entropy: jax.Array


def token_log_probs(
    hidden: jax.Array,
    head: jax.Array,
    ids: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    softcap: float | None = None,
    block: int | None = None,
    num_chunks: int | None = None,
    compute_dtype: jax.typing.DTypeLike | None = None,
) -> TokenLogProbs:
    """Log-prob of each id, and entropy of the distribution that it is scored under.

    With logits l = hidden . head^T, capped to c tanh(l / c) if `softcap` c is given, z = l / temperature:

      log_probs = z[id] - logsumexp(z),    entropy = logsumexp(z) - sum_v softmax(z)_v z_v

    Both outputs are differentiable in `hidden` and `head` (reverse mode, once), and in nothing else.
    The backward pass recomputes the logits from the saved inputs, logsumexp and entropy:
    dL/dz = g_log_prob (onehot - p) - g_entropy p (z - logsumexp + entropy).
    A token whose two cotangents are 0 adds exactly 0 to both gradients, even if its hidden state is NaN.

    Temporary memory, besides outputs and gradients, is about 10 bytes times the chunk's tokens times
    the block, and does not grow with the number of tokens or the vocabulary. If several token chunks
    meet a head below float32, its gradient is accumulated in a float32 array of the head's shape.

    Args:
      hidden: [..., D], at the positions that predict `ids`. Over several devices the first axis is not
        merged with others, so that a batch sharded along it stays so.
      head: [V, D] output embedding.
      ids: [...] tokens to score. A negative id (-1, -100) marks a place that the caller masks: the
        result there is finite and belongs to id 0. An id of V or more gives NaN.
      temperature: divides the logits, > 0; a scalar. Use that of the rollout.
      softcap: Gemma's cap of the logits, > 0.
      block: rows of the head per block; chosen from the shapes if not given. If it does not divide V,
        the head is copied once to be padded.
      num_chunks: token chunks, a divisor of the last axis of `ids`; chosen from the shapes if not
        given. Shapes under `jit` are global, so the choice takes the tokens to be spread over all
        of the program's devices.
      compute_dtype: type in which the products read their operands; by default that of the inputs.

    Raises:
      ValueError: shapes that do not belong together, or a setting outside its range.

    Online logsumexp: arXiv 1805.02867; recomputation from logsumexp as in arXiv 2411.09009.
    """
    chex.assert_rank(head, 2)
    if hidden.ndim != ids.ndim + 1 or hidden.shape[:-1] != ids.shape:
        raise ValueError(f"hidden {hidden.shape} must be the shape of ids {ids.shape} followed by the embedding size")
    if head.shape[1] != hidden.shape[-1]:
        raise ValueError(f"head {head.shape} must be [vocabulary, {hidden.shape[-1]}] for hidden {hidden.shape}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be > 0, not {softcap}")
    if isinstance(temperature, (int, float)) and temperature <= 0:
        raise ValueError(f"temperature must be > 0 to score tokens, not {temperature}; greedy rollouts are scored at 1")
    last = ids.shape[-1] if ids.ndim else 1
    if num_chunks is not None and (num_chunks < 1 or last % num_chunks):
        raise ValueError(f"num_chunks={num_chunks} must divide the last axis of ids {ids.shape}")
    shape = ids.shape
    ids = ids.reshape(_choose_axes(shape, num_chunks or 1))
    hidden = hidden.reshape(*ids.shape, hidden.shape[-1])
    if num_chunks is None:
        num_chunks = _choose_chunks(ids.shape)
    if block is None:
        block = _choose_block(head.shape[0], math.prod(ids.shape) // num_chunks)
    if block < 1:
        raise ValueError(f"block must be at least 1 row of the head, not {block}")
    inputs = jnp.promote_types(hidden.dtype, head.dtype)
    plan = Plan(
        num_blocks=-(-head.shape[0] // block),
        num_chunks=num_chunks,
        softcap=softcap,
        compute_dtype=jnp.dtype(inputs if compute_dtype is None else compute_dtype),
        sum_dtype=jnp.dtype(jnp.promote_types(jnp.float32, inputs)),
    )
    sharpness = 1 / lax.stop_gradient(jnp.asarray(temperature, plan.sum_dtype))
    chex.assert_rank(sharpness, 0)
    log_probs, entropy = streamed_log_probs(plan, hidden, head, jnp.maximum(ids, 0), sharpness)
    return TokenLogProbs(log_probs.reshape(shape), entropy.reshape(shape))


def log_probs_from_logits(logits: jax.Array, ids: jax.Array, *, temperature: float | jax.Array = 1.0) -> TokenLogProbs:
    """As `token_log_probs`, for logits [..., V] that are there already (classifiers, table policies).

    Logits of -inf (a masked vocabulary) have probability 0 and leave value and gradient of the
    entropy finite. Negative ids are replaced by 0. Gradient flows into `logits`.
    """
    if logits.shape[:-1] != ids.shape:
        raise ValueError(f"logits {logits.shape} must be the shape of ids {ids.shape} followed by the vocabulary size")
    z = logits.astype(jnp.promote_types(jnp.float32, logits.dtype))
    z = z / lax.stop_gradient(jnp.asarray(temperature, z.dtype))
    log_p = jax.nn.log_softmax(z, axis=-1)
    chosen = jnp.take_along_axis(log_p, jnp.maximum(ids, 0)[..., None], axis=-1)[..., 0]
    possible = log_p > -jnp.inf
    finite = jnp.where(possible, log_p, 0)
    entropy = -jnp.where(possible, jnp.exp(finite) * finite, 0).sum(axis=-1)
    return TokenLogProbs(chosen, entropy)


def _choose_axes(shape: tuple[int, ...], unit: int) -> tuple[int, int]:
    """Rows and tokens per row (a multiple of `unit`) that the loops see.

    Two axes always: with one, the CPU's product for the gradient of `hidden` runs on its slow path. Its elementwise
    loops run along the last axis, so that 12 tokens a row take 1.5 times as long as 96 do. Over several devices the
    leading axis stays whatever its length, because it may be sharded.
    """
    if len(shape) > 1 and device_count() > 1:
        return shape[0], math.prod(shape[1:])
    units = math.prod(shape) // unit
    fitting = [n for n in range(1, min(units, 257)) if units % n == 0] or [max(units, 1)]
    per_row = unit * max(fitting, key=lambda n: (math.gcd(n, 16), n))
    return math.prod(shape) // per_row, per_row


def _choose_chunks(shape: tuple[int, ...]) -> int:
    """The smallest divisor of the last axis that leaves at most `_CHUNK_TOKENS` tokens per device.

    1 if there is none near: an axis of awkward length is cheaper whole than in very many pieces.
    """
    wanted = math.prod(shape) / (_CHUNK_TOKENS * device_count())
    if wanted <= 1:
        return 1
    return next((n for n in range(math.ceil(wanted), int(4 * wanted) + 1) if shape[-1] % n == 0), 1)


def _choose_block(vocabulary: int, tokens: int) -> int:
    """Rows per block whose logits take about as many bytes per device as said above, if possible a divisor of V.

    Among divisors within a factor of 2 of the aim, one with many factors of 2 is preferred, so that a
    head with sharded rows has whole shares of a block on each device.
    """
    tokens_per_device = max(1, tokens // device_count())
    logits_bytes = _LOGITS_BYTES.get(platform(), _LOGITS_BYTES_ELSEWHERE)
    aim = max(_SMALLEST_BLOCK, logits_bytes // 4 // tokens_per_device)
    if aim >= vocabulary:
        return vocabulary
    near = [d for d in range(aim // 2, min(2 * aim, vocabulary) + 1) if vocabulary % d == 0]
    if not near:
        return aim
    return max(near, key=lambda d: (math.gcd(d, 16), -abs(math.log(d / aim))))
