"""Unsupervised contrastive learning of features that vary in few directions, with whitening (arXiv 2305.17746).

3,000 items (2,000 to learn from) of 64 features: a mixture of 16 topics, noise that is large in four directions, and a
constant offset. The encoder is the identity plus a network 64-128-64 with dropout 0.1, the head a linear map and tanh;
batches of 128, temperature 0.05, Adam 1e-3.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies.towers import fit, init_tower, tower
from jaxalign.losses.alignment_uniformity import alignment_loss, uniformity_loss
from jaxalign.losses.contrastive import info_nce
from jaxalign.losses.whitening import view_permutations, whitened_cse_loss
from jaxalign.objective import loss

ITEMS, TRAINED, TOPICS, WIDTH, BATCH = 3000, 2000, 16, 64, 128
DROPOUT, TEMPERATURE, GROUPS = 0.1, 0.05, 8
SETTINGS = ("untrained", "infonce", "unshuffled", "two views", "shuffled")


def _features(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    topics = random.dirichlet(np.full(TOPICS, 0.3), ITEMS)
    x = (topics - topics.mean(0)) @ random.normal(size=(TOPICS, WIDTH))
    std = np.full(WIDTH, 0.25)
    std[:4] = (9, 6, 4.5, 3)
    rotation, _ = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))
    x = x + (std * random.normal(size=(ITEMS, WIDTH))) @ rotation + 6 * random.normal(size=WIDTH)
    return (x / x.std()).astype(np.float32)


def _encode(layers, x, key=None):
    if key is not None:
        kept = jax.random.bernoulli(jax.random.fold_in(key, len(layers)), 1 - DROPOUT, x.shape)
        x = jnp.where(kept, x / (1 - DROPOUT), 0)
    # The branch drops hidden units only: its input has been dropped already, with the identity's.
    hidden = jax.nn.relu(tower(layers[:1], x))
    return x + tower(layers[1:], hidden, dropout=DROPOUT, key=key)


def run(setting: str, seed: int, steps: int = 600) -> dict[str, float]:
    """On held-out items, without the head: `alignment` of two dropout views and `uniformity`; lower is better."""
    x = jnp.asarray(_features(seed))
    keys = jax.random.split(jax.random.key(seed), 5)
    params = {
        "encoder": init_tower(keys[0], WIDTH, 2 * WIDTH, WIDTH, last_std=0.01),
        "head": init_tower(keys[1], WIDTH, WIDTH),
    }
    number = 2 if setting == "two views" else 3

    def value(params, batch):
        rows, key = batch
        drop, shuffle = jax.random.split(key)
        encode = functools.partial(_encode, params["encoder"], x[rows])
        views = jax.vmap(lambda key: encode(key))(jax.random.split(drop, number))

        def head(y):
            return jnp.tanh(tower(params["head"], y))

        if setting == "infonce":
            z = [head(view) for view in views]
            return sum(loss(info_nce(z[0], other, TEMPERATURE)) for other in z[1:])
        permutations = view_permutations(shuffle, number, WIDTH)
        if setting == "unshuffled":
            permutations = jnp.broadcast_to(jnp.arange(WIDTH), permutations.shape)
        return loss(whitened_cse_loss(views, permutations, groups=GROUPS, temperature=TEMPERATURE, head=head))

    if setting != "untrained":
        random = np.random.default_rng(seed + 1)
        rows = np.stack([random.permutation(TRAINED)[:BATCH] for _ in range(steps)])
        params, _ = fit(value, params, optax.adam(1e-3), (rows, jax.random.split(keys[2], steps)))
    held_out = x[TRAINED:]
    first, second = (_encode(params["encoder"], held_out, key) for key in keys[3:])
    return {
        "alignment": float(loss(alignment_loss(first, second))),
        "uniformity": float(loss(uniformity_loss(_encode(params["encoder"], held_out)))),
    }
