"""How far each annotator's preferences can be trusted: the reliability of LCPO (RE-PO), followed by EM."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxalign.losses.aggregation import where_counted
from jaxalign.objective import safe_divide

Estimate = Literal["ema", "full"]
LEAST = 1e-4  # reliabilities stay in [LEAST, 1 - LEAST], so that their logits are finite


class LabelConfidence(NamedTuple):
    """Arrays [K] over annotators, float32."""

    reliability: jax.Array  # eta: the probability that a label of the annotator is right
    seen: jax.Array  # labels seen of each; a metric only


def init(annotators: int, reliability: float = 0.9) -> LabelConfidence:
    """The state before the first batch: every annotator is as reliable as that.

    Raises:
      ValueError: no annotator; a reliability outside (0, 1).
    """
    if annotators < 1:
        raise ValueError(f"annotators={annotators} of the label confidence must be at least 1")
    if not 0 < reliability < 1:
        raise ValueError(f"reliability={reliability} must be in (0, 1); at 1/2 nothing is learned")
    start = jnp.full(annotators, reliability, jnp.float32)
    return LabelConfidence(jnp.clip(start, LEAST, 1 - LEAST), jnp.zeros(annotators, jnp.float32))


def known(annotator: jax.Array, annotators: int) -> jax.Array:
    """[B] bool: whether a number is that of an annotator; others must not count (a negative index would wrap)."""
    return (annotator >= 0) & (annotator < annotators)


def confidence(
    margin: jax.Array, state: LabelConfidence | jax.Array, annotator: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """E-step: (w, eta of each label), w = p eta / (p eta + (1 - p)(1 - eta)) = sigmoid(z + logit(eta)), [B].

    Args:
      margin: z [B], logits of the model's own belief p that the label is right.
      state: a LabelConfidence, or its reliabilities [K].
      annotator: [B] int; one that is not in [0, K) is as reliable as a coin (w = p).

    Constants: neither the margin nor the reliability receives gradient.

    arXiv 2509.24159, E-step.
    """
    reliability = jnp.asarray(state.reliability if isinstance(state, LabelConfidence) else state)
    annotator = jnp.asarray(annotator)
    inside = known(annotator, len(reliability))
    eta = jnp.where(inside, reliability[jnp.where(inside, annotator, 0)], 0.5)
    eta = jnp.clip(eta, LEAST, 1 - LEAST).astype(margin.dtype)
    logit = jnp.log(eta) - jnp.log1p(-eta)
    return jax.lax.stop_gradient((jax.nn.sigmoid(margin + logit), eta))


def update(
    state: LabelConfidence,
    confidences: jax.Array,
    annotator: jax.Array,
    mask: jax.Array,
    *,
    rate: float = 0.1,
    estimate: Estimate = "ema",
    axis_name: str | None = None,
) -> tuple[LabelConfidence, jax.Array]:
    """M-step: eta_k <- (1 - rate) eta_k + rate mean(w of the labels of annotator k), with the w of the old eta.

    "full" puts the mean itself in its place, for batches that hold all labels. An annotator without labels in the
    batch keeps its eta.

    Args:
      state: from `init` or the last `update`.
      confidences: w [B] of `confidence`.
      annotator: [B] int; numbers outside [0, K) count nothing.
      mask: [B], 1 = the label counts. What is not finite is left out.
      rate: in (0, 1].
      axis_name: inside a shard_map, the axis over which sums and counts are added.

    Returns:
      (state, reliability [K]): for the NEXT batch. Constants.

    Raises:
      ValueError: unknown estimate, rate out of range.

    arXiv 2509.24159, M-step of the reliability.
    """
    if estimate not in get_args(Estimate):
        raise ValueError(f"unknown estimate {estimate!r} of the reliability; choose one of {get_args(Estimate)}")
    if not 0 < rate <= 1:
        raise ValueError(f"rate={rate} of the reliability must be in (0, 1]")
    size = len(state.reliability)
    annotator = jnp.asarray(annotator)
    inside = known(annotator, size)
    confidences = jax.lax.stop_gradient(jnp.asarray(confidences))
    counts = jnp.asarray(mask, jnp.float32) * inside * jnp.isfinite(confidences)
    values = counts * where_counted(confidences, counts, jnp.float32)
    index = jnp.where(inside, annotator, 0)
    sums = jnp.stack([jnp.zeros(size).at[index].add(x) for x in (values, counts)])
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    total, count = sums
    step = 1.0 if estimate == "full" else rate
    moved = (1 - step) * state.reliability + step * safe_divide(total, count)
    reliability = jnp.clip(jnp.where(count > 0, moved, state.reliability), LEAST, 1 - LEAST).astype(jnp.float32)
    return LabelConfidence(reliability, (state.seen + count).astype(jnp.float32)), reliability
