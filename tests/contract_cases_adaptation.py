"""Cases of losses of a batch of embeddings: the positions of all rows are its examples, flattened."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.losses import class_alignment, graph_text, proclip
from jaxalign.methods import METHODS

CLASSES = 5


def cases(make_case, token_policy):
    """Builders by name; `make_case` and `token_policy` are of `tests.contract_cases`, which imports this module."""

    def builder(outputs, loss, *parameters, additive):
        loss = jax.jit(loss)  # compiled as one, because these losses are many small operations that no other case has

        def build(seed, rows, dtype, scorer):
            del scorer
            params, batch = token_policy(seed, rows, dtype)
            del batch["ids"]

            def flat_loss(outputs, batch):
                flat = {name: x.reshape(-1, x.shape[-1]) for name, x in outputs.items()}
                return loss(batch["mask"].reshape(-1), **flat)

            params = {name: params[name] for name in parameters}
            masked = dict.fromkeys(("features", *outputs(params, batch)), "mask")
            return make_case(params, batch, outputs, flat_loss, masked, inputs=("features",), additive=additive)

        return build

    return {
        "cafa": builder(_classified, _cafa, "mix", additive=True),
        "proclip": builder(_pair, _proclip, "mix", "head", additive=False),
        "llm4gta": builder(_pair_and_logits, _graph_text, "mix", "head", additive=False),
    }


def _classified(params, batch):
    embedding = jnp.tanh(batch["features"] @ params["mix"])
    head = np.random.default_rng(3).normal(size=(embedding.shape[-1], CLASSES)).astype(embedding.dtype)
    return {"embedding": embedding, "logits": embedding @ head}


def _cafa(valid, embedding, logits):
    dtype = np.promote_types(np.float32, embedding.dtype) if embedding.dtype != jnp.bfloat16 else np.float32
    random, width = np.random.default_rng(7), embedding.shape[-1]
    mean = random.normal(size=(CLASSES, width)).astype(dtype)
    whitening = 0.3 * np.tril(random.normal(size=(CLASSES, width, width)), -1) + np.eye(width)
    gaussians = class_alignment.ClassGaussians(mean, whitening.astype(dtype))
    return class_alignment.cafa_loss(embedding, logits, gaussians, valid, **METHODS["cafa"].loss)


def _pair(params, batch):
    """Embeddings of two towers of the same things."""
    first = jnp.tanh(batch["features"] @ params["mix"])
    return {"first": first @ params["mix"], "second": batch["features"] @ params["head"][: first.shape[-1]]}


def _proclip(valid, first, second):
    average = jnp.roll(first, 1, -1)
    return proclip.proclip_loss(first, second, average, 1.0, valid=valid, **METHODS["proclip"].loss)


def _pair_and_logits(params, batch):
    return _pair(params, batch) | {"logits": batch["features"] @ params["head"].T}


def _graph_text(valid, first, second, logits):
    labels, labelled = jnp.argmax(second, -1), first[:, 0] > 0
    options = {"alignment_weight": 0.7, "low": 0.5, "high": 0.6} | METHODS["llm4gta"].loss
    return graph_text.graph_text_loss(first, second, logits, labels, labelled, valid=valid, **options)
