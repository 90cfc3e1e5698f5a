"""Pictures of digits, 8 x 8: drawn here by a pen that is never quite steady, or the scanned ones of scikit-learn."""

import csv
import gzip
import pathlib

import numpy as np

from jaxalign.data.installed import installed_path
from jaxalign.data.rows import Rows
from jaxalign.errors import UserError

SIDE = 8
_FINE = 4  # a pixel is the share of ink in 4 x 4 finer ones
_SPLITS = {"train": 0, "held_out": 1}


def _arc(centre, radii, start, stop, points=10):
    """Points on an ellipse from angle `start` to `stop` (turns; 0 is to the right, 0.25 is down)."""
    turns = 2 * np.pi * np.linspace(start, stop, points)
    return [(centre[0] + radii[0] * np.cos(t), centre[1] + radii[1] * np.sin(t)) for t in turns]


# Strokes as points (x to the right, y down) in a box of one unit; most digits are written in two ways.
_LOOP = _arc((0.5, 0.5), (0.26, 0.4), 0, 1, 18)
GLYPHS: tuple[tuple[tuple[list, ...], ...], ...] = (
    ((_LOOP,), (_arc((0.5, 0.5), (0.34, 0.38), 0, 1, 18),)),
    (([(0.5, 0.1), (0.5, 0.9)],), ([(0.32, 0.28), (0.54, 0.1), (0.54, 0.9)], [(0.34, 0.9), (0.74, 0.9)])),
    (
        ([*_arc((0.5, 0.32), (0.26, 0.22), 0.5, 1.1), (0.25, 0.9), (0.78, 0.9)],),
        ([*_arc((0.48, 0.3), (0.26, 0.2), 0.6, 1.2), *_arc((0.34, 0.78), (0.12, 0.12), 0.9, 0.1, 6), (0.8, 0.88)],),
    ),
    (
        ([*_arc((0.46, 0.3), (0.25, 0.2), 0.55, 1.25), *_arc((0.46, 0.7), (0.28, 0.2), 0.75, 1.45)],),
        ([(0.25, 0.1), (0.72, 0.1), (0.46, 0.42), *_arc((0.46, 0.66), (0.27, 0.24), 0.75, 1.45)],),
    ),
    (
        ([(0.6, 0.9), (0.6, 0.1), (0.2, 0.64), (0.82, 0.64)],),
        ([(0.28, 0.1), (0.26, 0.52), (0.76, 0.52)], [(0.7, 0.14), (0.66, 0.9)]),
    ),
    (
        ([(0.74, 0.1), (0.32, 0.1), (0.3, 0.46), *_arc((0.47, 0.66), (0.27, 0.24), 0.7, 1.4)],),
        ([(0.34, 0.12), (0.3, 0.48), *_arc((0.48, 0.67), (0.25, 0.22), 0.68, 1.42)], [(0.34, 0.12), (0.78, 0.1)]),
    ),
    (
        ([*_arc((0.62, 0.5), (0.34, 0.42), 0.78, 0.5, 8), *_arc((0.5, 0.68), (0.24, 0.22), 0.5, 1.5, 14)],),
        ([(0.6, 0.08), (0.34, 0.46), *_arc((0.5, 0.68), (0.22, 0.22), 0.5, 1.5, 14)],),
    ),
    (
        ([(0.22, 0.12), (0.78, 0.12), (0.42, 0.9)],),
        ([(0.22, 0.12), (0.78, 0.12), (0.44, 0.9)], [(0.34, 0.5), (0.74, 0.5)]),
    ),
    (
        (_arc((0.5, 0.3), (0.2, 0.2), 0, 1, 14), _arc((0.5, 0.7), (0.26, 0.21), 0, 1, 14)),
        (
            [
                *_arc((0.5, 0.3), (0.22, 0.2), 0.1, 0.75),
                (0.3, 0.7),
                *_arc((0.5, 0.72), (0.24, 0.18), 0.4, -0.2),
                (0.66, 0.36),
            ],
        ),
    ),
    (
        (_arc((0.48, 0.32), (0.24, 0.22), 0, 1, 14), [(0.72, 0.32), (0.66, 0.9)]),
        (_arc((0.48, 0.32), (0.22, 0.22), 0, 1, 14), [(0.7, 0.3), *_arc((0.46, 0.64), (0.24, 0.26), 0.05, 0.4, 6)]),
    ),
)


