import jax
import numpy as np

from jaxalign.diagnostics.assessment import assessment_accuracy, compared


def test_pairs_and_accuracy_equal_a_loop():
    random = np.random.default_rng(0)
    scores = random.integers(-3, 0, (4, 5)).astype(np.float32)  # with equal ones
    feedback, valid = random.integers(0, 3, (4, 5)), random.uniform(size=(4, 5)) < 0.8
    pairs, right = np.zeros((4, 5, 5), bool), 0.0
    for b, i, j in np.ndindex(4, 5, 5):
        if valid[b, i] and valid[b, j] and feedback[b, i] > feedback[b, j]:
            pairs[b, i, j] = True
            right += {1: 1.0, 0: 0.5, -1: 0.0}[int(np.sign(scores[b, i] - scores[b, j]))]
    np.testing.assert_array_equal(compared(feedback, valid), pairs)
    scores[~valid] = np.nan
    total, weight = jax.jit(assessment_accuracy)(scores, feedback, valid)
    assert (total, weight) == (right, pairs.sum())
    assert total % 1 == 0.5 or 0 < total < weight


def test_right_and_wrong_answers_may_be_booleans():
    scores = np.array([[-1.0, -2.0, -3.0]])
    total, weight = assessment_accuracy(scores, np.array([[True, False, True]]), np.ones((1, 3)))
    assert (total, weight) == (1, 2)
