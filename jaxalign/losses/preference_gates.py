"""Gates of tokens for losses of pairs: which tokens of two completions a sum of log-probs counts.

Tokens that both completions share pull their gradients together (arXiv 2410.13828, which names sparse masks of tokens
as a remedy; the form here follows from that). With `common_token_gates` as token weights of `sequence_sums`, of policy
and reference alike, only what tells the completions apart is trained on.
"""

import chex
import jax
import jax.numpy as jnp


def common_token_gates(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, 2, T] float32: 0 for the tokens of a longest common subsequence of the two completions, else 1.

    Of several longest ones it is that which a walk from the end finds, matching where it can and then giving up tokens
    of the first completion. Two equal completions have no token left. What stands at mask 0 is never common.

    Args:
      tokens: [B, 2, T] ids.
      mask: [B, 2, T], 1 = a token of the completion.
    """
    chex.assert_equal_shape([tokens, mask])
    return jax.vmap(_gates)(tokens, mask != 0)


def _gates(tokens: jax.Array, counts: jax.Array) -> jax.Array:
    """Of one pair: the table of lengths of common subsequences of prefixes, and the walk back through it."""
    length = tokens.shape[-1]
    equal = (tokens[0][:, None] == tokens[1][None, :]) & counts[0][:, None] & counts[1][None, :]

    def next_row(above, matches):
        # max(above, diagonal + match), then the best so far to the left
        best = jnp.maximum(above, jnp.pad(above[:-1], (1, 0)) + jnp.pad(matches.astype(jnp.int32), (1, 0)))
        row = jax.lax.cummax(best)
        return row, row

    top = jnp.zeros(length + 1, jnp.int32)
    _, rows = jax.lax.scan(next_row, top, equal)
    table = jnp.concatenate([top[None], rows])  # [T + 1, T + 1]

    def step(_, walk):
        i, j, gates = walk
        inside = (i > 0) & (j > 0)
        common = inside & equal[i - 1, j - 1] & (table[i, j] == table[i - 1, j - 1] + 1)
        up = inside & ~common & (table[i - 1, j] >= table[i, j - 1])
        left = inside & ~common & ~up
        gates = gates.at[0, i - 1].multiply(jnp.where(common, 0.0, 1.0))
        gates = gates.at[1, j - 1].multiply(jnp.where(common, 0.0, 1.0))
        return i - (common | up), j - (common | left), gates

    start = (jnp.int32(length), jnp.int32(length), jnp.ones((2, length), jnp.float32))
    return jax.lax.fori_loop(0, 2 * length, step, start)[2]
