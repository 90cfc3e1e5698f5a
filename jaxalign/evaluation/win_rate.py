"""Pairwise win rates: plain, judged in both orders, and corrected for length."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special


class WinRate(NamedTuple):
    rate: float  # in [0, 1]; ties count 1/2
    standard_error: float  # over prompts; NaN for one prompt
    wins: int
    ties: int
    prompts: int


def win_rate(a, b, nan_policy: str = "error") -> WinRate:
    """How often score a beats score b on the same prompt: a [P], b [P].

        w = mean_p ( 1[a > b] + 1/2 1[a = b] )

    Symmetric: w(a, b) + w(b, a) = 1. The standard error is the ddof-1 standard deviation over prompts by sqrt(P).

    With nan_policy="lose", NaN (not scorable) loses against a number and ties with NaN.

    Raises ValueError: other lengths, no prompts, NaN under nan_policy="error".
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(f"win_rate compares two equally long vectors of scores, not {a.shape} and {b.shape}")
    if nan_policy not in ("error", "lose"):
        raise ValueError(f"nan_policy {nan_policy!r} is not known; use 'error' or 'lose'")
    unscored = np.isnan(a) | np.isnan(b)
    if nan_policy == "error" and unscored.any():
        raise ValueError(f"the score of prompt {int(unscored.argmax())} is NaN; nan_policy='lose' counts it as a loss")
    wins = (a > b) | (~np.isnan(a) & np.isnan(b))
    ties = (a == b) | (np.isnan(a) & np.isnan(b))
    values = wins + 0.5 * ties
    error = values.std(ddof=1) / np.sqrt(a.size) if a.size > 1 else np.nan
    return WinRate(float(values.mean()), float(error), int(wins.sum()), int(ties.sum()), a.size)


def judge_both_orders(
    judge: Callable[[str, str, str], float],
    prompts: Sequence[str],
    a: Sequence[str],
    b: Sequence[str],
) -> np.ndarray:
    """Preference for a over b in [0, 1], [P], averaged over the two orders in which the judge sees them.

    `judge(prompt, first, second)` returns its preference for the first. A judge that always likes
    the first place gets 1/2 everywhere.
    """
    return np.asarray(
        [(judge(prompt, x, y) + 1 - judge(prompt, y, x)) / 2 for prompt, x, y in zip(prompts, a, b, strict=True)]
    )


class LengthControlledWinRate(NamedTuple):
    rate: float  # with the length term set to 0
    raw: float  # mean preference
    intercept: float  # theta
    length_coefficient: float  # phi: > 0 if shorter answers are preferred
    difficulty_coefficient: float  # psi
    extreme: bool  # the correction is larger than AlpacaEval deems plausible


def length_controlled_win_rate(
    preference, model_lengths, baseline_lengths, difficulty=None, ridge: float = 0.01
) -> LengthControlledWinRate:
    """What the win rate would be if both sides wrote answers of equal length.

        logit P_p = theta + phi f_p + psi d_p,    f_p = tanh((baseline length - model length) / sd)
        rate = mean_p sigmoid(theta + psi d_p)

    sd is the ddof-1 standard deviation of the length differences (f = 0 if it is 0). The
    coefficients minimise the mean cross-entropy with the soft labels `preference` plus ridge/2
    times their squared norm; Newton's method.

    Args:
        preference: [P] in [0, 1], for the model.
        model_lengths, baseline_lengths: [P], both in the same unit.
        difficulty: [P], d_p; None is 0.
        ridge: positive; keeps the coefficients finite where all preferences are 1.

    Raises ValueError: preferences outside [0, 1], unequal shapes, ridge <= 0.

    After AlpacaEval 2 (arXiv 2404.04475), with ridge instead of a cross-validated L1 penalty and
    without its two added copies of the baseline. `extreme` is its warning: the rate left [raw -
    max(0.1, raw/4), raw + max(0.1, (1-raw)/4)].
    """
    y, model, baseline = (np.asarray(x, np.float64) for x in (preference, model_lengths, baseline_lengths))
    d = np.zeros_like(y) if difficulty is None else np.asarray(difficulty, np.float64)
    if not (y.ndim == 1 and y.shape == model.shape == baseline.shape == d.shape and y.size):
        raise ValueError(
            "length-controlled win rate: preference, lengths and difficulty must be vectors of equal length"
        )
    if not ((y >= 0) & (y <= 1)).all():
        raise ValueError("length-controlled win rate: preferences must lie in [0, 1]")
    if ridge <= 0:
        raise ValueError(f"ridge={ridge} must be positive")
    difference = baseline - model
    deviation = difference.std(ddof=1) if y.size > 1 else 0.0
    f = np.tanh(difference / deviation) if deviation > 0 else np.zeros_like(y)
    features = np.stack([np.ones_like(y), f, d], axis=-1)
    theta, phi, psi = coefficients = _fit(features, y, ridge)
    rate = float(special.expit(features[:, [0, 2]] @ coefficients[[0, 2]]).mean())
    raw = float(y.mean())
    extreme = not raw - max(0.1, raw / 4) <= rate <= raw + max(0.1, (1 - raw) / 4)
    return LengthControlledWinRate(rate, raw, float(theta), float(phi), float(psi), extreme)


def _fit(features: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    """Ridge logistic regression with soft labels: strictly convex, so damped Newton steps reach the one minimum."""

    def objective(w):
        logits = features @ w
        return np.mean(np.logaddexp(0, logits) - y * logits) + ridge / 2 * w @ w

    w = np.zeros(features.shape[-1])
    for _ in range(100):
        p = special.expit(features @ w)
        gradient = features.T @ (p - y) / len(y) + ridge * w
        if np.abs(gradient).max() < 1e-10:
            break
        hessian = (features.T * (p * (1 - p))) @ features / len(y) + ridge * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while objective(w - size * step) > objective(w) and size > 1e-6:
            size /= 2
        w = w - size * step
    return w
