"""Verification of unseen classes after ArcFace with and without negatives from the batch's pairs (arXiv 2203.11593).

Few identities with many samples each: 30 classes x 60 to learn from, 70 others to be told apart; a network 64-128-32,
scale 32, margin 0.4, batches of 128 drawn uniformly, Adam 2e-3 falling to 0 as a cosine.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies.nested_classes import nested_classes
from experiments.studies.towers import fit, init_tower, tower
from jaxalign.evaluation.retrieval import pair_true_accept_rate, same_label_retrieval
from jaxalign.losses.unpg import unpg_loss
from jaxalign.objective import loss

OPTIONS = {
    "arcface": dict(batch_negatives=False),
    "whisker 1.0": dict(whisker=1.0),
    "whisker 1.5": dict(whisker=1.5),
    "no filter": dict(whisker=None),
}
SETTINGS = tuple(OPTIONS)
CLASSES, BATCH, TESTED = 30, 128, 2000


def run(setting: str, seed: int, steps: int = 400) -> dict[str, float]:
    """`tar` is the true accept rate at a false accept rate of 1e-3 over all pairs of 2,000 unseen samples."""
    data = nested_classes(
        seed,
        super_classes=20,
        classes=5,
        samples=60,
        train_classes=CLASSES,
        super_std=1.2,
        class_std=0.7,
        within_std=0.35,
        signal=16,
    )
    random = np.random.default_rng(seed + 1)
    rows = random.integers(0, len(data.train_x), (steps, BATCH))
    keys = jax.random.split(jax.random.key(seed))
    params = {"tower": init_tower(keys[0], 64, 128, 32), "classes": jax.random.normal(keys[1], (CLASSES, 32))}
    x, y = jnp.asarray(data.train_x), jnp.asarray(data.train_labels)

    def value(params, i):
        embeddings = tower(params["tower"], x[i])
        return loss(unpg_loss(embeddings, params["classes"], y[i], scale=32.0, margin=0.4, **OPTIONS[setting]))

    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=5e-4)
    params, _ = fit(value, params, optimizer, rows)
    tested = random.permutation(len(data.unseen_x))[:TESTED]
    embeddings, labels = tower(params["tower"], data.unseen_x[tested]), data.unseen_labels[tested]
    return {
        "tar": float(pair_true_accept_rate(embeddings, labels, [1e-3])[0]),
        "recall": same_label_retrieval(embeddings, labels)["accuracy@1"],
    }
