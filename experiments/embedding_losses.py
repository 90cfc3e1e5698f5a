"""The losses of embeddings as a run takes them: what they read of a batch, what they learn, which options they have."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.losses.contrastive import clip_loss, info_nce, nt_xent, siglip_loss
from jaxalign.losses.group_infonce import group_infonce_loss
from jaxalign.losses.margin_softmax import margin_softmax_loss
from jaxalign.losses.multi_similarity import multi_similarity_loss
from jaxalign.losses.supervised_contrastive import supcon_loss
from jaxalign.losses.triplet import triplet_loss
from jaxalign.losses.unpg import unpg_loss
from jaxalign.losses.whitening import view_permutations, whitened_cse_loss
from jaxalign.objective import Objective

Form = Literal["pairs", "labels", "groups", "views"]


class EmbeddingLoss(NamedTuple):
    """A row of LOSSES.

    function: the loss; its keyword-only numbers and switches are the keys of `config.loss`.
    form: what a batch is: "pairs" of two sides, "labels": examples of classes, "groups": each example with several
      partners, "views": each example embedded several times with other dropout.
    call: (rows, shared, options) -> Objective, where rows has the embeddings ("first" [B, D], or [B, V, D] of views,
      "second" [B, D], or [B, m, D] of groups) and the columns of the batch, shared what is learned and the "key" of the
      step, and options are those of `config.loss` with axis_name.
    begin: (embedding size, classes) -> what the loss learns.
    given: options that are arguments of the function, with their values.
    """

    function: Callable[..., Objective]
    form: Form
    call: Callable[[dict, dict, dict], Objective]
    begin: Callable[[int, int], dict[str, Any]] = lambda size, classes: {}
    given: Mapping[str, float] = {}


def _pair(function: Callable[..., Objective], *names: str) -> Callable[[dict, dict, dict], Objective]:
    """`function(first, second, *names)`, the names being learned or options."""

    def call(rows: dict, shared: dict, options: dict) -> Objective:
        options = dict(options)
        further = [shared[name] if name in shared else options.pop(name) for name in names]
        return function(rows["first"], rows["second"], *further, valid=rows["valid"], ids=rows["ids"], **options)

    return call


def _labelled(function: Callable[..., Objective], *names: str) -> Callable[[dict, dict, dict], Objective]:
    def call(rows: dict, shared: dict, options: dict) -> Objective:
        options = dict(options)
        further = [options.pop(name) for name in names]
        return function(rows["first"], rows["labels"], *further, valid=rows["valid"], **options)

    return call


def _margin_softmax(rows: dict, shared: dict, options: dict) -> Objective:
    options = {name: value for name, value in options.items() if name != "axis_name"}  # rows do not interact
    return margin_softmax_loss(rows["first"], shared["classes"], rows["labels"], valid=rows["valid"], **options)


def _unpg(rows: dict, shared: dict, options: dict) -> Objective:
    return unpg_loss(rows["first"], shared["classes"], rows["labels"], valid=rows["valid"], **options)


def _groups(rows: dict, shared: dict, options: dict) -> Objective:
    mask = rows["mask"] * rows["valid"][:, None]
    return group_infonce_loss(rows["first"], rows["second"], mask, ids=rows["ids"], **options)


def _whitened(rows: dict, shared: dict, options: dict) -> Objective:
    views = jnp.moveaxis(rows["first"], 1, 0)
    permutations = view_permutations(shared["key"], len(views), views.shape[-1])
    head = lambda x: jnp.tanh(x @ shared["head"])  # noqa: E731
    return whitened_cse_loss(views, permutations, head=head, valid=rows["valid"], **options)


def _head(size: int, classes: int) -> dict[str, jax.Array]:
    del classes
    return {"head": jax.random.normal(jax.random.key(0), (size, size)) * size**-0.5}


def _class_vectors(size: int, classes: int) -> dict[str, jax.Array]:
    return {"classes": jax.random.normal(jax.random.key(0), (classes, size)) * size**-0.5}


LOSSES: dict[str, EmbeddingLoss] = {
    "info_nce": EmbeddingLoss(info_nce, "pairs", _pair(info_nce, "temperature"), given={"temperature": 0.07}),
    "nt_xent": EmbeddingLoss(nt_xent, "pairs", _pair(nt_xent, "temperature"), given={"temperature": 0.1}),
    "clip_loss": EmbeddingLoss(
        clip_loss, "pairs", _pair(clip_loss, "log_scale"), lambda *_: {"log_scale": jnp.float32(math.log(1 / 0.07))}
    ),
    "siglip_loss": EmbeddingLoss(
        siglip_loss,
        "pairs",
        _pair(siglip_loss, "log_scale", "bias"),
        lambda *_: {"log_scale": jnp.float32(math.log(10)), "bias": jnp.float32(-10)},
    ),
    "supcon_loss": EmbeddingLoss(
        supcon_loss, "labels", _labelled(supcon_loss, "temperature"), given={"temperature": 0.1}
    ),
    "triplet_loss": EmbeddingLoss(triplet_loss, "labels", _labelled(triplet_loss, "margin"), given={"margin": 0.2}),
    "multi_similarity_loss": EmbeddingLoss(multi_similarity_loss, "labels", _labelled(multi_similarity_loss)),
    "margin_softmax_loss": EmbeddingLoss(margin_softmax_loss, "labels", _margin_softmax, _class_vectors),
    "unpg_loss": EmbeddingLoss(unpg_loss, "labels", _unpg, _class_vectors),
    "group_infonce_loss": EmbeddingLoss(group_infonce_loss, "groups", _groups),
    "whitened_cse_loss": EmbeddingLoss(whitened_cse_loss, "views", _whitened, _head),
}
