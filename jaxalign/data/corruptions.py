"""What a camera does to pictures after deployment: named corruptions, drawn anew at every call."""

from collections.abc import Callable

import numpy as np

from jaxalign.errors import UserError


def _noisy(images, random, deviation):
    return images + random.normal(0, deviation, images.shape)


def noise(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Gaussian noise of standard deviation 0.45."""
    return _noisy(images, random, 0.45)


def contrast(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """0.35 x + 0.6 and noise of 0.12: washed out and bright."""
    return _noisy(0.35 * images + 0.6, random, 0.12)


def blur(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The mean over 3 x 3 pixels, with 0 around the picture, and noise of 0.12."""
    height, width = images.shape[1:3]
    around = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [around[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return _noisy(sum(shifts) / 9, random, 0.12)


def none(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    del random
    return images


CORRUPTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "none": none,
    "noise": noise,
    "contrast": contrast,
    "blur": blur,
}


def corrupted(images: np.ndarray, name: str, random: np.random.Generator) -> np.ndarray:
    """`images` [B, H, W, C] in 0 .. 1 after the corruption of that name, float32; not clipped.

    Raises UserError: no corruption of that name.
    """
    if name not in CORRUPTIONS:
        raise UserError(f"corruption {name!r} is not known; use one or more of {', '.join(CORRUPTIONS)}")
    return CORRUPTIONS[name](np.asarray(images), random).astype(np.float32)
