"""Matchings of small groups against enumeration by hand, assignment, and their chance levels."""

import itertools

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxalign.evaluation import group_matching as gm


def similarities(groups, images, captions, seed=0):
    return np.random.default_rng(seed).normal(size=(groups, images, captions)).astype(np.float32)


@pytest.mark.parametrize(("images", "captions"), [(1, 4), (2, 2), (2, 3), (4, 4)])
def test_scores_and_matchings_against_enumeration(images, captions):
    s = similarities(60, images, captions)
    s[:20, range(images), range(images)] += 2
    scores, matching = jax.device_get(jax.jit(lambda s: (gm.group_scores(s), gm.best_matching(s)))(s))
    assert 0 < scores["group"].sum() < 60
    for g in range(len(s)):
        text = all(s[g, i, i] > s[g, i, j] for i in range(images) for j in range(captions) if j != i)
        image = all(s[g, i, i] > s[g, j, i] for i in range(images) for j in range(images) if j != i)
        values = {
            p: sum(float(s[g, i, p[i]]) for i in range(images)) for p in itertools.permutations(range(captions), images)
        }
        ranked = sorted(values, key=values.get, reverse=True)
        truth = tuple(range(images))
        assert (scores["text"][g], scores["image"][g], scores["group"][g]) == (text, image, text and image)
        assert scores["group_match"][g] == (ranked[0] == truth)
        assert tuple(matching.captions[g].tolist()) == ranked[0]
        assert matching.margin[g] == pytest.approx(values[ranked[0]] - values[ranked[1]], abs=1e-5)
    if images == 1:
        np.testing.assert_array_equal(scores["group"], scores["group_match"])
    large = gm.large_matching(s)
    np.testing.assert_array_equal(large.captions, matching.captions)
    np.testing.assert_allclose(large.margin, matching.margin, atol=1e-5)


def test_large_groups():
    s = similarities(3, 5, 6)
    matching = gm.large_matching(s)
    for g in range(3):
        values = sorted(
            (sum(s[g, i, p[i]] for i in range(5)) for p in itertools.permutations(range(6), 5)), reverse=True
        )
        assert s[g][linear_sum_assignment(s[g], maximize=True)].sum() == pytest.approx(values[0])
        assert matching.margin[g] == pytest.approx(values[0] - values[1], abs=1e-5)
    with pytest.raises(ValueError, match="use `large_matching`"):
        gm.best_matching(s)
    with pytest.raises(ValueError, match="swap the two"):
        gm.group_scores(similarities(2, 3, 2))


@pytest.mark.parametrize(("k", "group", "match"), [(2, 1 / 6, 1 / 2), (3, 1 / 60, 1 / 6), (4, 1 / 840, 1 / 24)])
def test_chance_levels(k, group, match):
    scores = jax.jit(gm.group_scores)(similarities(100_000, k, k))
    assert scores["group"].mean() == pytest.approx(group, abs=0.01 * min(1, 10 * group))
    assert scores["group_match"].mean() == pytest.approx(match, abs=0.01)
    assert not (scores["group"] & ~scores["group_match"]).any()


def test_ties_nan_and_a_common_bias():
    s = np.stack([np.ones((2, 2)), [[np.nan, 0], [0, 1]], [[3, 0], [1, 3]]]).astype(np.float32)
    scores, matching = gm.group_scores(s), gm.best_matching(s)
    assert scores["group"].tolist() == scores["group_match"].tolist() == [False, False, True]
    np.testing.assert_array_equal(matching.margin, [0, np.nan, 5])
    np.testing.assert_array_equal(gm.best_matching(s + 7).margin, [0, np.nan, 5])
    assert matching.captions[0].tolist() == [0, 1]
    assert gm.select_groups(matching.margin, 0.0).tolist() == [True, False, True]
    assert gm.select_groups(matching.margin, 1.0).tolist() == [False, False, True]
    one = gm.group_scores(np.zeros((1, 1, 1), np.float32))
    assert one["group_match"].all() and np.isinf(gm.best_matching(np.zeros((1, 1, 1), np.float32)).margin).all()


def test_one_assignment_of_everything():
    s = similarities(1, 10, 10)[0]
    captions, keep = gm.global_matching(s, 0.3)
    np.testing.assert_array_equal(captions, linear_sum_assignment(s, maximize=True)[1])
    chosen = s[np.arange(10), captions]
    assert keep.sum() == 7 and chosen[keep].min() > chosen[~keep].max()
    assert gm.global_matching(np.ones((4, 4)), 0.5)[1].all()  # ties at the cut
    assert not gm.global_matching(s, 1.0)[1].any()
    with pytest.raises(ValueError, match="as many captions as images"):
        gm.global_matching(s[:4])


def test_schedules():
    np.testing.assert_allclose(gm.threshold_schedule("linear", 2.0, 0.0, 5), [2, 1.5, 1, 0.5, 0])
    cosine = gm.threshold_schedule("cosine", 2.0, 0.0, 5)
    np.testing.assert_allclose(cosine, (1 + np.cos(np.linspace(0, np.pi, 5))), atol=1e-12)
    assert gm.threshold_schedule("constant", 2.0, 0.0, 3).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="schedule 'rising'"):
        gm.threshold_schedule("rising", 1, 0, 3)
    rates = gm.restart_cosine(1e-3, 0.5, 2, 10, least=0.1)
    assert rates[0] == pytest.approx(2.5e-4) and (np.diff(rates) < 0).all() and rates[-1] > 2.5e-5
