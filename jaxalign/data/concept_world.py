"""A made world of concepts that images, captions of an old text encoder, and embeddings of a new one all show."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.rows import Rows
from jaxalign.errors import UserError

CONCEPTS, TUNED = 200, 40
_SPLITS = ("pretraining", "texts", "train", "held_out", "absent", "classes")


class Shown(NamedTuple):
    image: jax.Array  # [N, 64]
    caption: jax.Array  # [N, 48] what the old text encoder reads
    embedding: jax.Array  # [N, 256] what the adapter reads


@jax.jit
def world(key: jax.Array) -> dict[str, jax.Array]:
    """200 concepts [200, 16], and the matrices through which they are shown."""
    keys = jax.random.split(key, 4)
    sizes = {"image": (16 + 8 + 16, 64), "caption": (16 + 16, 48), "embedding": (16 + 8, 256)}
    maps = {
        name: jax.random.normal(k, size) / size[0] ** 0.5 for k, (name, size) in zip(keys, sizes.items(), strict=False)
    }
    return {"concepts": jax.random.normal(keys[3], (CONCEPTS, 16)), **maps}


@jax.jit
def show(world, key: jax.Array, concepts: jax.Array, spread: float = 1.0) -> Shown:
    """Images and texts of those concepts; spread 0 is the bare concept, without detail or anything irrelevant.

    All are tanh of a linear map: an image of concept, detail and something irrelevant, a caption of concept and
    something irrelevant, an embedding of concept and detail.
    """
    a, b, c, d = jax.random.split(key, 4)

    def around(key, size):
        return spread * jax.random.normal(key, (len(concepts), size))

    concept, detail = world["concepts"][concepts] + 0.35 * around(a, 16), around(b, 8)
    return Shown(
        jnp.tanh(jnp.concatenate([concept, detail, around(c, 16)], -1) @ world["image"]),
        jnp.tanh(jnp.concatenate([concept, around(d, 16)], -1) @ world["caption"]),
        jnp.tanh(jnp.concatenate([concept, detail], -1) @ world["embedding"]),
    )


class ConceptPairs(Rows):
    """A source of {'image': [64], 'caption': [48], 'embedding': [256], 'concept': int}.

    Args:
      split: "pretraining" (20,000 of all concepts), "texts" (4,000 of all, without images), "train" (400 of 40
        concepts), "held_out" (500 others of these), "absent" (20 of each of the other 160 concepts), "classes" (a bare
        text of each of those, without an image). Concepts of the last two are 0 .. 159.
      seed: of the world.

    Raises UserError: no such split.
    """

    def __init__(self, split: str = "train", seed: int = 0):
        if split not in _SPLITS:
            raise UserError(f"concept_pairs split {split!r} is not known; choose one of {', '.join(_SPLITS)}")
        keys = jax.random.split(jax.random.fold_in(jax.random.key(17), seed), 7)
        absent = np.arange(TUNED, CONCEPTS)
        concepts = {
            "pretraining": np.arange(20_000) % CONCEPTS,
            "texts": np.arange(4_000) % CONCEPTS,
            "train": np.arange(400) % TUNED,
            "held_out": np.arange(500) % TUNED,
            "absent": np.tile(absent, 20),
            "classes": absent,
        }[split]
        spread = 0.0 if split == "classes" else 1.0
        shown = show(world(keys[0]), keys[1 + _SPLITS.index(split)], jnp.asarray(concepts), spread)
        columns = {name: np.asarray(x) for name, x in shown._asdict().items()}
        if split in ("texts", "classes"):
            del columns["image"]
        columns["concept"] = (concepts - TUNED if split in ("absent", "classes") else concepts).tolist()
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        super().__init__(rows, f"concept_pairs ({split})", "example")
