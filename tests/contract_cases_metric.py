"""Cases of losses of labelled or grouped embeddings: the tokens of a row are samples, each embedded on its own."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.losses.group_infonce import group_infonce_loss
from jaxalign.losses.multi_similarity import multi_similarity_loss
from jaxalign.losses.unpg import unpg_loss
from jaxalign.losses.whitening import whitened_cse_loss
from jaxalign.methods import METHODS

CLASSES, CHUNK = 4, 5


@jax.jit
def _embed(params, features):
    return jnp.tanh(features @ params["mix"])


def _flat(x):
    return x.reshape(-1, *x.shape[2:])


def cases(Case, token_policy, chunked):
    """Builders by name, with the pieces of `tests.contract_cases`, which imports this module."""

    def builder(loss, views=1, head=True):
        # Compiled as one, because these losses are many small operations that no other case has.
        loss = jax.jit(loss, static_argnums=2)

        def build(seed, rows, dtype, scorer):
            params, batch = token_policy(seed, rows, dtype)
            random = np.random.default_rng(seed + 1)
            inputs = ("features", *(f"view{number}" for number in range(1, views)))
            for name in inputs[1:]:
                batch[name] = batch["features"] + 0.3 * random.normal(size=batch["features"].shape).astype(dtype)
            batch["labels"] = random.integers(0, CLASSES, batch["ids"].shape).astype(np.int32)
            del batch["ids"]
            params["head"] = params["head"][:CLASSES]
            if not head:
                del params["head"]
            chunk = CHUNK if scorer is chunked else None

            def outputs(params, batch):
                found = {f"embedded_{name}": _embed(params, batch[name]) for name in inputs}
                return found | {"head": params["head"]} if head else found

            masked = [*inputs, "labels", *(f"embedded_{name}" for name in inputs)]
            return Case(
                params,
                batch,
                outputs,
                lambda outputs, batch: loss(outputs, batch, chunk),
                masked=dict.fromkeys(masked, "mask"),
                inputs=inputs,
                additive=False,
            )

        return build

    return {
        "multi_similarity": builder(_multi_similarity, head=False),
        "unpg": builder(_unpg),
        "group_infonce": builder(_group_infonce, head=False),
        "whitened_cse": builder(_whitened_cse, views=3),
    }


def _labelled(outputs, batch):
    return _flat(outputs["embedded_features"]), _flat(batch["labels"]), _flat(batch["mask"])


def _multi_similarity(outputs, batch, chunk):
    x, labels, valid = _labelled(outputs, batch)
    return multi_similarity_loss(x, labels, valid=valid, chunk=chunk, **METHODS["multi_similarity"].loss)


def _unpg(outputs, batch, chunk):
    del chunk
    x, labels, valid = _labelled(outputs, batch)
    options = METHODS["unpg"].loss | {"scale": 8.0}  # at 64 the losses of most rows are 0
    return unpg_loss(x, outputs["head"], labels, valid=valid, **options)


def _group_infonce(outputs, batch, chunk):
    """The first sample of a row is the query, the others are its documents."""
    x, options = outputs["embedded_features"], METHODS["group_infonce"].loss
    return group_infonce_loss(x[:, 0], x[:, 1:], batch["mask"][:, 1:], chunk=chunk, **options)


def _whitened_cse(outputs, batch, chunk):
    names = ("embedded_features", "embedded_view1", "embedded_view2")
    views = jnp.stack([_flat(outputs[name]) for name in names])
    options = METHODS["whitened_cse"].loss | {"groups": 2, "epsilon": 0.1}
    permutations = np.array([[0, 1, 2, 3], [2, 0, 3, 1], [0, 2, 1, 3]])

    def head(y):
        return jnp.tanh(y @ outputs["head"].T)

    return whitened_cse_loss(views, permutations, head=head, valid=_flat(batch["mask"]), chunk=chunk, **options)
