"""Best-of-N: its value, win rate and KL, estimated without bias from m >= N samples."""

import math

import numpy as np
from scipy import special


def order_weights(m: int, n: int, best: bool = True) -> np.ndarray:
    """Probability that the i-th smallest of m rewards is the best of a random n-subset, [m].

        omega_i = C(i - 1, n - 1) / C(m, n)
        worst of n (best=False): C(m - i, n - 1) / C(m, n)

    Raises ValueError unless 1 <= n <= m.
    """
    if not 1 <= n <= m:
        raise ValueError(f"best-of-{n} needs at least {n} samples and n >= 1; there are {m}")
    below = np.arange(m)  # how many are smaller
    log_ratio = _log_binomial(below, n - 1) - _log_binomial(m, n)
    weights = np.where(below >= n - 1, np.exp(log_ratio), 0.0)
    return weights if best else weights[::-1]


def _log_binomial(top, bottom):
    top = np.maximum(top, bottom)  # the caller zeroes these places
    return special.gammaln(top + 1.0) - special.gammaln(bottom + 1.0) - special.gammaln(top - bottom + 1.0)


def best_of_n_value(rewards, n: int, best: bool = True) -> np.ndarray:
    """E[max reward of n samples] of each prompt, unbiased: rewards [P, m] -> [P]."""
    rewards = np.sort(_finite(rewards, "rewards"), axis=-1)
    return rewards @ order_weights(rewards.shape[-1], n, best)


def best_of_n_win_rate(a, b, n: int, best: bool = True) -> np.ndarray:
    """Chance that the best of n samples of A beats the best of n of B; ties count 1/2.

        sum_ij omega_i^A omega_j^B ( 1[a_(i) > b_(j)] + 1/2 1[a_(i) = b_(j)] )

    Unbiased; the inference-time win rate of InfAlign (arXiv 2412.19792). Compare methods at the n
    they are used with: which of two is better may turn with n. Shapes: a [P, ma], b [P, mb] -> [P].
    """
    a, b = (np.sort(_finite(x, name), axis=-1) for x, name in ((a, "a"), (b, "b")))
    weights_a, weights_b = (order_weights(x.shape[-1], n, best) for x in (a, b))
    wins = (a[:, :, None] > b[:, None, :]) + 0.5 * (a[:, :, None] == b[:, None, :])
    return np.einsum("i,pij,j->p", weights_a, wins, weights_b)


def best_of_n_kl(n: int) -> float:
    """KL(best-of-n policy || policy) <= log n - (n - 1) / n nats; equal where rewards never tie."""
    return math.log(n) - (n - 1) / n


def calibrated_reward(rewards, reference_rewards) -> np.ndarray:
    """Share of reference samples that a reward beats, ties counting 1/2, in [0, 1].

        C(x, y) = mean_z ( 1[r(z) < r(y)] + 1/2 1[r(z) = r(y)] ),   z ~ reference policy

    rewards [P, m], reference_rewards [P, n] -> [P, m]. Its mean under the reference policy is 1/2.
    """
    r, z = (
        _finite(rewards, "rewards")[:, :, None],
        _finite(reference_rewards, "reference_rewards")[:, None, :],
    )
    return ((z < r) + 0.5 * (z == r)).mean(-1)


def _finite(values, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if np.isnan(values).any():
        raise ValueError(f"{name} holds NaN at {tuple(int(i) for i in np.argwhere(np.isnan(values))[0])}")
    return values
