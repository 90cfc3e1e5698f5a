"""How often each prompt of a data set is answered right: the one memory of curricula and baselines (SPO, GDRO)."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.objective import safe_divide


class PromptStatistics(NamedTuple):
    """One entry per prompt of the data set. Outcomes are in [0, 1]: 1 is right."""

    successes: jax.Array  # [X] float32: decayed sum of outcomes, the alpha of a Beta posterior
    failures: jax.Array  # [X] float32: decayed sum of 1 - outcome, its beta
    visits: jax.Array  # [X] int32: outcomes recorded
    window: jax.Array | None  # [X, H] float32: the last H outcomes, a ring written at visits modulo H; None: no ring


def init(
    prompts: int, *, successes: float | jax.Array = 0.0, failures: float | jax.Array = 0.0, window: int = 0
) -> PromptStatistics:
    """The state before the first visit, with prior counts (a number or [X]) and a memory of the last `window` outcomes.

    Raises:
      ValueError: no prompts, or a negative window.
    """
    if prompts < 1 or window < 0:
        raise ValueError(f"statistics of {prompts} prompts with a window of {window} outcomes cannot be kept")

    def whole(x):
        return jnp.broadcast_to(jnp.asarray(x, jnp.float32), (prompts,))

    ring = jnp.zeros((prompts, window), jnp.float32) if window else None
    return PromptStatistics(whole(successes), whole(failures), jnp.zeros(prompts, jnp.int32), ring)


def from_trials(successes: jax.Array, trials: int, *, strength: float = 8.0, window: int = 0) -> PromptStatistics:
    """The state after `trials` completions of each prompt before training, of which `successes` [X] were right.

    alpha = strength (s + 1/2) / (trials + 1), beta = strength (trials - s + 1/2) / (trials + 1); without trials
    alpha = beta = 1/2. `strength` is what alpha + beta tend to where outcomes are forgotten at a constant rate:
    1 / (1 - lowest retention), 8 in SPO.

    SPO: arXiv 2509.13232, with the smoothing of its released code.
    """
    successes = jnp.asarray(successes, jnp.float32)
    chex.assert_rank(successes, 1)
    scale = strength / (trials + 1) if trials else 1.0
    return init(
        len(successes), successes=scale * (successes + 0.5), failures=scale * (trials - successes + 0.5), window=window
    )


def update(
    state: PromptStatistics, prompts: jax.Array, outcomes: jax.Array, retention: float | jax.Array = 1.0
) -> tuple[PromptStatistics, jax.Array]:
    """alpha <- retention alpha + r, beta <- retention beta + (1 - r); the outcome joins the window.

    A prompt that comes twice is updated twice, in the order given.

    Args:
      state: from `init`, `from_trials` or the last `update`.
      prompts: [B] int, indices of the data set.
      outcomes: [B] in [0, 1]; NaN = not scorable, which leaves its prompt as it was.
      retention: a number or [B]: the share of what was known before that is kept.

    Returns:
      (state, rates [B]): the `success_rate` of the prompts after the update.

    Raises:
      ValueError: an index outside the data set or an outcome outside [0, 1], if they are known (not traced).
    """
    chex.assert_rank([prompts, outcomes], 1)
    chex.assert_equal_shape([prompts, outcomes])
    size = state.successes.shape[0]
    if not isinstance(prompts, jax.core.Tracer):
        low, high = int(np.min(prompts, initial=0)), int(np.max(prompts, initial=0))
        if low < 0 or high >= size:
            raise ValueError(f"prompt {low if low < 0 else high} is not among the {size} prompts with statistics")
    if not isinstance(outcomes, jax.core.Tracer):
        known = np.asarray(outcomes)[~np.isnan(outcomes)]
        if ((known < 0) | (known > 1)).any():
            raise ValueError(f"outcomes must lie in [0, 1], not {known.min()} ... {known.max()}; map the rewards first")
    retention = jnp.broadcast_to(jnp.asarray(retention, jnp.float32), prompts.shape)
    return _update(state, jnp.asarray(prompts), jnp.asarray(outcomes, jnp.float32), retention)


@jax.jit
def _update(state, prompts, outcomes, retention):
    def one(state, visit):
        prompt, outcome, kept = visit
        scorable = ~jnp.isnan(outcome)
        outcome = jnp.where(scorable, outcome, 0)
        kept = jnp.where(scorable, kept, 1)
        successes = state.successes.at[prompt].set(kept * state.successes[prompt] + outcome)
        failures = state.failures.at[prompt].set(kept * state.failures[prompt] + jnp.where(scorable, 1 - outcome, 0))
        window = state.window
        if window is not None:
            place = state.visits[prompt] % window.shape[1]
            window = window.at[prompt, place].set(jnp.where(scorable, outcome, window[prompt, place]))
        return PromptStatistics(successes, failures, state.visits.at[prompt].add(scorable), window), None

    state, _ = jax.lax.scan(one, state, (prompts, outcomes, retention))
    return state, success_rate(state)[prompts]


def success_rate(state: PromptStatistics) -> jax.Array:
    """[X]: alpha / (alpha + beta), the mean of the posterior; 0 without a prior and before the first outcome."""
    return safe_divide(state.successes, state.successes + state.failures)


def effective_count(state: PromptStatistics) -> jax.Array:
    """[X]: alpha + beta, the number of outcomes that the rate is worth."""
    return state.successes + state.failures


def recent_rate(state: PromptStatistics) -> jax.Array:
    """[X]: the mean of the last H outcomes (of all, if there is no window); 0 for a prompt not seen yet."""
    if state.window is None:
        return success_rate(state)
    seen = jnp.minimum(state.visits, state.window.shape[1])
    return safe_divide(state.window.sum(axis=1), seen.astype(jnp.float32))
