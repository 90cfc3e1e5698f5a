"""Pictures of digits and what corrupts them."""

import gzip
import importlib.util

import numpy as np
import pytest

from jaxalign.data.corruptions import corrupted
from jaxalign.data.digits import DrawnDigits, ScannedDigits
from jaxalign.data.sources import load_source
from jaxalign.errors import UserError


def pictures(source):
    examples = [source[index] for index in range(len(source))]
    return np.stack([e["image"] for e in examples]), np.array([e["label"] for e in examples])


def test_drawn_digits_follow_from_the_seed_and_can_be_told_apart():
    source = load_source("drawn_digits?split=train&size=200")
    images, labels = pictures(source)
    assert images.shape == (200, 8, 8, 1) and images.min() == 0 and images.max() == 1
    np.testing.assert_array_equal(pictures(DrawnDigits(size=40))[0], images[:40])
    held_out, wanted = pictures(DrawnDigits("held_out", size=100))
    other = pictures(DrawnDigits(seed=1, size=40))[0]
    assert min(np.abs(held_out[:40] - images[:40]).max(), np.abs(other - images[:40]).max()) > 0
    distances = ((held_out[:, None] - images[None]) ** 2).sum((2, 3, 4))
    right = labels[distances.argmin(1)] == wanted
    assert right.mean() > 0.8  # by the nearest picture; and no two are alike
    assert distances.min() > 0
    with pytest.raises(UserError, match="split 'test' is not known"):
        DrawnDigits("test")


def test_scanned_digits_are_read_as_scikit_learn_stores_them(tmp_path):
    random = np.random.default_rng(0)
    table = np.concatenate([random.integers(0, 17, (20, 64)), np.arange(20)[:, None] % 10], 1)
    path = tmp_path / "digits.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("\n".join(",".join(map(str, row)) for row in table) + "\n")
    parts = [pictures(ScannedDigits(split, train_size=15, path=str(path))) for split in ("train", "held_out")]
    assert [len(part[0]) for part in parts] == [15, 5]
    found = {(image.tobytes(), label) for images, labels in parts for image, label in zip(images, labels, strict=True)}
    want = {((row[:64].reshape(8, 8, 1) / 16).astype(np.float32).tobytes(), row[64]) for row in table}
    assert found == want


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="the scanned digits are not installed")
def test_the_scanned_digits_themselves():
    images, labels = pictures(load_source("digits?split=all"))
    assert images.shape == (1797, 8, 8, 1) and images.min() == 0 and images.max() == 1
    # How many of each digit the description of the data set tells.
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    parts = [pictures(load_source(f"digits?split={split}"))[1] for split in ("train", "held_out")]
    assert [len(part) for part in parts] == [900, 897]
    assert np.concatenate(parts).tolist() == labels.tolist()


def test_without_the_scanned_digits_it_is_said_where_they_are(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"scikit-learn, which is not installed: pip install --no-deps 'scikit-learn=="):
        ScannedDigits()


def test_corruptions():
    images = pictures(DrawnDigits(size=50))[0]

    def change(name, seed=0):
        return corrupted(images, name, np.random.default_rng(seed))

    np.testing.assert_array_equal(change("none"), images)
    assert (change("noise") - images).std() == pytest.approx(0.45, rel=0.05)
    assert (change("contrast") - 0.35 * images - 0.6).std() == pytest.approx(0.12, rel=0.05)
    mean = images[:, 2:5, 3:6].mean((1, 2))
    assert (change("blur")[:, 3, 4] - mean).std() == pytest.approx(0.12, rel=0.3)
    np.testing.assert_array_equal(change("noise"), change("noise"))
    assert (change("noise") != change("noise", 1)).any()
    with pytest.raises(UserError, match="corruption 'fog' is not known"):
        change("fog")
