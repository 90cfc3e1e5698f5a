"""What a linear classifier reads off embeddings, from a few labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax


def few_of_each(random: np.random.Generator, labels: np.ndarray, count: int) -> np.ndarray:
    """Rows of `count` examples of every label (all if there are fewer), by rising label; none of labels < 0."""
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]
    return np.concatenate([random.choice(these, min(count, len(these)), replace=False) for these in rows])


@functools.partial(jax.jit, static_argnames="classes")
def probe_hits(features: jax.Array, labels: jax.Array, chosen: jax.Array, *, classes: int) -> jax.Array:
    """[N] bool: which labels a logistic regression finds that knows those of the rows `chosen`.

    Features [N, D] are standardised over all rows; 300 steps of gradient descent of size 0.5 from 0, with a penalty of
    0.01 on squared weights. labels [N] are in 0 .. classes - 1, or negative where there is none (which is never found).
    """
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)

    def loss(weights):
        logits = features[chosen] @ weights[:-1] + weights[-1]
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()
        return nll + 0.01 * jnp.sum(weights[:-1] ** 2)

    start = jnp.zeros((features.shape[1] + 1, classes))
    weights = jax.lax.fori_loop(0, 300, lambda _, w: w - 0.5 * jax.grad(loss)(w), start)
    return jnp.argmax(features @ weights[:-1] + weights[-1], -1) == labels
