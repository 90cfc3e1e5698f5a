"""Pairs of two views of one thing, and two small towers that are to find partners among unseen pairs.

A pair shares 24 numbers; each side has 24 of its own, and shows all 48 through a random matrix and a tanh as 64. 5,000
pairs to learn from, 1,000 to be tested. Two networks 64-128-32, Adam 1e-3, 400 steps. What differs is the loss (CLIP or
SigLIP), the batch, and which rows of it meet: pools of consecutive rows, as groups of devices make them, or the rows of
several micro-batches in two passes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign import objective
from jaxalign.data.view_pairs import SEEN, two_views
from jaxalign.losses.contrastive import clip_loss, siglip_loss
from jaxalign.objective import Objective
from jaxalign.training.accumulation import sums
from jaxalign.training.coupled import coupled_over_mesh

TRAINED, TESTED = 5000, 1000
HIDDEN, WIDTH, RATE = 128, 32, 1e-3


class Setting(NamedTuple):
    loss: str = "clip"
    batch: int = 256
    pool: int | None = None  # rows that meet; None: the whole batch
    micro_batches: int = 1
    bias: float = -10.0  # of SigLIP, at the start


NAMED = {
    "clip, 32 rows": Setting(batch=32),
    "clip, 256 rows": Setting(),
    "siglip, 32 rows": Setting("siglip", batch=32),
    "siglip, 256 rows": Setting("siglip"),
    "siglip, 256 rows, bias 0": Setting("siglip", bias=0.0),
    **{f"pools of {pool}": Setting(pool=pool) for pool in (4, 8, 32, 64)},
    "pooled micro-batches": Setting(micro_batches=4),
}
SETTINGS = tuple(NAMED)


def start(key: jax.Array, setting: Setting) -> dict:
    def tower(key):
        keys = jax.random.split(key)
        return {
            "hidden": jax.random.normal(keys[0], (SEEN, HIDDEN)) * (2 / SEEN) ** 0.5,
            "hidden_bias": jnp.zeros(HIDDEN),
            "out": jax.random.normal(keys[1], (HIDDEN, WIDTH)) / HIDDEN**0.5,
        }

    towers = dict(zip("ab", map(tower, jax.random.split(key)), strict=True))
    if setting.loss == "clip":
        return towers | {"scalars": {"log_scale": jnp.log(1 / 0.07)}}
    return towers | {"scalars": {"log_scale": jnp.log(10.0), "bias": jnp.float32(setting.bias)}}


def embed(tower: dict, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ tower["hidden"] + tower["hidden_bias"]) @ tower["out"]


def pooled_loss(rows: dict, scalars: dict, axis_name, *, setting: Setting) -> Objective:
    """The loss of each pool of consecutive rows, added."""
    function = {"clip": clip_loss, "siglip": siglip_loss}[setting.loss]
    a, b = (rows[side].reshape(-1, setting.pool or len(rows[side]), WIDTH) for side in "ab")
    each = jax.vmap(lambda a, b: function(a, b, **scalars, axis_name=axis_name))(a, b)
    return jax.tree.map(lambda x: x.sum(0), each)


def run(setting: str, seed: int, steps: int = 400) -> dict[str, float]:
    """`recall`: the share of unseen `a` whose nearest `b` of 1,000 is their partner; `loss` of the last step."""
    chosen, data = NAMED[setting], two_views(seed, TRAINED + TESTED)
    trained, tested = jnp.asarray(data[:, :TRAINED]), data[:, TRAINED:]
    key, order = jax.random.split(jax.random.key(seed))
    params = start(key, chosen)
    optimizer = optax.adam(RATE)

    def outputs(params, batch, key, extra):
        del key, extra
        return {side: embed(params[side], batch[side]) for side in "ab"}

    function = functools.partial(pooled_loss, setting=chosen)
    loss_fn = coupled_over_mesh(outputs, function, None, shared=lambda params: params["scalars"])

    def step(carry, key):
        params, state = carry
        rows = jax.random.choice(key, TRAINED, (chosen.batch,), replace=False)
        batch = {"a": trained[0, rows], "b": trained[1, rows]}
        result, gradient = sums(loss_fn, params, batch, key, {}, chosen.micro_batches)
        gradient = jax.tree.map(lambda g: g / result.weight, gradient)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), objective.loss(result)

    @jax.jit
    def train(params):
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(order, steps))
        return params, losses[-1]

    params, last = train(params)
    a, b = (np.asarray(embed(params[side], x)) for side, x in zip("ab", tested, strict=True))
    similarities = a @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    return {"recall": float(np.mean(similarities.argmax(1) == np.arange(TESTED))), "loss": float(last)}