def draw(digit: int, random: np.random.Generator) -> np.ndarray:
    """A picture [8, 8, 1] of ink in 0 .. 1: another hand, slant, size, place and pen at every call."""
    styles = GLYPHS[digit]
    strokes = styles[random.integers(len(styles))]
    angle, shear = random.normal(0, 0.12), random.normal(0, 0.15)
    width, height = random.uniform(0.7, 1.05), random.uniform(0.8, 1.05)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    change = turn @ np.array([[width, shear], [0, height]])
    place, pen = random.normal(0, 0.035, 2), random.uniform(0.05, 0.1)
    grid = (np.arange(SIDE * _FINE) + 0.5) / (SIDE * _FINE)
    pixels = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 1, 2)
    distance = np.full(len(pixels), np.inf)
    for stroke in strokes:
        points = np.array(stroke) + random.normal(0, 0.025, (len(stroke), 2))
        points = (points - 0.5) @ change.T + 0.5 + place
        start, along = points[:-1], np.diff(points, axis=0)
        length = np.maximum((along**2).sum(-1), 1e-12)
        share = np.clip(((pixels - start) * along).sum(-1) / length, 0, 1)
        nearest = start + share[..., None] * along
        distance = np.minimum(distance, np.sqrt(((pixels - nearest) ** 2).sum(-1)).min(-1))
    ink = (distance < pen).reshape(SIDE, _FINE, SIDE, _FINE).mean((1, 3))
    return ink[..., None].astype(np.float32)


class DrawnDigits:
    """A source of {'image': [8, 8, 1] in 0 .. 1, 'label': 0 .. 9, 'id'}; digits come by turns.

    Picture number i follows from (seed, split, i) alone, so that a longer source begins like a shorter one.

    Args:
      split: "train" or "held_out"; they share no picture.
      size: how many.
      seed: of all pictures.

    Raises UserError: no such split, a size below 1.
    """

    def __init__(self, split: str = "train", size: int = 900, seed: int = 0):
        if split not in _SPLITS:
            raise UserError(f"drawn_digits split {split!r} is not known; choose train or held_out")
        if size < 1:
            raise UserError(f"drawn_digits size={size} must be at least 1")
        self.split, self._size, self._seed = split, size, seed

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict:
        index = range(self._size)[index]
        random = np.random.default_rng((self._seed, _SPLITS[self.split], index))
        return {"image": draw(index % 10, random), "label": index % 10, "id": index}

    def where(self, index: int) -> str:
        return f"drawn_digits ({self.split}) picture {index}"


class ScannedDigits(Rows):
    """The 1,797 scanned digits that scikit-learn ships, as {'image': [8, 8, 1] in 0 .. 1, 'label', 'id'}.

    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), CC BY 4.0. The file is read where
    the installed package keeps it; the package is never imported, so that `pip install --no-deps scikit-learn==1.9.1`
    serves, unless transformers is there as well: that imports it, and wants it with its dependencies.

    Args:
      split: "train" (the first `train_size` in an order that follows from the seed), "held_out" (the rest) or "all".
      train_size: pictures for training.
      seed: of the order.
      path: of digits.csv.gz; by default that of the installed package.

    Raises UserError: no such package, file or split.
    """

    def __init__(self, split: str = "train", train_size: int = 900, seed: int = 0, path: str | None = None):
        if split not in (*_SPLITS, "all"):
            raise UserError(f"digits split {split!r} is not known; choose train, held_out or all")
        if path is None:
            place = ("datasets", "data", "digits.csv.gz")
            found = installed_path("digits", "scikit-learn==1.9.1", *place, size="10 MB", package="sklearn")
        else:
            found = pathlib.Path(path)
        with gzip.open(found, "rt", newline="") as file:
            table = np.array([[float(cell) for cell in row] for row in csv.reader(file)])
        if table.ndim != 2 or table.shape[1] != SIDE * SIDE + 1:
            raise UserError(f"digits: the file has rows of {table.shape[-1]} numbers, not 64 pixels and a label")
        order = np.random.default_rng(seed).permutation(len(table))
        chosen = {"train": order[:train_size], "held_out": order[train_size:], "all": order}[split]
        images = (table[chosen, :-1] / 16).astype(np.float32).reshape(-1, SIDE, SIDE, 1)
        labels = table[chosen, -1].astype(int).tolist()
        rows = zip(images, labels, range(len(chosen)), strict=True)
        named = ({"image": image, "label": label, "id": number} for image, label, number in rows)
        super().__init__(named, f"digits ({split})", "picture")
