"""How strongly two modalities are pulled together: less and less as they come nearer than is natural to them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class ModalityGap(NamedTuple):
    average: jax.Array  # moving average of the similarity of pairs, in -1 .. 1
    reference: jax.Array  # mean similarity over the warm-up: what is natural to the encoders
    steps: jax.Array  # int32, batches seen


class GapDecision(NamedTuple):
    weight: jax.Array  # of the alignment loss of the next batch, in least_weight .. 1
    low: jax.Array  # the band in which the similarity may lie; infinite during the warm-up
    high: jax.Array


def init() -> ModalityGap:
    """The state before the first batch. The warm-up belongs before alignment moves the encoders, or at its start."""
    zero = jnp.zeros((), jnp.float32)
    return ModalityGap(zero, zero, jnp.zeros((), jnp.int32))


def decide(
    state: ModalityGap, *, warmup: int = 10, headroom: float = 0.35, slack: float = 0.1, least_weight: float = 0.1
) -> GapDecision:
    """high = reference + headroom (1 - reference), low = reference - slack,
    weight = clip(1 - (average - reference) / (high - reference), least_weight, 1); during the warm-up 1 and no band.

    Raises ValueError: an option out of its range (see `update`).
    """
    if warmup < 1 or not 0 <= headroom <= 1 or slack < 0 or not 0 < least_weight <= 1:
        raise ValueError(
            f"warmup={warmup}, headroom={headroom}, slack={slack}, least_weight={least_weight}: want warmup >= 1, "
            "headroom in [0, 1], slack >= 0 and least_weight in (0, 1]"
        )
    room = headroom * (1 - state.reference)
    # Without room any approach is too much.
    weight = jnp.clip(1 - (state.average - state.reference) / jnp.maximum(room, 1e-8), least_weight, 1)
    warm = state.steps >= warmup
    return GapDecision(
        jnp.where(warm, weight, 1),
        jnp.where(warm, state.reference - slack, -jnp.inf),
        jnp.where(warm, state.reference + room, jnp.inf),
    )


def update(
    state: ModalityGap,
    similarity: jax.Array,
    *,
    decay: float = 0.9,
    warmup: int = 10,
    headroom: float = 0.35,
    slack: float = 0.1,
    least_weight: float = 0.1,
) -> tuple[ModalityGap, GapDecision]:
    """average <- decay average + (1 - decay) similarity; over the first `warmup` batches reference <- their mean.

    Args:
      state: from `init` or the last `update`.
      similarity: mean cosine of the pairs of the batch just used, of all devices. Not finite: nothing changes.
      decay: in [0, 1); the first batch sets the average.
      warmup: batches that make the reference, at least 1.
      headroom: share of what is left to 1 that the similarity may rise above the reference, in [0, 1].
      slack: by how much it may fall below, at least 0.
      least_weight: which the pull never falls below, in (0, 1].

    Returns:
      (state, decision): for the NEXT batch, as `decide(state)`; both are constants.

    Raises ValueError: an option out of its range.

    After LLM4GTA (arXiv 2510.12087), whose text was not at hand: the rule is this project's own.
    """
    similarity = jax.lax.stop_gradient(jnp.asarray(similarity, state.average.dtype))
    average = jnp.where(state.steps == 0, similarity, decay * state.average + (1 - decay) * similarity)
    mean = (state.reference * state.steps + similarity) / (state.steps + 1)
    reference = jnp.where(state.steps < warmup, mean, state.reference)
    moved = ModalityGap(average, reference, state.steps + 1)
    state = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(similarity), new, old), moved, state)
    options = dict(headroom=headroom, slack=slack, least_weight=least_weight)
    return state, decide(state, warmup=warmup, **options)
