"""A world in which order matters little: pairs of objects that are seen and described, mostly as a bag of two.

Groups of the two orders of the same objects are what compositional image-text benchmarks consist of, in miniature.
"""

from typing import NamedTuple

import numpy as np

OBJECTS, LATENT, WIDTH = 20, 24, 96


class Pairs(NamedTuple):
    images: np.ndarray  # [N, D] float32; row i belongs to row i of the captions
    captions: np.ndarray  # [N, D']


class Groups(NamedTuple):
    images: np.ndarray  # [G, m, D]; image i of a group belongs to its caption i
    captions: np.ndarray  # [G, k, D']


class OrderPairs:
    """Both modalities of items (a, b), a != b: tanh(W (e_a + e_b + order (M1 e_a + M2 e_b) + noise)).

    Object vectors e and maps are other ones in each modality and follow from the seed, [24] and [24, 96].

    Args:
      seed: of the world.
      order: how much the order of the objects shows.
      noise: standard deviation, new at every call.
    """

    def __init__(self, seed: int = 0, order: float = 0.5, noise: float = 0.6):
        random = np.random.default_rng((seed, 0))
        self._seed, self._order, self._noise = seed, order, noise
        self._modalities = [
            {
                "objects": random.normal(size=(OBJECTS, LATENT)),
                "first": random.normal(size=(LATENT, LATENT)) / LATENT**0.5,
                "second": random.normal(size=(LATENT, LATENT)) / LATENT**0.5,
                "view": random.normal(size=(LATENT, WIDTH)) / LATENT**0.5,
            }
            for _ in range(2)
        ]

    def _seen(self, modality: int, items: np.ndarray, random: np.random.Generator) -> np.ndarray:
        world = self._modalities[modality]
        a, b = world["objects"][items[..., 0]], world["objects"][items[..., 1]]
        x = a + b + self._order * (a @ world["first"] + b @ world["second"])
        x = x + self._noise * random.normal(size=x.shape)
        return np.tanh(x @ world["view"]).astype(np.float32)

    def _items(self, number: int, random: np.random.Generator) -> np.ndarray:
        first = random.integers(OBJECTS, size=number)
        other = (first + random.integers(1, OBJECTS, size=number)) % OBJECTS
        return np.stack([first, other], -1)

    def pairs(self, number: int, step: int) -> Pairs:
        """Pairs to train on; another step, other pairs."""
        random = np.random.default_rng((self._seed, 1, step))
        items = self._items(number, random)
        return Pairs(*(self._seen(modality, items, random) for modality in range(2)))

    def groups(self, number: int) -> Groups:
        """Groups of (a, b) and (b, a) in both modalities."""
        random = np.random.default_rng((self._seed, 2))
        items = self._items(number, random)
        both = np.stack([items, items[:, ::-1]], 1)
        return Groups(*(self._seen(modality, both, random) for modality in range(2)))
