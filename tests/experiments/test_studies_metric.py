"""The studies of metric learning run, give finite numbers, and look at the data they say they look at."""

import numpy as np
import pytest

from experiments.studies import group_infonce, multi_similarity, unpg, whitened_cse
from experiments.studies.nested_classes import balanced_batches, nested_classes


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
