"""A small regression model in the shape of the real tree, and a run that a checkpoint can interrupt."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.objective import Objective
from jaxalign.training.optimizers import make_optimizer
from jaxalign.training.state import create_state
from jaxalign.training.step import make_train_step


def params(width=16, layers=2, vocabulary=32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "embed": {"embedding": jax.random.normal(keys[0], (vocabulary, width)) * 0.5},
        "layers": {
            "mlp": {"up": {"kernel": jax.random.normal(keys[1], (layers, width, width)) * 0.3}},
            "mlp_norm": {"scale": jnp.ones((layers, width))},
        },
        "final_norm": {"scale": jnp.ones((width,)) + 0.1 * jax.random.normal(keys[2], (width,))},
    }


def batch(rows=8, length=5, vocabulary=32, seed=0):
    """Rows with very different weights, one of them empty."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, length + 1, rows)
    lengths[rows // 2] = 0
    return {
        "tokens": random.integers(0, vocabulary, (rows, length)).astype(np.int32),
        "targets": random.normal(size=(rows, length)).astype(np.float32),
        "mask": (np.arange(length) < lengths[:, None]).astype(np.float32),
    }


def predictions(params, tokens):
    def layer(x, p):
        return x + jnp.tanh(x * p["mlp_norm"]["scale"] @ p["mlp"]["up"]["kernel"]), None

    x, _ = jax.lax.scan(layer, params["embed"]["embedding"][tokens], params["layers"])
    return jnp.sum(x * params["final_norm"]["scale"], axis=-1)


def loss_fn(params, batch, key, extra):
    del key, extra
    errors = jnp.where(batch["mask"] > 0, predictions(params, batch["tokens"]) - batch["targets"], 0)
    weight = batch["mask"].sum()
    return Objective(jnp.sum(errors**2), weight, {"absolute_error": (jnp.sum(jnp.abs(errors)), weight)})


def noisy_loss_fn(params, batch, key, extra):
    noise = 0.1 * jax.random.normal(key, batch["targets"].shape)
    return loss_fn(params, batch | {"targets": batch["targets"] + noise}, key, extra)


def optimizer(**changes):
    settings = {"learning_rate": 1e-2, "weight_decay": 0.1, "max_grad_norm": 1.0} | changes
    return make_optimizer("adamw", **settings)


class Run:
    """Data from a position, noise from the step's key, warm-up and cosine decay: all that a restart can get wrong."""

    def __init__(self, total=8):
        self.optimizer = optimizer(schedule="cosine", warmup_steps=2, total_steps=total)
        self.step = make_train_step(noisy_loss_fn, self.optimizer, micro_batches=2)

    def start(self):
        return create_state(params(), self.optimizer, jax.random.key(3), {"average": jnp.float32(0)})

    def advance(self, state, position, steps):
        """Returns the state and the next data position."""
        for seed in range(position, position + steps):
            state, _ = self.step(state, batch(seed=seed))
        return state, position + steps
