"""Retrieval of unseen classes after training with pair losses that weight pairs differently (arXiv 1904.06627).

50 classes to learn from, 50 others to be retrieved, in 64 dimensions of which 12 tell them apart; a network 64-128-16,
batches of 16 classes x 5, Adam 1e-3.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from experiments.studies.nested_classes import balanced_batches, nested_classes
from experiments.studies.towers import fit, init_tower, tower
from jaxalign.evaluation.retrieval import same_label_retrieval
from jaxalign.losses import pair_weighting
from jaxalign.losses.multi_similarity import labelled_pair_loss, multi_similarity_loss
from jaxalign.objective import loss, safe_divide

THRESHOLD = 0.5
SCALES = dict(alpha=2.0, beta=50.0, threshold=THRESHOLD)
SETTINGS = (
    "multi-similarity",
    "multi-similarity without mining",
    "binomial deviance",
    "triplet",
    "contrastive",
    "features",
)


def _contrastive(x, labels):
    """Mean over active pairs: all positives, and negatives above the threshold."""
    total = labelled_pair_loss(functools.partial(pair_weighting.contrastive, threshold=THRESHOLD), x, labels).total

    def active(s, positive, negative):
        return (positive | (negative & (jax.lax.stop_gradient(s) > THRESHOLD))).sum(-1).astype(s.dtype)

    return total / labelled_pair_loss(active, x, labels).total


def _triplet(x, labels):
    """Mean over all triplets, margin 0.2 of cosines."""
    total = labelled_pair_loss(functools.partial(pair_weighting.triplet, margin=0.2), x, labels).total
    triplets = labelled_pair_loss(lambda s, p, n: (p.sum(-1) * n.sum(-1)).astype(s.dtype), x, labels).total
    return safe_divide(total, triplets)


LOSSES = {
    "multi-similarity": lambda x, y: loss(multi_similarity_loss(x, y, **SCALES, mining_margin=0.1)),
    "multi-similarity without mining": lambda x, y: loss(multi_similarity_loss(x, y, **SCALES, mining_margin=None)),
    "binomial deviance": lambda x, y: loss(
        labelled_pair_loss(functools.partial(pair_weighting.binomial_deviance, **SCALES), x, y)
    ),
    "triplet": _triplet,
    "contrastive": _contrastive,
}


def run(setting: str, seed: int, steps: int = 300) -> dict[str, float]:
    """`recall` is Recall@1 of deep metric learning: how often the nearest other sample is of the same class."""
    data = nested_classes(
        seed,
        super_classes=10,
        classes=10,
        samples=20,
        train_classes=50,
        super_std=1.5,
        class_std=0.6,
        within_std=0.3,
        signal=12,
    )
    embed = lambda x: x  # noqa: E731
    if setting != "features":
        rows = balanced_batches(seed + 1, data.train_labels, steps, classes=16, samples=5)
        layers = init_tower(jax.random.key(seed), 64, 128, 16)
        x, y = jnp.asarray(data.train_x), jnp.asarray(data.train_labels)
        layers, _ = fit(lambda p, i: LOSSES[setting](tower(p, x[i]), y[i]), layers, optax.adam(1e-3), rows)
        embed = functools.partial(tower, layers)
    found = same_label_retrieval(embed(data.unseen_x), data.unseen_labels)
    return {"recall": found["accuracy@1"], "map@r": found["map@r"]}
