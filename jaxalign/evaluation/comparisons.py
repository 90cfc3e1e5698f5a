"""Is A better than B? Paired permutation tests, Welch's test, Holm's correction, and the report of a comparison."""

from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

from jaxalign.evaluation.intervals import Interval, SeedReport, bootstrap_ci, seed_report


def paired_permutation(key: jax.Array | None, differences, exact_up_to: int = 16, resamples: int = 10_000) -> float:
    """Two-sided p-value of the mean of paired differences [n] under random signs.

    All 2^n sign flips for n <= `exact_up_to`; else `resamples` random ones, p = (1 + count) / (1 +
    resamples), which is never 0. All differences 0: p = 1. The smallest p of n pairs is 2^(1 - n):
    five pairs cannot go below 0.0625.

    Raises ValueError: no pairs, NaN, or a key that is missing though needed.
    """
    d = np.asarray(differences, np.float64)
    if d.ndim != 1 or not d.size or np.isnan(d).any():
        raise ValueError("paired_permutation needs a vector of differences without NaN")
    # Equal sums may differ in their last bits by the order of addition; they must count as equal.
    threshold = abs(d.sum()) - 1e-9 * np.abs(d).sum()
    if len(d) <= exact_up_to:
        # Flipping all signs gives the same |sum|: half of the flips suffice.
        sums = np.zeros(1)
        for x in d[1:]:
            sums = np.concatenate([sums + x, sums - x])
        return float((np.abs(d[0] + sums) >= threshold).mean())
    if key is None:
        raise ValueError(f"{len(d)} pairs are more than the {exact_up_to} that are enumerated; random flips need a key")
    signs = np.asarray(jax.random.rademacher(key, (resamples, len(d)), dtype="int8"))
    return float((1 + (np.abs(signs @ d) >= threshold).sum()) / (1 + resamples))


class Welch(NamedTuple):
    difference: float  # mean of a - mean of b
    low: float
    high: float
    p_value: float


def welch(a, b, level: float = 0.95) -> Welch:
    """Welch's t test and interval for two groups of seeds that are not paired, [Sa] and [Sb].

    Raises ValueError if a group has fewer than two values. Two constant groups: p is 1 if they are
    equal, else 0.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(a.size, b.size) < 2:
        raise ValueError(f"Welch's test needs two values in each group, not {a.size} and {b.size}")
    difference = float(a.mean() - b.mean())
    if not (a.std() or b.std()):
        return Welch(difference, difference, difference, float(difference == 0))
    result = stats.ttest_ind(a, b, equal_var=False)
    interval = result.confidence_interval(level)
    return Welch(difference, float(interval.low), float(interval.high), float(result.pvalue))


def holm(p_values) -> np.ndarray:
    """Holm's adjusted p-values [m] of a family of m tests: rejecting those below a level keeps the family's error rate.

    adjusted_(i) = max_{j <= i} min(1, (m - j + 1) p_(j)),   p_(1) <= p_(2) <= ...
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    return adjusted


class Comparison(NamedTuple):
    difference: float  # mean of a - b
    prompts: Interval  # of the difference, bootstrap over prompts, each averaged over seeds
    prompts_p: float  # paired permutation over prompts
    seeds: SeedReport  # of the difference, Student t over seeds
    seeds_p: float  # paired permutation over seeds
    a_beats_b: bool
    b_beats_a: bool


def compare(key: jax.Array, a, b, level: float = 0.95) -> Comparison:
    """Compares two methods on the same prompts and the same seeds: a [S, P], b [S, P], larger is better.

    "A beats B" is said only if the interval of the difference lies above 0 and the paired p-value
    is below 1 - level: either over prompts, with the differences of at least 3 seeds averaged, or
    over at least 6 seeds. One seed shows what one run did, not what the method does.

    Raises ValueError: unequal shapes, NaN.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or a.shape != b.shape or not a.size:
        raise ValueError(f"compare takes two arrays [seeds, prompts] of one shape, not {a.shape} and {b.shape}")
    if np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("compare: a score is NaN; decide first what a sample without a score counts")
    difference = a - b
    keys = jax.random.split(key, 3)
    prompts = bootstrap_ci(keys[0], difference.mean(0), level)
    prompts_p = paired_permutation(keys[1], difference.mean(0))
    seeds = seed_report(difference.mean(1), level)
    seeds_p = paired_permutation(keys[2], difference.mean(1))
    routes = ((len(a) >= 3, prompts, prompts_p), (len(a) >= 6, seeds, seeds_p))
    allowed = [(interval.low, interval.high) for enough, interval, p in routes if enough and p < 1 - level]
    return Comparison(
        difference=float(difference.mean()),
        prompts=prompts,
        prompts_p=prompts_p,
        seeds=seeds,
        seeds_p=seeds_p,
        a_beats_b=any(low > 0 for low, _ in allowed),
        b_beats_a=any(high < 0 for _, high in allowed),
    )
