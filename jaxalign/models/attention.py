"""Which keys a query sees, and the dense attention product.

Rows are forests: every token has a segment (0 = padding) and may name a parent segment. A query sees the earlier tokens
of its own segment and of its parent. One rule thus covers a plain row (one segment), packed examples (segments without
parents) and the completions of a group behind one shared prompt (each completion a segment whose parent is the prompt).
"""

import jax
import jax.numpy as jnp


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


def attention(query, key, value, visible, *, scale: float, implementation: str = "xla"):
    """Softmax attention with grouped queries: query [B, T, H, d]; key, value [B, S, KV, d]; visible [B, T, S].

    implementation "xla" runs everywhere; "cudnn" is the fused kernel of NVIDIA GPUs (half precision only).
    """
    return jax.nn.dot_product_attention(
        query, key, value, mask=visible[:, None], scale=scale, implementation=implementation
    )


def cached_attention(query, key, value, visible, *, scale: float):
    """One query per row against its cache: query [B, 1, H, d]; key, value [B, S, KV, d]; visible [B, S]."""
    batch, _, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("bkrd,bskd->bkrs", grouped, key, preferred_element_type=jnp.float32) * scale
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -jnp.inf), axis=-1)
    out = jnp.einsum("bkrs,bskd->bkrd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return out.reshape(batch, 1, heads, head_dim).astype(query.dtype)
