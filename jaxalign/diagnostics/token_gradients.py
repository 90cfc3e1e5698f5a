"""Inner products of the gradients of single tokens' log-probs: where in two completions their gradients agree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.diagnostics.entanglement import inner_product
from jaxalign.objective import safe_divide


def token_products(log_probs: Callable[[Any], jax.Array], params: Any) -> jax.Array:
    """[N, N] inner products <g_s, g_t> of the gradients g of the N numbers that `log_probs(params)` gives.

    Row by row J (J^T e_s), J being the Jacobian: three gradients are held at a time instead of N. J v is taken as the
    derivative of u -> <J^T u, v>, because pieces with a backward pass of their own have no forward-mode derivative. The
    sum of a block is the inner product of the gradients of the sums of its tokens.
    """
    values, backward = jax.vjp(log_probs, params)

    def row(one_hot):
        (direction,) = backward(one_hot)
        return jax.grad(lambda u: inner_product(backward(u)[0], direction))(one_hot)

    return jax.lax.map(row, jnp.eye(values.shape[0], dtype=values.dtype))


def token_cosines(products: jax.Array) -> jax.Array:
    """[N, N] in [-1, 1] of `token_products`; 0 for a token whose gradient is 0."""
    norms = jnp.sqrt(jnp.diagonal(products))
    return safe_divide(products, norms[:, None] * norms[None, :])
