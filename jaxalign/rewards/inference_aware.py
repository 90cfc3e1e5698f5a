"""Rewards for a policy that will be decoded by best-of-N, or attacked by worst-of-N (InfAlign-CTRL).

Three stages before any RL loss: calibrate the reward to its quantile under the reference policy, prompt by prompt;
transform it for the procedure; rescale, so that advantages and KL coefficients of different transforms compare.
"""

import math
from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.rewards.groups import constants

Transform = Literal["identity", "exp", "neg_exp", "log"]
Procedure = Literal["best", "worst"]
FLOOR = 1e-6  # below which log does not look


def calibrate(rewards: jax.Array, reference_rewards: jax.Array) -> jax.Array:
    """C = share of the reference completions of the same prompt that a reward beats, ties counting 1/2: in [0, 1].

    Unchanged by any increasing map of the reward; uniform under the reference policy if rewards do not tie; its mean
    under a policy is that policy's win rate against the reference. The standard error is sqrt(C (1 - C) / K).

    Args:
      rewards: [P, G] of the policy's completions; NaN = not scorable, stays NaN.
      reference_rewards: [P, K] of completions of the FROZEN reference for the same prompts. NaN is left out.

    Returns:
      [P, G]; NaN for a prompt without any reference reward.

    Raises:
      ValueError: K = 0.

    InfAlign: arXiv 2412.19792.
    """
    chex.assert_rank([rewards, reference_rewards], 2)
    if not reference_rewards.shape[1]:
        raise ValueError("calibration needs at least one reference reward for each prompt")
    r, z = constants(rewards)[:, :, None], constants(reference_rewards)[:, None, :]
    known = ~jnp.isnan(z)
    beaten = jnp.where(known, (z < r) + 0.5 * (z == r), 0).sum(axis=2)
    return jnp.where(jnp.isnan(r[..., 0]), jnp.nan, beaten / known.sum(axis=2))


def quantile_table(reference_rewards: jax.Array, anchors: int = 11) -> jax.Array:
    """[P, anchors]: evenly spaced quantiles of each prompt's reference rewards [P, K], to be kept in their place."""
    chex.assert_rank(reference_rewards, 2)
    levels = jnp.linspace(0, 1, anchors)
    return jnp.nanquantile(constants(reference_rewards), levels, axis=1).T


def calibrate_with_table(rewards: jax.Array, table: jax.Array) -> jax.Array:
    """`calibrate` [P, G] from a `quantile_table` [P, M]: linear between its anchors, 0 below and 1 above them.

    Where anchors are equal (rewards that tie) it is the middle of their levels, as the ties of `calibrate` are.
    """
    chex.assert_rank([rewards, table], 2)
    levels = jnp.linspace(0, 1, table.shape[1])

    def one(r, row):
        inside = jnp.interp(r, row, levels, left=0.0, right=1.0)
        tied = row[None] == r[:, None]
        low, high = jnp.where(tied, levels, 2).min(axis=1), jnp.where(tied, levels, -1).max(axis=1)
        return jnp.where(high > low, (low + high) / 2, inside)

    return jnp.where(jnp.isnan(rewards), jnp.nan, jax.vmap(one)(constants(rewards), constants(table)))


def transform(
    calibrated: jax.Array, kind: Transform = "identity", *, strength: float = 10.0, rescale: bool = True
) -> jax.Array:
    """Phi(u) for what decodes the policy, of u in [0, 1]:

    | kind     | Phi(u)         | for                                            |
    |----------|----------------|------------------------------------------------|
    | identity | u              | the standard win rate (optimal)                |
    | exp      | exp(t u)       | best-of-N                                      |
    | neg_exp  | -exp(-t u)     | worst-of-N (the adversary keeps the lowest)    |
    | log      | log max(u, 1e-6) | the best-of-a family u^(a - 1), a = 1 + 1 / beta |

    Args:
      calibrated: any shape; NaN stays NaN.
      kind: see above.
      strength: t > 0 of the exponentials; 5 to 10 for N = 4. 0 is the identity.
      rescale: (Phi - mean) / std with the moments of Phi under a uniform u, so that the scale of the reward does not
        depend on kind and strength.

    Raises:
      ValueError: an unknown kind or a negative strength.

    InfAlign: arXiv 2412.19792.
    """
    if kind not in get_args(Transform):
        raise ValueError(f"transform {kind!r} is not known; choose one of {get_args(Transform)}")
    if strength < 0:
        raise ValueError(
            f"strength={strength} of a transform must not be negative; 'neg_exp' is the one for worst-of-N"
        )
    u = constants(calibrated)
    if kind == "identity" or (kind != "log" and strength == 0):
        value, mean, second = u, 1 / 2, 1 / 3
    elif kind == "log":
        value, mean, second = jnp.log(jnp.maximum(u, FLOOR)), -1.0, 2.0
    else:
        sign = 1 if kind == "exp" else -1
        value = sign * jnp.exp(sign * strength * u)
        mean = math.expm1(sign * strength) / strength
        second = sign * math.expm1(2 * sign * strength) / (2 * strength)
    return (value - mean) / math.sqrt(second - mean**2) if rescale else value


