"""Supervised contrastive loss: all rows of one label are each other's positives."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.ring import LOG_SUM, MAX, NEVER, SUM, sum_over_candidates
from jaxalign.losses.similarity import row_numbers, unit
from jaxalign.objective import Objective, safe_divide

_JOINS = {
    "log_sum": LOG_SUM,
    "positives": SUM,
    "count": SUM,
    "nearest_positive": MAX,
    "nearest_negative": MAX,
}


def _look(anchors, candidates):
    s = anchors["x"] @ candidates["x"].T
    other = candidates["counts"] & (anchors["row"][:, None] != candidates["row"])
    same = anchors["label"][:, None] == candidates["label"]
    positive, constant = other & same, jax.lax.stop_gradient(s)
    return {
        "log_sum": jax.nn.logsumexp(jnp.where(other, s, NEVER), -1),
        "positives": jnp.where(positive, s, 0).sum(-1),
        "count": positive.astype(s.dtype).sum(-1),
        "nearest_positive": jnp.where(positive, constant, NEVER).max(-1),
        "nearest_negative": jnp.where(other & ~same, constant, NEVER).max(-1),
    }


def _compare(anchors, found) -> dict[str, jax.Array]:
    counts = anchors["counts"] & (found["count"] > 0)
    losses = found["log_sum"] - safe_divide(found["positives"], found["count"])
    hits = found["nearest_positive"] > found["nearest_negative"]
    all_of = {
        "loss": losses,
        "weight": jnp.ones_like(losses),
        "accuracy": hits.astype(losses.dtype),
        "positives": found["count"],
    }
    return {name: jnp.where(counts, value, 0) for name, value in all_of.items()}


def supcon_loss(
    x: jax.Array,
    labels: jax.Array,
    temperature: float | jax.Array,
    *,
    valid: jax.Array | None = None,
    chunk: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    ring: bool = False,
) -> Objective:
    """sum_i [log sum_{k != i} exp(s_ik) - mean_{p in P(i)} s_ip], s = u(x) u(x)^T / tau, over anchors with a positive.

    P(i) are the other rows with the label of i; the log-sum contains them. The mean stands outside of the logarithm
    (the "out" form). With every label on exactly two rows it is NT-Xent. Gradient flows into `x` and `temperature`.

    Args:
      x: [N, D]; the views of one thing are rows of one label.
      labels: [N] integers.
      temperature: tau > 0; 0.1 in the paper.
      valid, chunk, axis_name, ring: see `jaxalign.losses.contrastive`.

    Returns:
      An Objective with weight = rows that have a positive, and over these the metrics accuracy (the share whose nearest
      row has their label) and positives (their mean number).

    Raises:
      ValueError: a number as temperature that is not positive; from `over_candidates`.

    arXiv 2004.11362.
    """
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive")
    chex.assert_rank([x, labels], [2, 1])
    chex.assert_equal_shape_prefix([x, labels], 1)
    counts = jnp.ones(len(x), bool) if valid is None else jnp.asarray(valid) != 0
    x = unit(jnp.where(counts[:, None], x, 0))
    rows = {"label": jnp.asarray(labels), "row": row_numbers(len(x), axis_name)}
    anchors = rows | {"x": x / jnp.asarray(temperature, x.dtype), "counts": counts}
    candidates = rows | {"x": x, "counts": counts}
    how: dict[str, Any] = dict(chunk=chunk, axis_name=axis_name, ring=ring)
    found = sum_over_candidates(_look, _JOINS, _compare, anchors, candidates, **how)
    metrics = {name: (found[name], found["weight"]) for name in ("accuracy", "positives")}
    return Objective(found["loss"], found["weight"], metrics)
