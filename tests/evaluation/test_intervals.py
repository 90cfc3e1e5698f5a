"""Intervals: closed forms, coverage, clusters, and what one value can say."""

import math

import jax
import numpy as np
import pytest
from scipy import stats

from jaxalign.evaluation.intervals import bootstrap_ci, seed_report


def test_bootstrap_coverage():
    random = np.random.default_rng(0)
    hits = 0
    for i in range(500):
        values = random.random(100) < 0.3
        interval = bootstrap_ci(jax.random.key(i), values)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.92 <= hits / 500 <= 0.98


def test_bootstrap_draws_prompts_and_not_samples():
    prompts = np.random.default_rng(1).normal(size=(50, 1))
    samples = np.repeat(prompts, 20, axis=1)  # twenty equal samples say no more than one
    key = jax.random.key(0)
    assert bootstrap_ci(key, samples) == pytest.approx(bootstrap_ci(key, prompts[:, 0]))
    interval = bootstrap_ci(key, samples)
    expected = 2 * 1.96 * prompts.std(ddof=1) / math.sqrt(50)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.1)


def test_bootstrap_level_and_key():
    values = np.random.default_rng(2).normal(size=40)
    wide, narrow = (bootstrap_ci(jax.random.key(0), values, level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    assert narrow == bootstrap_ci(jax.random.key(0), values, 0.5)


def test_seed_report():
    metric = [0.7, 0.75, 0.8, 0.9]
    report = seed_report(metric)
    low, high = stats.t.interval(0.95, 3, np.mean(metric), stats.sem(metric))
    assert (report.mean, report.low, report.high) == pytest.approx((np.mean(metric), low, high))
    assert report.standard_deviation == pytest.approx(np.std(metric, ddof=1))


def test_one_value_is_degenerate():
    for report in (bootstrap_ci(jax.random.key(0), [0.3]), seed_report([0.3])):
        assert report.mean == 0.3 and report.degenerate
        assert math.isnan(report.low) and math.isnan(report.high)


@pytest.mark.parametrize(
    ("values", "level", "message"),
    [([], 0.95, "at least one"), ([1.0, np.nan], 0.95, "value 1 is NaN"), ([1.0], 95, "level=95")],
)
def test_bad_input(values, level, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ci(jax.random.key(0), values, level)
    with pytest.raises(ValueError, match=message):
        seed_report(values, level)
