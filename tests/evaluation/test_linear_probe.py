"""The probe against gradient descent written out, and the choice of its labels."""

import numpy as np

from jaxalign.evaluation.linear_probe import few_of_each, probe_hits


def test_against_plain_gradient_descent():
    random = np.random.default_rng(0)
    labels = np.array([0, 1, 2] * 4 + [-1])
    features = random.normal(size=(13, 2)) + 1.5 * np.array([[0, 1], [1, 0], [-1, -1], [0, 0]])[labels]
    chosen = np.array([0, 1, 2, 3, 5])
    x = (features - features.mean(0)) / (features.std(0) + 1e-6)
    x = np.concatenate([x, np.ones((13, 1))], 1)
    weights, wanted = np.zeros((3, 3)), np.eye(3)[labels[chosen]]
    for _ in range(300):
        odds = np.exp(x[chosen] @ weights)
        gradient = x[chosen].T @ (odds / odds.sum(-1, keepdims=True) - wanted) / len(chosen)
        gradient[:2] += 2 * 0.01 * weights[:2]
        weights -= 0.5 * gradient
    hits = np.asarray(probe_hits(features, labels, chosen, classes=3))
    np.testing.assert_array_equal(hits, (x @ weights).argmax(-1) == labels)
    assert hits[:-1].sum() not in (0, 12) and not hits[-1]  # some are right; what has no label never is


def test_a_few_labels_of_each():
    labels = np.array([2, 0, 0, 0, -1, 2, 0, 5])
    chosen = few_of_each(np.random.default_rng(0), labels, 2)
    assert len(set(chosen)) == len(chosen)
    np.testing.assert_array_equal(labels[chosen], [0, 0, 2, 2, 5])
