"""Labelled vectors for studies of retrieval: classes within super-classes, most directions of no use."""

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    train_x: np.ndarray  # [N, 64]
    train_labels: np.ndarray  # [N], 0 .. classes - 1
    unseen_x: np.ndarray  # of classes that are not trained on
    unseen_labels: np.ndarray


def nested_classes(
    seed: int,
    *,
    super_classes: int,
    classes: int,
    samples: int,
    train_classes: int,
    super_std: float,
    class_std: float,
    within_std: float,
    signal: int,
    width: int = 64,
) -> Split:
    """`samples` of each of super_classes x classes classes, split by class.

    A class centre is that of its super-class (std `super_std`) plus an offset (std `class_std`) in `signal` dimensions;
    a sample adds `within_std` there and noise of std 1 in the others. The vector is rotated, goes through tanh(0.7 x)
    and a linear map, and is standardised over all samples.
    """
    random = np.random.default_rng(seed)
    centres = np.repeat(super_std * random.normal(size=(super_classes, signal)), classes, axis=0)
    centres += class_std * random.normal(size=centres.shape)
    labels = np.repeat(np.arange(len(centres)), samples)
    useful = centres[labels] + within_std * random.normal(size=(len(labels), signal))
    x = np.concatenate([useful, random.normal(size=(len(labels), width - signal))], axis=1)
    rotation, _ = np.linalg.qr(random.normal(size=(width, width)))
    x = np.tanh(0.7 * x @ rotation) @ random.normal(size=(width, width)) / width**0.5
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    order = random.permutation(len(centres))
    new = np.empty(len(centres), int)
    new[order] = np.arange(len(centres))
    labels = new[labels].astype(np.int32)
    seen = labels < train_classes
    return Split(x[seen], labels[seen], x[~seen], labels[~seen])


def balanced_batches(seed: int, labels: np.ndarray, steps: int, classes: int, samples: int) -> np.ndarray:
    """[steps, classes x samples] rows: in each step so many classes at random, and so many different rows of each."""
    random = np.random.default_rng(seed)
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    batches = []
    for _ in range(steps):
        chosen = random.choice(len(rows), classes, replace=False)
        batches.append(np.concatenate([random.choice(rows[i], samples, replace=False) for i in chosen]))
    return np.stack(batches)
