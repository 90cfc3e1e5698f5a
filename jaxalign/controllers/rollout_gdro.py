"""How many completions each difficulty class gets, at an exact mean number of completions per prompt (Rollout-GDRO)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

Score = Literal["mean", "sum"]
Utility = Literal["variance_proxy", "minus_loss", "plus_loss"]


class RolloutGdro(NamedTuple):
    """Host arrays: the choice is made before a step's shapes are known."""

    score: np.ndarray  # [C, A] float32: sum of what arm a (a number of completions) earned in class c
    plays: np.ndarray  # [C, A] int32
    price: np.ndarray  # [] float32: mu, the shadow price of one completion per prompt


def init(classes: int, arms: int) -> RolloutGdro:
    shape = (classes, arms)
    return RolloutGdro(np.zeros(shape, np.float32), np.zeros(shape, np.int32), np.zeros((), np.float32))


def arm_log_probs(
    state: RolloutGdro, *, step_size: float = 0.65, mixing: float = 0.01, score: Score = "mean"
) -> np.ndarray:
    """[C, A]: log of (1 - mixing) softmax(step_size score) + mixing / A.

    `score` is the mean of what an arm earned ("mean"; 0 for one that was never played), or the running sum of the
    released code, which soon is too large for the softmax to try anything else.
    """
    if score not in get_args(Score):
        raise ValueError(f"score={score!r} is not known; choose one of {get_args(Score)}")
    values = state.score / np.maximum(state.plays, 1) if score == "mean" else state.score
    logits = step_size * values.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.log((1 - mixing) * weights + mixing / values.shape[1])


def choose_arms(values: np.ndarray, counts: np.ndarray, arms: Sequence[int], total: int) -> tuple[np.ndarray, bool]:
    """The arm of each class that maximises sum_c values[c, a_c] subject to sum_c counts_c arms[a_c] = total.

    Exact, by dynamic programming over totals. If no choice meets the total the closest one is taken, of two equally
    close or equally good ones the one of more value.

    Args:
      values: [C, A]: `arm_log_probs`, or minus a cost to be minimised.
      counts: [C] prompts of each class in the batch. A class without prompts is free and takes its best arm.
      arms: A numbers of completions, >= 1.
      total: completions of the batch.

    Returns:
      (indices [C] into `arms`, whether the total is met).

    Raises:
      ValueError: an empty batch, or shapes that do not fit.

    GDRO: arXiv 2601.19280.
    """
    counts, numbers = np.asarray(counts), np.asarray(arms)
    if values.shape != (len(counts), len(numbers)) or not counts.sum() or numbers.min() < 1:
        raise ValueError(
            f"values {values.shape} for {len(counts)} classes with {counts.sum()} prompts and arms {numbers}"
        )
    chosen = np.asarray(values).argmax(axis=1)
    largest = int(counts.sum() * numbers.max())
    best = np.full(largest + 1, -np.inf)
    best[0] = 0
    steps = []
    present = np.flatnonzero(counts)
    for index in present:
        reached = np.full((len(numbers), largest + 1), -np.inf)
        for arm, number in enumerate(numbers):
            used = int(counts[index] * number)
            reached[arm, used:] = best[: largest + 1 - used] + values[index, arm]
        steps.append(reached.argmax(axis=0))
        best = reached.max(axis=0)
    possible = np.flatnonzero(np.isfinite(best))
    distance = np.abs(possible - total)
    nearest = possible[distance == distance.min()]
    used = int(nearest[best[nearest].argmax()])
    met = used == total
    for index, step in zip(present[::-1], steps[::-1], strict=True):
        chosen[index] = step[used]
        used -= int(counts[index] * numbers[chosen[index]])
    return chosen, met


def utility(kind: Utility, losses: np.ndarray, variances: np.ndarray, completions: np.ndarray) -> np.ndarray:
    """What an arm earns, [C].

    The paper maximises minus the loss of the class ("minus_loss"), its released code adds plus the loss
    ("plus_loss"); opposite signs. What its theory is about is the variance of the gradient, -v_c / n_c
    ("variance_proxy", the default of the experiment), v_c being the mean variance of the rewards of a prompt.
    """
    if kind not in get_args(Utility):
        raise ValueError(f"utility {kind!r} is not known; choose one of {get_args(Utility)}")
    losses, variances = np.asarray(losses, np.float64), np.asarray(variances, np.float64)
    return {"minus_loss": -losses, "plus_loss": losses, "variance_proxy": -variances / completions}[kind]


def update(
    state: RolloutGdro,
    chosen: np.ndarray,
    counts: np.ndarray,
    utilities: np.ndarray,
    arms: Sequence[int],
    budget: float,
    *,
    price_step: float = 0.05,
) -> tuple[RolloutGdro, float]:
    """score_c[a_c] += u_c - mu (n_c - budget), then mu <- mu + price_step (realised mean - budget).

    Where the total is met exactly, as `choose_arms` does whenever it can, mu stays 0: the shadow price acts only on
    a budget that cannot be met.

    Args:
      state: from `init` or the last `update`.
      chosen: [C] arm of each class in this step.
      counts: [C] prompts of each class; classes without prompts, and with a NaN utility, change nothing.
      utilities: [C].
      arms: numbers of completions.
      budget: mean completions per prompt.
      price_step: alpha.

    Returns:
      (state, mu).

    GDRO: arXiv 2601.19280.
    """
    counts, utilities, numbers = np.asarray(counts), np.asarray(utilities), np.asarray(arms)[chosen]
    if not counts.sum():
        return state, float(state.price)
    score, plays = state.score.copy(), state.plays.copy()
    played = np.flatnonzero((counts > 0) & ~np.isnan(utilities))
    score[played, chosen[played]] += (utilities - state.price * (numbers - budget))[played]
    plays[played, chosen[played]] += 1
    realised = (counts * numbers).sum() / counts.sum()
    price = np.asarray(state.price + price_step * (realised - budget), np.float32)
    return RolloutGdro(score, plays, price), float(price)
