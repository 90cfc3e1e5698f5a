"""Embeddings of scanned digits under the losses of the contrastive family, with one encoder for all.

scikit-learn's digits: 600 of 900 pictures to learn from (which ones depends on the seed), 897 others to be tested. A
network 64-128-32, Adam 1e-3, 600 steps; every picture of a batch is seen turned, sheared, sized and moved a little.

Settings with labels, batches of 10 classes x 8: softmax (a linear classifier on the embeddings), normalised softmax
(cosines without a margin), cosface, arcface, supcon, triplet. Without labels, two views of each of 256 pictures:
nt_xent, info_nce, siglip, alignment and uniformity (the sum of both), alignment alone. Without training: pixels,
untrained.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies.nested_classes import balanced_batches
from experiments.studies.towers import fit
from jaxalign.data.digits import SIDE
from jaxalign.data.sources import load_source
from jaxalign.evaluation.retrieval import retrieval_metrics, same_label_retrieval
from jaxalign.losses.alignment_uniformity import alignment_loss, uniformity_loss
from jaxalign.losses.contrastive import info_nce, nt_xent, siglip_loss
from jaxalign.losses.margin_softmax import margin_softmax_loss
from jaxalign.losses.similarity import unit
from jaxalign.losses.supervised_contrastive import supcon_loss
from jaxalign.losses.triplet import triplet_loss
from jaxalign.models.mlp_encoder import MlpEncoder
from jaxalign.objective import loss

ENCODER = MlpEncoder(SIDE * SIDE, (128,), 32)
LEARNT, PAIRS, CLASSES, SAMPLES, RATE = 600, 256, 10, 8, 1e-3


class Pictures(NamedTuple):
    images: np.ndarray  # [N, 8, 8] in 0 .. 1
    labels: np.ndarray  # [N]


def pictures(split: str) -> Pictures:
    source = load_source(f"digits?split={split}")
    examples = [source[index] for index in range(len(source))]
    images = np.stack([example["image"][..., 0] for example in examples])
    return Pictures(images, np.array([example["label"] for example in examples]))


def view(images: jax.Array, key: jax.Array) -> jax.Array:
    """Pictures [N, 8, 8] seen a little otherwise: each turned, sheared, sized and moved by its own draws."""
    keys = jax.random.split(key, 2)
    change = jnp.eye(2) + 0.15 * jax.random.normal(keys[0], (len(images), 2, 2))
    shift = 0.6 * jax.random.normal(keys[1], (len(images), 2))
    grid = jnp.stack(jnp.meshgrid(*2 * [jnp.arange(SIDE) - (SIDE - 1) / 2], indexing="ij"))  # from the centre

    def one(image, change, shift):
        places = jnp.tensordot(change, grid, 1) + shift[:, None, None] + (SIDE - 1) / 2
        return jax.scipy.ndimage.map_coordinates(image, places, order=1)

    return jax.vmap(one)(images, change, shift)


def embed(params, images: jax.Array) -> jax.Array:
    return ENCODER.embed(params, {"features": images.reshape(len(images), -1)})


class Loss(NamedTuple):
    """function: (embeddings, labels, learned) -> loss, or of (views, other views, learned) without labels."""

    function: Callable[..., jax.Array]
    learned: Any = None  # at the start


def _class_vectors() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (CLASSES, ENCODER.embedding_dim)) * ENCODER.embedding_dim**-0.5


def _softmax(x, labels, learned):
    logits = x @ learned["classes"].T + learned["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _margin(kind: str, margin: float) -> Loss:
    def function(x, labels, classes):
        return loss(margin_softmax_loss(x, classes, labels, scale=64.0, margin=margin, kind=kind))

    return Loss(function, _class_vectors())


def _both(a, b, learned):
    del learned
    return loss(alignment_loss(a, b)) + (loss(uniformity_loss(a)) + loss(uniformity_loss(b))) / 2


LABELLED = {
    "softmax": Loss(_softmax, {"classes": _class_vectors(), "bias": jnp.zeros(CLASSES)}),
    "normalised softmax": _margin("none", 0.0),
    "cosface": _margin("cosface", 0.35),
    "arcface": _margin("arcface", 0.5),
    "supcon": Loss(lambda x, labels, _: loss(supcon_loss(x, labels, 0.1))),
    "triplet": Loss(lambda x, labels, _: loss(triplet_loss(x, labels, 0.2))),
}
PAIRED = {
    "nt_xent": Loss(lambda a, b, _: loss(nt_xent(a, b, 0.5))),
    "info_nce": Loss(lambda a, b, _: loss(info_nce(a, b, 0.5))),
    "siglip": Loss(
        lambda a, b, learned: loss(siglip_loss(a, b, **learned)),
        {"log_scale": jnp.log(10.0), "bias": jnp.float32(-10)},
    ),
    "alignment and uniformity": Loss(_both),
    "alignment alone": Loss(lambda a, b, _: loss(alignment_loss(a, b))),
}
SETTINGS = ("pixels", "untrained", *LABELLED, *PAIRED)


def trained(setting: str, seed: int, data: Pictures, steps: int) -> dict:
    """Parameters of the encoder after `steps` steps under the loss of that setting."""
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
    start, draws = jax.random.split(jax.random.key(seed))
    chosen = {**LABELLED, **PAIRED}[setting]
    random = np.random.default_rng((seed, 1))
    if setting in LABELLED:
        rows = balanced_batches(seed, data.labels, steps, CLASSES, SAMPLES)
    else:
        rows = np.stack([random.choice(len(images), PAIRS, replace=False) for _ in range(steps)])

    def value(params, batch):
        rows, key = batch
        seen, other = (embed(params["encoder"], view(images[rows], one)) for one in jax.random.split(key))
        return chosen.function(seen, labels[rows] if setting in LABELLED else other, params["learned"])

    params = {"encoder": ENCODER.init(start), "learned": chosen.learned}
    return fit(value, params, optax.adam(RATE), (jnp.asarray(rows), jax.random.split(draws, steps)))[0]["encoder"]


def run(setting: str, seed: int, *, steps: int = 600, validation: bool = False) -> dict[str, float]:
    """Of the tested pictures: recall and map@r by class, `views`: how often the nearest view is of the same picture.

    recall is accuracy@1 and map@r is that of arXiv 2003.08505, each picture against all others; `views`, alignment and
    uniformity are of two views of each. With `validation` the 300 pictures that the seed leaves are tested.
    """
    pool = pictures("train")
    order = np.random.default_rng((47, seed)).permutation(len(pool.labels))
    learnt, left = (Pictures(*(x[rows] for x in pool)) for rows in (order[:LEARNT], order[LEARNT:]))
    tested = left if validation else pictures("held_out")
    if setting == "pixels":
        embedded = lambda images: unit(images.reshape(len(images), -1))  # noqa: E731
    else:
        params = ENCODER.init(jax.random.split(jax.random.key(seed))[0])
        if setting != "untrained":
            params = trained(setting, seed, learnt, steps)
        embedded = jax.jit(lambda images: unit(embed(params, images)))
    found = same_label_retrieval(embedded(jnp.asarray(tested.images)), tested.labels)
    keys = jax.random.split(jax.random.key(97), 2)
    first, second = (embedded(view(jnp.asarray(tested.images), key)) for key in keys)
    partners = retrieval_metrics(first @ second.T, np.eye(len(first), dtype=bool), (1,))
    return {
        "recall": found["accuracy@1"],
        "map@r": found["map@r"],
        "views": partners["accuracy@1"],
        "alignment": float(loss(alignment_loss(first, second))),
        "uniformity": float(loss(uniformity_loss(first))),
    }
