"""The study of graph-text alignment runs."""

import numpy as np

from experiments.studies import llm4gta as study


def test_the_study_runs():
    found = study.run("full", 0, nodes=160, steps=3)
    assert all(np.isfinite(value) and -1 <= value <= 1 for value in found.values())
