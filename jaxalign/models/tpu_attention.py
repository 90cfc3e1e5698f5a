"""Attention over whole rows without [T, T] scores in memory: the splash attention kernel that JAX has for TPUs.

Of the two kernels of `jax.experimental.pallas.ops.tpu` this one reads grouped keys as they are, skips the blocks above
the diagonal, and is the one in use elsewhere (MaxText, Levanter); `flash_attention` wants keys repeated per query head.
"""

import jax
import jax.numpy as jnp

from jaxalign import placement
from jaxalign.models.config import DecoderConfig
from jaxalign.models.layers import Precision

LANES = 128  # the kernel's blocks, hence its rows, are multiples of this
MIN_LENGTH = 1024  # from here on "auto" takes the kernel: float32 scores of a row and head are 4 MiB and grow as T ** 2


def flash_obstacle(config: DecoderConfig, length: int, parents) -> str | None:
    """What keeps the kernel from these rows, with the remedy; None if it can serve.

    It serves rows without parents of a multiple of 128 tokens, in models without sliding layers, in processes that see
    one TPU device: the compiler cannot split a kernel over a mesh, and a decoder knows no mesh to give `jax.shard_map`.
    """
    if placement.platform() != "tpu":
        return f"it is a kernel for TPUs and this is a {placement.platform()}; use 'auto'"
    if placement.device_count() > 1:
        return f"it runs on one device and there are {placement.device_count()}; use 'auto', or make one device visible"
    if config.sliding_window is not None:
        return "the model has sliding layers, which it does not know; use 'auto'"
    if parents is not None:
        return "these rows hold completions behind a prompt as its children, which it does not know; use 'auto'"
    if length % LANES:
        return f"rows of {length} tokens are no multiple of {LANES}; use 'auto', or rows of such a length"
    return None


def flash_attention(query, key, value, segments, *, scale: float, precision: Precision, interpret: bool = False):
    """Causal attention within segments: query [B, T, H, d]; key, value [B, T, KV, d]; segments [B, T].

    As `attention` with the mask `visibility(segments)`, values and gradients, except that padding sees earlier padding.
    The query is scaled before it is rounded to `precision.compute`, where `attention` scales the float32 scores.
    `interpret` runs the kernel on any backend, slowly, for tests.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # slow to import, and only TPUs need it

    length, heads = query.shape[1:3]
    block = next(size for size in (512, 256, LANES) if length % size == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([splash.CausalMask((length, length))] * heads),
        block_sizes=splash.BlockSizes(**{f"block_{name}": block for name in names}),
        interpret=interpret,
    )
    query = query.astype(jnp.float32) * scale
    operands = (x.astype(precision.compute).swapaxes(1, 2) for x in (query, key, value))
    out = jax.vmap(kernel)(*operands, splash.SegmentIds(segments, segments))
    return out.swapaxes(1, 2).astype(precision.activation)
