"""Another text encoder for a trained pair of towers (ProCLIP, arXiv 2510.18795), in a world of 200 concepts.

An image shows a concept, a detail and something irrelevant. The old text encoder reads captions without the detail; the
new one is an adapter on frozen embeddings that know it. Fine-tuning pairs come from 40 concepts; the other 160 are only
ever seen in pre-training, and by the old text encoder.

Settings: original (old towers), direct (a fresh adapter, contrastive), stage1 (the adapter distilled, the image tower
as it was), stages (stage 1, then contrastive), full (with the regularisation 4e-4 of the paper), strong (4e-3),
direct_strong (4e-3 without stage 1).
"""

import functools

import jax
import jax.numpy as jnp
import optax

from jaxalign import objective
from jaxalign.data.concept_world import CONCEPTS, TUNED, Shown, show, world
from jaxalign.losses.contrastive import clip_loss
from jaxalign.losses.proclip import distillation_loss, proclip_loss
from jaxalign.losses.similarity import unit
from jaxalign.models.mlp_encoder import MlpEncoder
from jaxalign.training import ema

SETTINGS = ("original", "direct", "stage1", "stages", "full", "strong", "direct_strong")
REGULARISATION = {"full": 4e-4, "strong": 4e-3, "direct_strong": 4e-3}
LOG_SCALE = 2.9957  # log 20
IMAGE = MlpEncoder(64, (128,), 32)
TEXT = MlpEncoder(48, (128,), 32)
ADAPTER = MlpEncoder(256, (128,), 32)


def embed(encoder: MlpEncoder, params, x: jax.Array) -> jax.Array:
    return encoder.embed(params, {"features": x})


@functools.partial(jax.jit, static_argnames=("loss", "steps", "rate"))
def fit(loss, params, data, key, *, steps: int, rate: float, decay: float = 0.999):
    """`steps` updates by Adam of `loss(params, average, data, key)`, with a moving average of the parameters."""
    optimizer = optax.adam(rate)

    def step(carry, key):
        params, average, state = carry
        gradients = jax.grad(lambda p: objective.loss(loss(p, average, data, key)))(params)
        updates, state = optimizer.update(gradients, state)
        params = optax.apply_updates(params, updates)
        return (params, ema.update(average, params, decay), state), None

    return jax.lax.scan(step, (params, params, optimizer.init(params)), jax.random.split(key, steps))[0][0]


def _pretraining(params, average, world, key):
    concepts = jax.random.randint(key, (256,), 0, CONCEPTS)
    shown = show(world, jax.random.fold_in(key, 1), concepts)
    return clip_loss(embed(IMAGE, params["image"], shown.image), embed(TEXT, params["text"], shown.caption), LOG_SCALE)


def _stage1(adapter, average, data, key):
    texts, teacher = data
    rows = jax.random.randint(key, (128,), 0, len(teacher))
    return distillation_loss(embed(ADAPTER, adapter, texts[rows]), teacher[rows])


def _stage2(params, average, data, key, *, regularisation):
    rows = jax.random.randint(key, (128,), 0, len(data.image))
    images, texts = data.image[rows], data.embedding[rows]
    teacher = embed(IMAGE, average["image"], images) if regularisation else None
    pair = embed(IMAGE, params["image"], images), embed(ADAPTER, params["adapter"], texts)
    return proclip_loss(*pair, teacher, LOG_SCALE, regularisation=regularisation)


STAGE2 = {value: functools.partial(_stage2, regularisation=value) for value in (0.0, *REGULARISATION.values())}


@functools.lru_cache(maxsize=1)
def _start(seed: int, shorter: int):
    """(world, old towers, distilled adapter) before any fine-tuning."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(17), seed), 6)
    made = world(keys[0])
    towers = {"image": IMAGE.init(keys[1]), "text": TEXT.init(keys[2])}
    towers = fit(_pretraining, towers, made, keys[3], steps=800 // shorter, rate=1e-3)
    shown = show(made, keys[4], jnp.arange(4000) % CONCEPTS)
    data = (shown.embedding, embed(TEXT, towers["text"], shown.caption))
    adapter = fit(_stage1, ADAPTER.init(keys[5]), data, keys[5], steps=600 // shorter, rate=1e-3)
    return made, towers, adapter


def run(setting: str, seed: int, *, shorter: int = 1) -> dict[str, float]:
    """zero_shot: accuracy on the 160 concepts absent from fine-tuning; retrieval: recall at 1 of 500 pairs of the 40.

    shorter: every training takes so many times fewer steps.
    """
    made, towers, distilled = _start(seed, shorter)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(23), seed), 6)
    direct = setting.startswith("direct")
    params = {"image": towers["image"], "adapter": ADAPTER.init(keys[0]) if direct else distilled}
    if setting not in ("original", "stage1"):
        pairs = show(made, keys[1], jnp.arange(400) % TUNED)
        loss = STAGE2[REGULARISATION.get(setting, 0.0)]
        params = fit(loss, params, pairs, keys[2], steps=400 // shorter, rate=5e-4)

    def texts(shown: Shown) -> jax.Array:
        if setting == "original":
            return unit(embed(TEXT, towers["text"], shown.caption))
        return unit(embed(ADAPTER, params["adapter"], shown.embedding))

    absent = jnp.arange(TUNED, CONCEPTS)
    names = texts(show(made, keys[3], absent, spread=0.0))
    labels = jnp.tile(jnp.arange(len(absent)), 20)
    seen = unit(embed(IMAGE, params["image"], show(made, keys[4], absent[labels]).image))
    found = show(made, keys[5], jnp.arange(500) % TUNED)
    similar = unit(embed(IMAGE, params["image"], found.image)) @ texts(found).T
    return {
        "zero_shot": float((jnp.argmax(seen @ names.T, -1) == labels).mean()),
        "retrieval": float((jnp.argmax(similar, -1) == jnp.arange(500)).mean()),
    }
