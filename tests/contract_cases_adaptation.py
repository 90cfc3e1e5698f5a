"""Cases of losses of a batch of features: the positions of all rows are its examples, flattened."""

import jax.numpy as jnp
import numpy as np

from jaxalign.losses import class_alignment
from jaxalign.methods import METHODS

CLASSES = 5


def cases(make_case, token_policy):
    """Builders by name; `make_case` and `token_policy` are of `tests.contract_cases`, which imports this module."""

    def builder(loss):
        def build(seed, rows, dtype, scorer):
            del scorer
            params, batch = token_policy(seed, rows, dtype)
            del batch["ids"]
            random = np.random.default_rng(seed + 1)
            width = params["mix"].shape[0]
            head = random.normal(size=(width, CLASSES)).astype(dtype)

            def outputs(params, batch):
                embedding = jnp.tanh(batch["features"] @ params["mix"])
                return {"embedding": embedding, "logits": embedding @ head}

            def flat_loss(outputs, batch):
                embedding, logits = (outputs[name].reshape(-1, outputs[name].shape[-1]) for name in outputs)
                return loss(embedding, logits, _source(width, embedding.dtype), batch["mask"].reshape(-1))

            masked = dict.fromkeys(("features", "embedding", "logits"), "mask")
            params = {"mix": params["mix"]}
            return make_case(params, batch, outputs, flat_loss, masked, inputs=("features",))

        return build

    return {
        "cafa": builder(_cafa),
    }


def _source(width, dtype):
    dtype = np.float64 if dtype == np.float64 else np.float32
    random = np.random.default_rng(7)
    factor = 0.3 * np.tril(random.normal(size=(CLASSES, width, width)), -1) + np.eye(width)
    return random.normal(size=(CLASSES, width)).astype(dtype), factor.astype(dtype)


def _cafa(embedding, logits, source, valid):
    gaussians = class_alignment.ClassGaussians(*source)
    return class_alignment.cafa_loss(embedding, logits, gaussians, valid, **METHODS["cafa"].loss)
