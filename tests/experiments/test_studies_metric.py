"""The studies of metric learning run, give finite numbers, and look at the data they say they look at."""

import jax
import numpy as np
import pytest

from experiments.studies import digit_embeddings, group_infonce, multi_similarity, unpg, whitened_cse
from experiments.studies.nested_classes import balanced_batches, nested_classes
from jaxalign.data.sources import load_source


@pytest.mark.parametrize(
    ("study", "setting"),
    [
        (multi_similarity, "multi-similarity"),
        (unpg, "whisker 1.0"),
        (group_infonce, "group"),
        (whitened_cse, "shuffled"),
    ],
)
def test_a_few_steps(study, setting):
    assert setting in study.SETTINGS
    found = study.run(setting, 0, steps=2)
    assert all(np.isfinite(value) for value in found.values())


@pytest.mark.parametrize("setting", ["softmax", "siglip", "pixels"])
def test_a_few_steps_on_digits(setting, monkeypatch):
    """On drawn digits: the scanned ones are not everywhere."""
    source = load_source("drawn_digits?size=120")
    images = np.stack([source[index]["image"][..., 0] for index in range(120)])
    parts = {"train": slice(0, 100), "held_out": slice(100, 120)}
    labels = np.arange(120) % 10
    monkeypatch.setattr(
        digit_embeddings,
        "pictures",
        lambda split: digit_embeddings.Pictures(images[parts[split]], labels[parts[split]]),
    )
    for name, smaller in {"PAIRS": 16, "LEARNT": 90, "SAMPLES": 4}.items():
        monkeypatch.setattr(digit_embeddings, name, smaller)
    found = digit_embeddings.run(setting, 0, steps=2)
    assert all(np.isfinite(value) for value in found.values()) and found["uniformity"] < 0


def test_views_of_a_digit_are_other_pictures_of_it():
    image = np.zeros((4, 8, 8), np.float32)
    image[:, 3:5, 3:5] = 1
    seen = np.asarray(digit_embeddings.view(image, jax.random.key(0)))
    assert seen.shape == image.shape and seen.min() >= 0 and seen.max() <= 1
    assert np.abs(seen[0] - seen[1]).max() > 0.05
    edge = np.concatenate([seen[:, 0], seen[:, -1], seen[..., 0], seen[..., -1]], 1)
    assert (edge.sum(-1) < 0.1 * seen.sum((1, 2))).all()  # the ink stays near the middle


def test_classes_are_split_and_nearest_to_their_own():
    options = dict(super_classes=3, classes=4, samples=10, train_classes=5, super_std=1.5, class_std=0.6, signal=12)
    data = nested_classes(0, within_std=0.3, **options)
    assert sorted(set(data.train_labels)) == list(range(5))
    assert sorted(set(data.unseen_labels)) == list(range(5, 12))
    assert data.train_x.shape == (50, 64) and data.unseen_x.shape == (70, 64)
    rows = balanced_batches(1, data.train_labels, steps=3, classes=4, samples=5)
    for row in rows:
        assert len(set(row)) == 20
        assert sorted(np.unique(data.train_labels[row], return_counts=True)[1]) == [5] * 4
