"""The studies of BCO and LCPO run; what they found is in docs/claims."""

import numpy as np
import pytest

from experiments.studies import bco, lcpo


@pytest.mark.parametrize(("study", "setting"), [(bco, "bco_udm, mismatch"), (lcpo, "dpo lcpo, three")])
def test_a_few_steps(study, setting):
    assert setting in study.SETTINGS
    found = study.run(setting, seed=0, steps=3)
    assert all(np.isfinite(value) for value in found.values())
    if study is lcpo:  # three steps of rate 0.1 from 0.9, towards confidences near 0.9
        assert 0.8 < found["reliability_0"] < 0.95


def test_prompts_of_the_liked_group_weigh_more():
    problem = bco.make_problem(0, shift=0.0, mismatch=2.0)
    weights, bad = np.asarray(bco.prompt_weights(problem)), np.asarray(problem.label) == 0
    liked = np.asarray(problem.group)[np.asarray(problem.prompt)] == 1
    np.testing.assert_array_equal(weights[~bad], 1)
    exact = [(~bad & liked).sum() / (~bad).sum() / ((bad & liked).sum() / bad.sum())]
    np.testing.assert_allclose(weights[bad & liked], min(exact[0], 10), rtol=0.02)
