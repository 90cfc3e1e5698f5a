"""Which keys a query sees, and the dense attention product.

Rows are forests: every token has a segment (0 = padding) and may name a parent segment. A query sees the earlier tokens
of its own segment and of its parent. One rule thus covers a plain row (one segment), packed examples (segments without
parents) and the completions of a group behind one shared prompt (each completion a segment whose parent is the prompt).
"""

import functools

import jax
import jax.numpy as jnp

from jaxalign.models.layers import Precision
from jaxalign.placement import compute_capability


def visibility(segments, parents=None, *, positions=None, window: int | None = None):
    """Boolean [B, T, T] (query, key): what `segments`, `parents` [B, T] allow, at most `window` positions back.

    Every token sees itself, padding too, so that no softmax is empty.
    """
    length = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    related = query == key
    if parents is not None:
        related |= parents[:, :, None] == key
    index = jnp.arange(length)
    visible = related & (key > 0) & (index[:, None] >= index[None, :])
    if window is not None:
        visible &= positions[:, :, None] - positions[:, None, :] < window
    return visible | jnp.eye(length, dtype=bool)


def cudnn_obstacle(head_dim: int, length: int, precision: Precision) -> str | None:
    """What keeps the fused kernel of NVIDIA GPUs from rows of `length` tokens, with the remedy; None: nothing."""
    capability = compute_capability()
    if capability is None:
        return "it is a kernel of NVIDIA GPUs and there is none; use 'auto'"
    if capability < (8, 0):
        return f"it needs compute capability 8.0 and this GPU has {capability[0]}.{capability[1]}; use 'auto'"
    if not precision.compute == precision.activation in ("bfloat16", "float16"):
        return f"it needs half precision and products are in {precision.compute}; use 'auto', or bfloat16"
    largest = 256 if capability >= (9, 0) else 128
    if head_dim % 8 or head_dim > largest:
        return f"heads of {head_dim} dimensions are no multiple of 8 up to {largest}; use 'auto'"
    if length % 2:
        return f"rows have an odd number of tokens, {length}; use 'auto'"
    return None


def attention(query, key, value, visible, *, scale: float, precision: Precision, implementation: str = "xla"):
    """Softmax attention with grouped queries: query [B, T, H, d]; key, value [B, S, KV, d]; visible [B, T, S].

    Products read their operands in `precision.compute` and sum in float32, as do those with weights. implementation
    "xla" runs everywhere; "cudnn" is the fused kernel of NVIDIA GPUs (half precision only).
    """
    if implementation != "xla":
        return jax.nn.dot_product_attention(
            query, key, value, mask=visible[:, None], scale=scale, implementation=implementation
        )
    grouped = query.reshape(*query.shape[:2], key.shape[2], -1, query.shape[3])
    return _grouped_attention(grouped, key, value, visible, scale, precision).reshape(query.shape)


# Axes (contracted, batch) of the products. They are given as they lie, without a transpose or einsum of ours: the CPU
# backend then makes the copies that its fast bfloat16 product needs, and falls back to float32 otherwise.
_SCORES = ((4,), (3,)), ((0, 2), (0, 2))  # [B, T, KV, R, d] . [B, S, KV, d] -> [B, KV, T, R, S]
_MIX = ((4,), (1,)), ((0, 1), (0, 2))  # [B, KV, T, R, S] . [B, S, KV, d] -> [B, KV, T, R, d]
_COLLECT = ((1, 3), (2, 3)), ((0, 2), (0, 1))  # [B, T, KV, R, d] . [B, KV, T, R, S] -> [B, KV, d, S]


def _product(a, b, axes, precision: Precision):
    a, b = a.astype(precision.compute), b.astype(precision.compute)
    return jax.lax.dot_general(a, b, axes, precision=precision.products, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _grouped_attention(query, key, value, visible, scale, precision):
    """query [B, T, KV, R, d], R queries to a key; the result is of that form, in the activation dtype."""
    return _attention_forward(query, key, value, visible, scale, precision)[0]


def _attention_forward(query, key, value, visible, scale, precision):
    query, key, value = (x.astype(precision.compute) for x in (query, key, value))
    scores = _product(query, key, _SCORES, precision) * scale
    weights = jax.nn.softmax(jnp.where(visible[:, None, :, None], scores, -jnp.inf)).astype(precision.compute)
    out = _product(weights, value, _MIX, precision).swapaxes(1, 2).astype(precision.activation)
    return out, (query, key, value, weights, out)


def _attention_backward(scale, precision, residuals, cotangent):
    # With scores s, weights p and out = p v: ds = p (dp - sum_s p dp), and that sum is (cotangent . out).
    query, key, value, weights, out = residuals
    shift = jnp.sum(cotangent.astype(jnp.float32) * out, axis=-1).swapaxes(1, 2)[..., None]
    d_weights = _product(cotangent, value, _SCORES, precision)
    d_scores = (weights * (d_weights - shift) * scale).astype(precision.compute)
    d_query = _product(d_scores, key, _MIX, precision).swapaxes(1, 2)
    d_key = _product(query, d_scores, _COLLECT, precision).transpose(0, 3, 1, 2)
    d_value = _product(cotangent, weights, _COLLECT, precision).transpose(0, 3, 1, 2)
    return *(d.astype(precision.activation) for d in (d_query, d_key, d_value)), None


_grouped_attention.defvjp(_attention_forward, _attention_backward)


def to_cache(x, precision: Precision):
    """Keys or values as a cache holds them: in the compute dtype, 16-bit floats as the integers of the same bits.

    The CPU backend updates an array of integers in place; around an update of a bfloat16 array it converts all of it to
    float32 and back, which at decoding costs more than everything else. Reading the bits as floats again is a copy of
    the cache there, so float32 is kept as it is.
    """
    x = x.astype(precision.compute)
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


def _from_cache(x, precision: Precision):
    return x if x.dtype == precision.compute else jax.lax.bitcast_convert_type(x, precision.compute)


def cached_attention(query, key, value, visible, *, scale: float, precision: Precision):
    """One query per row against its cache: query [B, 1, H, d]; key, value [B, KV, S, d], `to_cache`; visible [B, S]."""
    batch, _, heads, head_dim = query.shape
    key, value = _from_cache(key, precision), _from_cache(value, precision)
    query = query.astype(precision.compute).reshape(batch, key.shape[1], -1, head_dim)
    product = functools.partial(jnp.einsum, precision=precision.products, preferred_element_type=jnp.float32)
    scores = product("bkrd,bksd->bkrs", query, key) * scale
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -jnp.inf)).astype(precision.compute)
    out = product("bkrs,bksd->bkrd", weights, value)
    return out.reshape(batch, 1, heads, head_dim).astype(precision.activation)
