"""How often some, most, or the average of several samples are right: pass@k, maj@k, avg@n."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np


def pass_at_k(n, c, k: int):
    """Chance that at least one of k samples is right, drawn from n of which c are right.

        pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod_{j < k} (1 - c / (n - j)),   1 where n - c < k

    Unbiased for prompts whose n samples are independent (the plug-in 1 - (1 - c/n)^k is not: it is
    too low). Summed in log space, so that no binomial coefficient can overflow. Average over
    prompts for the metric.

    Args:
        n: samples per prompt, [P] or a number.
        c: right ones among them, [P] or a number.
        k: how many are drawn, a Python integer.

    Returns: [P], float64 NumPy for NumPy input; float32 for JAX arrays (relative error below 1e-4 up to n = 512).

    Raises ValueError if k < 1 or, outside of jit, some n < k or c outside 0..n; inside jit such
    places become NaN.

    Chen et al. 2021 (arXiv 2107.03374), equation 1.
    """
    if k < 1:
        raise ValueError(f"pass@k needs k >= 1, not {k}")
    traced = isinstance(n, jax.core.Tracer) or isinstance(c, jax.core.Tracer)
    if not traced:
        counts, right = np.broadcast_arrays(np.asarray(n), np.asarray(c))
        if (counts < k).any():
            raise ValueError(f"pass@{k} needs at least {k} samples per prompt; here are {counts.min()}")
        if (right < 0).any() or (right > counts).any():
            raise ValueError("pass@k: the number of right samples must lie between 0 and the number of samples")
    xp = jnp if isinstance(n, jax.Array) or isinstance(c, jax.Array) else np
    dtype = xp.float32 if xp is jnp else xp.float64
    n, c = xp.asarray(n, dtype)[..., None], xp.asarray(c, dtype)[..., None]
    valid = ((n >= k) & (c >= 0) & (c <= n))[..., 0]
    left = xp.maximum(n - xp.arange(k, dtype=dtype), 1)
    fail = c / left  # chance that draw j is right if no earlier one was
    certain = (fail >= 1).any(-1)
    # log1p(-1) is kept out of the sum: its -inf would be right, but warns in NumPy.
    log_none = xp.log1p(-xp.where(fail >= 1, 0, fail)).sum(-1)
    value = xp.where(certain, 1.0, -xp.expm1(log_none))
    return xp.where(valid, value, xp.nan)


def avg_at_n(correct, mask=None):
    """Mean of `correct` [P, n] over each prompt's samples, [P] float64.

    `mask` [P, n] is 1 where a sample exists.

    Raises ValueError for a prompt without samples.
    """
    correct = np.asarray(correct, np.float64)
    present = np.ones(correct.shape, bool) if mask is None else np.asarray(mask, bool)
    if not present.any(-1).all():
        raise ValueError(f"avg@n: prompt {int(np.argmin(present.any(-1)))} has no samples")
    return np.where(present, correct, 0).sum(-1) / present.sum(-1)


def maj_at_k(
    key: jax.Array | None,
    answers,
    reference,
    k: int,
    *,
    weights=None,
    mask=None,
    max_subsets: int = 2_000,
    subsets: int = 1_000,
):
    """Chance that the most frequent answer among k of a prompt's samples is the right one.

    The mean over all k-subsets of the samples if there are at most `max_subsets`, else over
    `subsets` random ones. Tied answers share the vote: with t of them the right one counts 1/t.
    Samples without an answer do not vote; nobody voting counts 0.

    Args:
        key: JAX random key for the random subsets; None is fine where all are enumerated.
        answers: int [P, n], ids of normalised answers, -1 for none.
        reference: int [P], id of the right answer (>= 0).
        k: votes.
        weights: [P, n] weights of the votes, positive; None counts each as one.
        mask: [P, n], 1 where a sample exists.

    Returns: [P] float64.

    Raises ValueError: k outside 1..samples, a key that is missing though needed.
    """
    answers, reference = np.asarray(answers), np.asarray(reference)
    weights = np.ones(answers.shape) if weights is None else np.asarray(weights, np.float64)
    present = np.ones(answers.shape, bool) if mask is None else np.asarray(mask, bool)
    values = np.zeros(len(answers))
    for prompt, here in enumerate(present):
        n = int(here.sum())
        if not 1 <= k <= n:
            raise ValueError(f"maj@{k} needs between 1 and {n} votes, the samples of prompt {prompt}")
        if math.comb(n, k) <= max_subsets:
            chosen = np.asarray(list(itertools.combinations(range(n), k)))
        elif key is None:
            raise ValueError(f"maj@{k} of {n} samples draws subsets at random and needs a key")
        else:
            scores = jax.random.uniform(jax.random.fold_in(key, prompt), (subsets, n))
            chosen = np.asarray(jnp.argsort(scores, axis=-1))[:, :k]
        votes, weight = answers[prompt, here][chosen], weights[prompt, here][chosen]  # [subsets, k]
        values[prompt] = _majority_share(votes, weight, reference[prompt]).mean()
    return values


def _majority_share(votes: np.ndarray, weight: np.ndarray, right: int) -> np.ndarray:
    """[R, k] votes -> [R]: 1/t if `right` is among the t answers with most votes, else 0."""
    votes_valid = votes >= 0
    same = votes[:, :, None] == votes[:, None, :]
    support = np.where(same, weight[:, None, :], 0).sum(-1)  # of each vote's answer
    best = np.where(votes_valid, support, -np.inf).max(-1, keepdims=True)
    # Sums in another order may differ in the last bit; that must not break a tie of weighted votes.
    winning = votes_valid & (support >= best - 1e-9 * np.abs(best))
    winners = np.where(winning, 1 / same.sum(-1), 0).sum(-1)  # each answer counted once
    wins = (winning & (votes == right)).any(-1)
    return np.where(wins, 1 / np.maximum(winners, 1), 0)
