"""The loops behind `token_log_probs`: blocks of the vocabulary inside chunks of the tokens.

- Vocabulary blocks are strided: block j of n holds the rows j, j + n, j + 2n, ... of the head. A head
  whose rows are sharded over devices then has a share of every block on every device, and no block is
  gathered. Token chunks are strided for the same reason.
- Logits are laid out [block, tokens]: sums over the vocabulary run over the leading axis (vectorised
  over the tokens), and the product that makes the head's gradient reads them along contiguous rows.
- Products take `compute_dtype` in and give float32 out, in the backward pass too. On the CPU bfloat16
  products are fast in this form only.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.products import product_precision

# Stands for -inf: exp of it is 0, and 0 times it is 0 where 0 * -inf would be NaN.
_FLOOR = -1e30


class Plan(NamedTuple):
    """What is static: shapes of the loops and the form of the logits."""

    num_blocks: int  # vocabulary blocks
    num_chunks: int  # token chunks, along the last axis of `ids`
    softcap: float | None
    compute_dtype: jnp.dtype
    sum_dtype: jnp.dtype

    def product(self, a, b, axes):
        precision = product_precision(self.compute_dtype)
        return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=self.sum_dtype)


def _blocks(plan: Plan, head: jax.Array) -> jax.Array:
    """The head as [block, num_blocks, D]: block j is [:, j], rows j, j + n, j + 2n, ..."""
    vocabulary, embed = head.shape
    missing = -vocabulary % plan.num_blocks
    if missing:
        head = jnp.pad(head, ((0, missing), (0, 0)))
    return head.reshape(-1, plan.num_blocks, embed)


def _chunks(plan: Plan, x: jax.Array, axis: int) -> jax.Array:
    """`x` with its token axis T as [T / n, n]: chunk i is index i of the second of them."""
    shape = x.shape[:axis] + (-1, plan.num_chunks) + x.shape[axis + 1 :]
    return x.reshape(shape)


def _logits(
    plan: Plan, vocabulary: int, hidden: jax.Array, rows: jax.Array, j: jax.Array, sharpness
) -> tuple[jax.Array, jax.Array | None]:
    """z [block, tokens...] of block j, and the derivative of the cap (None without a cap)."""
    z = plan.product(rows, hidden, (((1,), (hidden.ndim - 1,)), ((), ())))
    slope = None
    if plan.softcap is not None:
        unit = jnp.tanh(z / plan.softcap)
        z, slope = plan.softcap * unit, 1 - unit**2
    z = jnp.maximum(z * sharpness, _FLOOR)
    if vocabulary % plan.num_blocks:
        token = lax.broadcasted_iota(jnp.int32, z.shape, 0) * plan.num_blocks + j
        z = jnp.where(token < vocabulary, z, _FLOOR)
    return z, slope


def _mixed_rows(plan: Plan, rows: jax.Array, dz: jax.Array) -> jax.Array:
    """rows^T dz, [D, tokens...]: the gradient of the hidden states, transposed.

    So the small operand is the one that is transposed for the product. It is contracted over two axes, because the CPU
    backend makes that transpose and takes its fast bfloat16 product then, but not for one axis.
    """
    block = rows.shape[0]
    halves = (2, block // 2) if block % 2 == 0 else (1, block)
    rows, dz = (x.reshape(*halves, *x.shape[1:]) for x in (rows, dz))
    return plan.product(rows, dz, (((0, 1), (0, 1)), ((), ())))


def _is_id(plan: Plan, ids: jax.Array, j: jax.Array, block: int) -> jax.Array:
    """[block, tokens...]: the places of the scored ids in block j."""
    row = jnp.where(ids % plan.num_blocks == j, ids // plan.num_blocks, -1)
    return lax.broadcasted_iota(ids.dtype, (block, *ids.shape), 0) == row


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def streamed_log_probs(plan: Plan, hidden, head, ids, sharpness):
    """(log_probs, entropy), both of the shape of `ids` (>= 0, at least one axis).

    `sharpness` is the scalar 1 / temperature; it receives no gradient.
    """
    return _forward(plan, hidden, head, ids, sharpness)[0]


def _forward(plan, hidden, head, ids, sharpness):
    vocabulary = head.shape[0]
    axis = ids.ndim - 1
    table = _blocks(plan, head)
    block = table.shape[0]
    hidden_chunks, id_chunks = _chunks(plan, hidden, axis), _chunks(plan, ids, axis)

    def chunk(i, results):
        h = lax.dynamic_index_in_dim(hidden_chunks, i, axis + 1, False).astype(plan.compute_dtype)
        chunk_ids = lax.dynamic_index_in_dim(id_chunks, i, axis + 1, False)

        def stream(j, sums):
            peak, mass, moment, chosen = sums  # of exp(z - peak); z exp(z - peak); z[id]
            rows = lax.dynamic_index_in_dim(table, j, 1, False).astype(plan.compute_dtype)
            z, _ = _logits(plan, vocabulary, h, rows, j, sharpness)
            new_peak = jnp.maximum(peak, z.max(axis=0))
            shrink, q = jnp.exp(peak - new_peak), jnp.exp(z - new_peak)
            return (
                new_peak,
                mass * shrink + q.sum(axis=0),
                moment * shrink + (q * z).sum(axis=0),
                chosen + jnp.where(_is_id(plan, chunk_ids, j, block), z, 0).sum(axis=0),
            )

        zeros = jnp.zeros(chunk_ids.shape, plan.sum_dtype)
        peak, mass, moment, chosen = lax.fori_loop(0, plan.num_blocks, stream, (zeros + _FLOOR, zeros, zeros, zeros))
        lse = peak + jnp.log(mass)
        # An impossible token (logit -inf) keeps its -inf, an id outside the vocabulary shows as NaN.
        chosen = jnp.where(chosen <= _FLOOR, -jnp.inf, chosen)
        chosen = jnp.where(chunk_ids < vocabulary, chosen, jnp.nan)
        new = (chosen - lse, lse - moment / mass, lse)
        return tuple(
            lax.dynamic_update_index_in_dim(old, value, i, axis + 1) for old, value in zip(results, new, strict=True)
        )

    empty = jnp.zeros(id_chunks.shape, plan.sum_dtype)
    results = lax.fori_loop(0, plan.num_chunks, chunk, (empty, empty, empty))
    log_probs, entropy, lse = (x.reshape(ids.shape) for x in results)
    return (log_probs, entropy), (hidden, head, ids, sharpness, lse, entropy)


def _backward(plan, saved, cotangents):
    hidden, head, ids, sharpness, lse, entropy = saved
    g_log_prob, g_entropy = cotangents
    vocabulary = head.shape[0]
    axis = ids.ndim - 1
    table = _blocks(plan, head)
    block = table.shape[0]
    tokens = tuple(range(ids.ndim))

    # dz = p (a - g_entropy z) + onehot g_log_prob: one multiply-add more than without the entropy.
    live = (g_log_prob != 0) | (g_entropy != 0)
    lse = jnp.where(live, lse, 0)
    a = jnp.where(live, g_entropy * (lse - entropy) - g_log_prob, 0)
    per_token = [_chunks(plan, x, axis) for x in (ids, live, lse, a, g_log_prob, g_entropy)]
    hidden_chunks = _chunks(plan, hidden, axis)
    # One chunk writes each row of the head's gradient once; several have to add.
    head_dtype = head.dtype if plan.num_chunks == 1 else jnp.promote_types(head.dtype, jnp.float32)

    def chunk(i, gradients):
        take = functools.partial(lax.dynamic_index_in_dim, index=i, axis=axis + 1, keepdims=False)
        chunk_ids, live, lse, a, g_log_prob, g_entropy = map(take, per_token)
        h = jnp.where(live[..., None], take(hidden_chunks), 0).astype(plan.compute_dtype)

        def stream(j, carry):
            d_hidden, d_table = carry
            rows = lax.dynamic_index_in_dim(table, j, 1, False).astype(plan.compute_dtype)
            z, slope = _logits(plan, vocabulary, h, rows, j, sharpness)
            dz = jnp.exp(z - lse) * (a - g_entropy * z)
            dz = dz + jnp.where(_is_id(plan, chunk_ids, j, block), g_log_prob, 0)
            dz = dz * sharpness
            dz = (dz if slope is None else dz * slope).astype(plan.compute_dtype)
            d_hidden = d_hidden + _mixed_rows(plan, rows, dz)
            d_rows = plan.product(dz, h, ((tuple(t + 1 for t in tokens), tokens), ((), ())))
            if plan.num_chunks > 1:
                d_rows = d_rows + lax.dynamic_index_in_dim(d_table, j, 1, False)
            return d_hidden, lax.dynamic_update_index_in_dim(d_table, d_rows.astype(d_table.dtype), j, 1)

        d_hidden_chunks, d_table = gradients
        zeros = jnp.zeros((h.shape[-1], *chunk_ids.shape), plan.sum_dtype)
        d_hidden, d_table = lax.fori_loop(0, plan.num_blocks, stream, (zeros, d_table))
        d_hidden = jnp.moveaxis(d_hidden, 0, -1)
        d_hidden_chunks = lax.dynamic_update_index_in_dim(d_hidden_chunks, d_hidden.astype(hidden.dtype), i, axis + 1)
        return d_hidden_chunks, d_table

    start = (jnp.zeros(hidden_chunks.shape, hidden.dtype), jnp.zeros(table.shape, head_dtype))
    d_hidden, d_table = lax.fori_loop(0, plan.num_chunks, chunk, start)
    d_head = d_table.reshape(-1, head.shape[1])[:vocabulary].astype(head.dtype)
    return d_hidden.reshape(hidden.shape), d_head, None, None


streamed_log_probs.defvjp(_forward, _backward)