def win_rate_of_density(density: np.ndarray, n: int, procedure: Procedure = "best") -> float:
    """Win rate of a policy against the reference when both are decoded by best- or worst-of-n; n = 1: the standard one.

    best:  integral u^n n F^(n-1) f du,      worst: integral (1 - (1-u)^n) n (1-F)^(n-1) f du

    with f the density of the policy's calibrated reward (1 for the reference) and F its integral.

    Args:
      density: [M], f at the midpoints of M equal cells of [0, 1]; its mean is 1.

    Raises:
      ValueError: an unknown procedure, or a density that does not integrate to 1.
    """
    u, cdf = _cells(density)
    if _check_procedure(procedure) == "best":
        return float((u**n * _power_steps(cdf, n)).sum())
    return float(((1 - (1 - u) ** n) * -_power_steps(1 - cdf, n)).sum())


def optimal_density(
    n: int, procedure: Procedure, beta: float, *, cells: int = 2000, damping: float = 0.2, iterations: int = 400
) -> np.ndarray:
    """[cells]: the density f of the calibrated reward that maximises (win rate at n) - beta KL(f || uniform).

    Stationarity gives log f = R / beta + const with

      R' = n^2 (u F)^(n-1) for best-of-n,    R' = n^2 ((1-u)(1-F))^(n-1) for worst-of-n

    a fixed point, as F belongs to f. R is the optimal transform (`transform` approximates it); for n = 1 it is u.

    Args:
      beta: KL coefficient, nats to win rate, > 0.
      cells: of the grid; values are at its midpoints.
      damping: share of the new log-density in each iteration.

    Raises:
      ValueError: beta or n that is not positive, an unknown procedure.

    The stationarity condition is derived from the objective of arXiv 2412.19792.
    """
    if beta <= 0 or n < 1:
        raise ValueError(f"beta={beta} must be more than 0 and n={n} at least 1")
    best = _check_procedure(procedure) == "best"
    u = (np.arange(cells) + 0.5) / cells
    density = np.ones(cells)
    for _ in range(iterations):
        cdf = (np.cumsum(density) - density / 2) / cells
        slope = n**2 * (u * cdf if best else (1 - u) * (1 - cdf)) ** (n - 1)
        target = (np.cumsum(slope) - slope / 2) / cells / beta
        log_density = (1 - damping) * np.log(density) + damping * (target - target.max())
        density = np.exp(log_density - log_density.max())
        density /= density.mean()
    return density


def kl_of_density(density: np.ndarray) -> float:
    """KL(policy || reference) in nats of a policy that depends on the calibrated reward only: integral f log f."""
    f = np.asarray(density, np.float64)
    return float(np.where(f > 0, f * np.log(np.where(f > 0, f, 1)), 0).mean())


def _cells(density) -> tuple[np.ndarray, np.ndarray]:
    """(midpoints [M], distribution function at the edges [M + 1])."""
    f = np.asarray(density, np.float64)
    if f.ndim != 1 or (f < 0).any() or abs(f.mean() - 1) > 1e-6:
        raise ValueError("a density of calibrated rewards is a vector of values >= 0 with mean 1, over equal cells")
    return (np.arange(len(f)) + 0.5) / len(f), np.concatenate([[0.0], np.cumsum(f / len(f))])


def _power_steps(cdf: np.ndarray, n: int) -> np.ndarray:
    """Probability of each cell under the n-th power of a distribution function: integral n F^(n-1) f over the cell."""
    return np.diff(cdf**n)


def _check_procedure(procedure: str) -> str:
    if procedure not in get_args(Procedure):
        raise ValueError(f"procedure {procedure!r} is not known; choose one of {get_args(Procedure)}")
    return procedure
