"""Confidence intervals: bootstrap over prompts, Student t over seeds."""

from typing import NamedTuple

import jax
import numpy as np


class Interval(NamedTuple):
    mean: float
    low: float
    high: float
    degenerate: bool  # one value only: low and high are NaN


class SeedReport(NamedTuple):
    mean: float
    low: float
    high: float
    standard_deviation: float  # over seeds, ddof 1; NaN for one seed
    seeds: int
    degenerate: bool


def bootstrap_ci(key: jax.Array, values, level: float = 0.95, resamples: int = 1_000) -> Interval:
    """Percentile interval of the mean over prompts.

    Prompts are drawn with replacement, each with all its samples: samples of one prompt are not
    independent, so drawing those would make the interval too narrow.

    Args:
        key: JAX random key.
        values: [P], one number per prompt, or [P, n], n samples each (the mean is over prompts of
            the mean over samples).
        level: coverage, e.g. 0.95.
        resamples: number of bootstrap resamples.

    Raises ValueError: no values, NaN among them, level outside (0, 1).
    """
    values = _checked(values, level)
    values = values.reshape(len(values), -1).mean(-1)
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, np.nan, np.nan, True)
    # NumPy draws: a program would have to be compiled for every number of prompts, in up to a second.
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    chosen = random.integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[chosen].mean(-1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), False)


def seed_report(metric, level: float = 0.95) -> SeedReport:
    """Mean of a metric over training seeds [S] with its Student t interval (S - 1 degrees of freedom).

    Raises ValueError: no values, NaN among them, level outside (0, 1).
    """
    metric = _checked(metric, level)
    if metric.ndim != 1:
        raise ValueError(f"seed_report takes one number per seed, not an array of shape {metric.shape}")
    mean, count = float(metric.mean()), len(metric)
    if count == 1:
        return SeedReport(mean, np.nan, np.nan, np.nan, 1, True)
    deviation = float(metric.std(ddof=1))
    from scipy import special  # it takes a third of a second to import, and few need it

    half = float(special.stdtrit(count - 1, (1 + level) / 2)) * deviation / np.sqrt(count)
    return SeedReport(mean, mean - half, mean + half, deviation, count, False)


def _checked(values, level: float) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if not values.ndim or not values.size:
        raise ValueError("an interval needs at least one value")
    if np.isnan(values).any():
        raise ValueError(f"value {int(np.argwhere(np.isnan(values))[0][0])} is NaN; an interval needs numbers")
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1, e.g. 0.95")
    return values
