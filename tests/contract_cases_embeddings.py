"""Contract cases of losses of embeddings: a row is a mean over its tokens, and counts if it has any."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.losses.contrastive import clip_loss, info_nce, nt_xent, siglip_loss
from jaxalign.losses.margin_softmax import margin_softmax_loss
from jaxalign.losses.supervised_contrastive import supcon_loss
from jaxalign.losses.triplet import triplet_loss
from jaxalign.methods import METHODS

CLASSES = 5


@jax.jit
def _embed(params, features, mask):
    """Two towers of the token model's weights."""
    a, b = jnp.tanh(features @ params["mix"]), jnp.tanh(features @ params["head"].T) @ params["head"]
    counts = (mask != 0)[..., None]
    length = jnp.maximum(counts.astype(a.dtype).sum(1), 1)
    return {name: jnp.where(counts, x, 0).sum(1) / length for name, x in (("a", a), ("b", b))}


def embedding_case(token_case, loss, scalars, shared, additive, seed, rows, dtype, scorer):
    """A case of `loss(outputs, batch)`, whose outputs are embeddings a, b [B, D] and learnable parameters.

    The batch has labels [B] and valid [B]. `scalars` are added to the parameters; `shared` names some of those there.
    """

    def extra(random, batch):
        del random
        return {"valid": batch["mask"].any(1)}

    def outputs(params, batch):
        return _embed(params, batch["features"], batch["mask"]) | {name: params[name] for name in (*scalars, *shared)}

    case = token_case(seed, rows, dtype, scorer, loss, extra=extra, keep=("mask", "valid"))
    batch = case.batch | {"labels": np.random.default_rng(seed).integers(0, CLASSES, rows).astype(np.int32)}
    for name in ("ids", "old_log_probs", "reference_log_probs"):
        del batch[name]
    masked = {"features": "mask", "a": "valid", "b": "valid", "labels": "valid"}
    params = case.params | {name: np.asarray(value, dtype) for name, value in scalars.items()}
    changed = dict(params=params, batch=batch, outputs=outputs, masked=masked, inputs=("features",))
    return case._replace(**changed, additive=additive)


def cases(token_case):
    """Builders by name; `token_case` is that of `tests.contract_cases`, which imports this module."""

    def builder(loss, shared=(), additive=False, **scalars):
        # Compiled as one, because these losses are many small operations that no other case has.
        return functools.partial(embedding_case, token_case, jax.jit(loss), scalars, shared, additive)

    def pairs(function, **scalars):
        def loss(outputs, batch):
            return function(outputs["a"], outputs["b"], *(outputs[name] for name in scalars), valid=batch["valid"])

        return builder(loss, **scalars)

    def labelled(function, *arguments, **options):
        def loss(outputs, batch):
            x = jnp.concatenate([outputs["a"], outputs["b"]], 1)
            return function(x, batch["labels"], *arguments, valid=batch["valid"], **options)

        return builder(loss)

    def classes(name):
        options = METHODS[name].loss | {"scale": 8.0}  # at 64 the losses of most rows are 0

        def loss(outputs, batch):
            given = (outputs["a"], outputs["head"], batch["labels"])
            return margin_softmax_loss(*given, valid=batch["valid"], **options)

        return builder(loss, shared=("head",), additive=True)

    clip = pairs(clip_loss, log_scale=1.2)
    return {
        "info_nce": pairs(info_nce, temperature=0.5),
        "nt_xent": pairs(nt_xent, temperature=0.5),
        "clip": clip,
        "siglip": pairs(siglip_loss, log_scale=1.2, bias=-1.0),
        "supcon": labelled(supcon_loss, 0.5),
        "triplet": labelled(triplet_loss, 0.2, **METHODS["triplet"].loss),
        "cosface": classes("cosface"),
        "arcface": classes("arcface"),
        "m2_encoder": clip,  # the same loss; its pools are in tests/training/test_coupled.py
    }
