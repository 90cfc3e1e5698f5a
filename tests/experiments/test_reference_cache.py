"""What is kept of the reference is found again for the same weights and rows, and for no others."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reference_cache import cache_key, reference_log_probs
from jaxalign.data.preferences import Preference

WEIGHTS = {"w": jnp.arange(6.0).reshape(2, 3)}
SCORING = {"share_prompt": True}


def rows(*completions):
    return [Preference([1, 2], ([3], list(ids))) for ids in completions]


class Score:
    """Numbers that follow from the rows; counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, some):
        self.calls += 1
        return np.array([[sum(ids) + 0.5 for ids in row.completion_ids] for row in some], np.float32)


def test_what_was_scored_is_found_again(tmp_path, capsys):
    score, some = Score(), rows([4, 5], [6])
    for _ in range(2):
        found = reference_log_probs(tmp_path / "kept", WEIGHTS, some, score, SCORING, print)
        np.testing.assert_array_equal(found, [[3.5, 9.5], [3.5, 6.5]])
    assert score.calls == 1
    assert "scoring 2 rows once" in capsys.readouterr().out
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".npz"]


@pytest.mark.parametrize(
    "other",
    [
        ({"w": WEIGHTS["w"].at[0, 0].set(1e-30)}, rows([4, 5], [6]), SCORING),
        (WEIGHTS, rows([4], [5, 6]), SCORING),
        (WEIGHTS, rows([6], [4, 5]), SCORING),
        (WEIGHTS, rows([4, 5], [6]), {"share_prompt": False}),
    ],
    ids=["weights", "tokens", "order", "scoring"],
)
def test_anything_else_has_another_name(other):
    assert cache_key(*other) != cache_key(WEIGHTS, rows([4, 5], [6]), SCORING)


@pytest.mark.parametrize("damage", [b"", b"PK not a zip file", None])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    score, some = Score(), rows([4, 5])
    expected = reference_log_probs(tmp_path, WEIGHTS, some, score, SCORING, print)
    (path,) = tmp_path.iterdir()
    if damage is None:
        np.savez(path, log_probs=np.zeros((7, 2)))  # of other rows
    else:
        path.write_bytes(damage)
    np.testing.assert_array_equal(reference_log_probs(tmp_path, WEIGHTS, some, score, SCORING, print), expected)
    assert score.calls == 2
    reference_log_probs(tmp_path, WEIGHTS, some, score, SCORING, print)
    assert score.calls == 2


def test_no_rows(tmp_path):
    assert reference_log_probs(tmp_path / "none", WEIGHTS, [], Score(), SCORING, print).shape == (0, 2)
    assert not (tmp_path / "none").exists()
