"""Links of preference losses: how a margin z (or a log-ratio) becomes a loss. All elementwise, all finite.

A link falls with its margin, at least up to a target. The losses of `jaxalign.losses.preference` are a margin and a
link; whoever has a margin of another kind (a reward model's, a formula's) can use the links alone.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, relu, sigmoid, softplus

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]

# Above this exponent an exponential is held constant: exp(80) = 5.5e34 is near the end of float32.
MAX_EXPONENT = 80.0


def clipped_exp(x: jax.Array) -> jax.Array:
    """exp(min(x, 80)); no gradient where x > 80."""
    return jnp.exp(jnp.minimum(x, MAX_EXPONENT))


def logistic(z: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """-(1 - e) log sigmoid(z) - e log sigmoid(-z), with e = `label_smoothing`.

    arXiv 2305.18290, equation 7 (e = 0).
    """
    loss = softplus(-z)
    return loss if label_smoothing == 0 else (1 - label_smoothing) * loss + label_smoothing * softplus(z)


def robust_logistic(z: jax.Array, flip_rate: float) -> jax.Array:
    """[-(1 - e) log sigmoid(z) + e log sigmoid(-z)] / (1 - 2 e), e = `flip_rate` in [0, 0.5).

    Its expectation over labels that are flipped with probability e is `logistic` of the clean label. It can be
    negative and has no lower bound as z grows. arXiv 2403.00409.
    """
    return ((1 - flip_rate) * softplus(-z) - flip_rate * softplus(z)) / (1 - 2 * flip_rate)


def hinge(z: jax.Array, target: float = 1.0) -> jax.Array:
    """max(0, target - z); gradient 0 at the kink. arXiv 2305.10425."""
    return relu(target - z)


def squared(z: jax.Array, target: float | jax.Array = 1.0) -> jax.Array:
    """(z - target)^2. arXiv 2310.12036, with z the log-ratio margin and target 1 / (2 beta)."""
    return (z - target) ** 2


def truncated_quadratic(z: jax.Array) -> jax.Array:
    """max(0, 1 - z)^2. arXiv 2402.05749."""
    return relu(1 - z) ** 2


def exponential(z: jax.Array) -> jax.Array:
    """exp(-z), held constant beyond z = -80. arXiv 2402.05749."""
    return clipped_exp(-z)


def savage(z: jax.Array) -> jax.Array:
    """1 / (1 + exp(z))^2. arXiv 2402.05749."""
    return sigmoid(-z) ** 2


def exo(z: jax.Array, label_smoothing: float) -> jax.Array:
    """KL of (sigmoid(z), sigmoid(-z)) to the smoothed label (1 - e, e), e = `label_smoothing` > 0.

    arXiv 2402.00856, with two completions.
    """
    chosen = sigmoid(z) * (log_sigmoid(z) - jnp.log1p(-label_smoothing))
    return chosen + sigmoid(-z) * (log_sigmoid(-z) - jnp.log(label_smoothing))


def discopop(z: jax.Array, temperature: float) -> jax.Array:
    """-log sigmoid(z) (1 - s) + exp(-z) s with s = sigmoid(z / temperature): logistic and exponential, blended.

    The second term is computed as exp(-z + log s). For temperature < 1 that never overflows, where exp(-z) times s
    would be infinity times 0. arXiv 2406.08414 (its log-ratio modulated loss).
    """
    blend = z / temperature
    return softplus(-z) * sigmoid(-blend) + clipped_exp(-z + log_sigmoid(blend))


def log_odds(mean_log_prob: jax.Array) -> jax.Array:
    """log(p / (1 - p)) with p = exp(mean_log_prob), where mean_log_prob is held at most -1e-6. arXiv 2403.07691."""
    x = jnp.minimum(mean_log_prob, -1e-6)
    return x - jnp.where(x > -jnp.log(2.0), jnp.log(-jnp.expm1(x)), jnp.log1p(-jnp.exp(x)))


def power_reward(mean_log_prob: jax.Array, power: float) -> jax.Array:
    """(1 - p^-a) / a with p = exp(mean_log_prob), a = `power`; mean_log_prob itself for a = 0. arXiv 2501.03884."""
    return _one_minus_power(mean_log_prob, power)


def divergence_score(log_ratio: jax.Array, divergence: Divergence = "reverse_kl", alpha: float = 0.5) -> jax.Array:
    """f'(policy / reference), up to a constant, of an f-divergence: what takes the place of the log-ratio a.

    | divergence | score                    |
    |------------|--------------------------|
    | reverse_kl | a                        |
    | forward_kl | -exp(-a)                 |
    | js         | a - softplus(a)          |
    | alpha      | (1 - exp(-alpha a)) / alpha; a for alpha = 0 |

    Exponents are held at most 80, with gradient 0 beyond (`clipped_scores` tells where).

    Raises:
      ValueError: unknown divergence.

    arXiv 2309.16240. TRL's alpha is 1 minus this one, which is the paper's.
    """
    match divergence:
        case "reverse_kl":
            return log_ratio
        case "forward_kl":
            return -clipped_exp(-log_ratio)
        case "js":
            return log_ratio - softplus(log_ratio)
        case "alpha":
            return _one_minus_power(log_ratio, alpha)
    raise ValueError(f"unknown divergence {divergence!r}; choose one of {get_args(Divergence)}")


def clipped_scores(log_ratio: jax.Array, divergence: Divergence, alpha: float) -> jax.Array:
    """Where `divergence_score` holds its exponent constant."""
    rates = {"forward_kl": 1.0, "alpha": alpha}
    return -rates.get(divergence, 0.0) * log_ratio > MAX_EXPONENT


def _one_minus_power(x: jax.Array, a: float) -> jax.Array:
    """(1 - exp(-a x)) / a, and x for a = 0."""
    return x if a == 0 else -jnp.expm1(jnp.minimum(-a * x, MAX_EXPONENT)) / a
