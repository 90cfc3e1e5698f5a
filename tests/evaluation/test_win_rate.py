"""Win rates: counted by hand, symmetric, and free of the length bias of a judge."""

import math

import numpy as np
import pytest
from scipy import optimize, special

from jaxalign.evaluation.win_rate import judge_both_orders, length_controlled_win_rate, win_rate


def test_by_hand_and_symmetry():
    a, b = np.asarray([1.0, 2, 3, 4]), np.asarray([0.0, 2, 5, 1])
    result = win_rate(a, b)
    assert (result.rate, result.wins, result.ties, result.prompts) == (0.625, 2, 1, 4)
    values = [1, 0.5, 0, 1]
    variance = sum((v - 0.625) ** 2 for v in values) / 3
    assert result.standard_error == pytest.approx(math.sqrt(variance / 4))
    assert result.rate + win_rate(b, a).rate == 1
    assert math.isnan(win_rate([1], [0]).standard_error)


def test_nan():
    a, b = [1.0, np.nan, np.nan, 2.0], [0.0, 1.0, np.nan, np.nan]
    with pytest.raises(ValueError, match="prompt 1 is NaN"):
        win_rate(a, b)
    result = win_rate(a, b, nan_policy="lose")
    assert (result.wins, result.ties, result.rate) == (2, 1, 0.625)
    with pytest.raises(ValueError, match="'ignore'"):
        win_rate(a, b, nan_policy="ignore")
    with pytest.raises(ValueError, match="equally long"):
        win_rate([1.0], [1.0, 2.0])


def test_a_judge_that_likes_the_first_place_says_nothing():
    prompts, a, b = ["p"] * 3, ["x", "yy", "z"], ["xx", "y", "z"]
    np.testing.assert_array_equal(judge_both_orders(lambda p, x, y: 1.0, prompts, a, b), 0.5)
    longer = judge_both_orders(lambda p, x, y: float(len(x) > len(y)), prompts, a, b)
    np.testing.assert_array_equal(longer, [0, 1, 0.5])


def test_length_control_removes_the_bias_of_the_judge():
    random = np.random.default_rng(0)
    raw, controlled = [], []
    for _ in range(20):
        baseline = random.normal(500, 100, 400)
        model = random.normal(700, 100, 400)  # equal quality, two standard deviations longer
        difference = baseline - model
        bias = -1.5 * np.tanh(difference / difference.std(ddof=1))
        preference = (random.random(400) < special.expit(bias)).astype(float)
        result = length_controlled_win_rate(preference, model, baseline)
        raw.append(result.raw)
        controlled.append(result.rate)
    assert np.mean(raw) >= 0.65
    assert 0.45 <= np.mean(controlled) <= 0.55


def test_the_fit_is_the_minimum_that_scipy_finds():
    random = np.random.default_rng(1)
    y, d = random.random(60), random.normal(size=60)
    model, baseline = random.integers(10, 90, (2, 60))
    found = length_controlled_win_rate(y, model, baseline, d, ridge=0.05)
    difference = (baseline - model).astype(float)
    f = np.tanh(difference / difference.std(ddof=1))

    def objective(w):
        p = special.expit(w[0] + w[1] * f + w[2] * d)
        return -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)) + 0.025 * (w**2).sum()

    w = optimize.minimize(objective, np.zeros(3), tol=1e-12).x
    coefficients = (found.intercept, found.length_coefficient, found.difficulty_coefficient)
    np.testing.assert_allclose(coefficients, w, atol=1e-4)
    assert found.rate == pytest.approx(special.expit(w[0] + w[2] * d).mean(), abs=1e-4)


def test_length_control_special_points():
    ones = np.ones(30)
    constant = length_controlled_win_rate(ones, ones * 5, ones * 9)
    assert constant.length_coefficient == 0 and 0.8 < constant.rate < 1  # finite by the ridge
    half = length_controlled_win_rate(ones / 2, np.arange(30), np.arange(30)[::-1])
    assert half.rate == pytest.approx(0.5) and not half.extreme
    y = (np.arange(30) < 15).astype(float)
    assert length_controlled_win_rate(y, np.where(y, 90, 10), ones * 5).extreme
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        length_controlled_win_rate(ones * 2, ones, ones)
    with pytest.raises(ValueError, match="ridge"):
        length_controlled_win_rate(ones, ones, ones, ridge=0)
    with pytest.raises(ValueError, match="equal length"):
        length_controlled_win_rate(ones, ones[:5], ones)
