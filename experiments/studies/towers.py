"""Small networks and their training, for studies of embeddings: everything in one compiled scan over given batches."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def init_tower(key: jax.Array, *widths: int, last_std: float | None = None) -> list[dict[str, jax.Array]]:
    """Layers of a network of these widths: kernels of variance 2 / inputs (1 / inputs in the last), biases 0.

    `last_std` is the standard deviation of the last kernel instead.
    """
    pairs = list(itertools.pairwise(widths))
    layers = []
    for number, (inputs, outputs) in enumerate(pairs):
        last = number == len(pairs) - 1
        std = last_std if last and last_std is not None else ((1 if last else 2) / inputs) ** 0.5
        kernel = std * jax.random.normal(jax.random.fold_in(key, number), (inputs, outputs))
        layers.append({"kernel": kernel, "bias": jnp.zeros(outputs)})
    return layers


def tower(
    layers: list[dict[str, jax.Array]], x: jax.Array, *, dropout: float = 0.0, key: jax.Array | None = None
) -> jax.Array:
    """[B, last width], with ReLU between layers; with a key, dropout before every layer."""
    for number, layer in enumerate(layers):
        if number:
            x = jax.nn.relu(x)
        if key is not None:
            kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - dropout, x.shape)
            x = jnp.where(kept, x / (1 - dropout), 0)
        x = x @ layer["kernel"] + layer["bias"]
    return x


def fit(
    loss_fn: Callable[[Any, Any], jax.Array], params: Any, optimizer: optax.GradientTransformation, batches: Any
) -> tuple[Any, jax.Array]:
    """Parameters after one step for each of the batches (a tree of arrays [steps, ...]), and the losses [steps]."""

    @jax.jit
    def run(params, batches):
        def step(carry, batch):
            params, state = carry
            value, gradient = jax.value_and_grad(loss_fn)(params, batch)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), batches)
        return params, losses

    return run(params, batches)
