"""Graph-text alignment that keeps a gap: a contrastive pull, a band for the similarity, and a classifier beside it."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.aggregation import sum_type, where_counted
from jaxalign.losses.contrastive import clip_loss
from jaxalign.losses.similarity import unit
from jaxalign.objective import Objective, safe_divide


def graph_text_loss(
    graph: jax.Array,
    text: jax.Array,
    class_logits: jax.Array,
    labels: jax.Array,
    labelled: jax.Array,
    *,
    alignment_weight: float | jax.Array = 1.0,
    low: float | jax.Array = -jnp.inf,
    high: float | jax.Array = jnp.inf,
    temperature: float = 0.1,
    gap_weight: float = 50.0,
    compensation_weight: float = 0.5,
    valid: jax.Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Objective:
    """n times alignment_weight L_align + gap_weight L_gap + compensation_weight L_class, with weight n rows.

        L_align   CLIP's loss of u(graph), u(text) at 1 / temperature
        L_gap     relu(s - high)^2 + relu(low - s)^2 of the mean cosine s of the pairs
        L_class   mean cross-entropy of the labelled rows, 0 without any

    The rows interact. Gradient flows into `graph`, `text` and `class_logits`; weight and band are constants, from
    `jaxalign.controllers.modality_gap`. The classifier should read the graph encoder's own output, not a projection
    that it shares with the text.

    Args:
      graph, text: [B, D] of the same nodes.
      class_logits: [B, C]; labels: [B] int; labelled: [B], which of them are known.
      valid: [B], false for padding.
      axis_name: inside `jax.shard_map`, axes that the rows lie over: s and L_class are means over all devices.

    Returns:
      An Objective with the metrics similarity, alignment, gap_penalty, compensation, centroid_gap (of the mean vectors)
      and accuracy (see `clip_loss`). The similarity is what the controller is updated with.

    Raises ValueError: a temperature that is not positive.

    After LLM4GTA (arXiv 2510.12087), whose equations were not at hand: all formulas are this project's own.
    """
    chex.assert_rank([graph, text, class_logits, labels, labelled], [2, 2, 2, 1, 1])
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive")
    valid = jnp.ones(len(graph), bool) if valid is None else jnp.asarray(valid) != 0
    align = clip_loss(graph, text, -jnp.log(temperature), valid=valid, axis_name=axis_name)
    dtype = align.total.dtype
    graph, text = (unit(jnp.where(valid[:, None], x, 0)).astype(dtype) for x in (graph, text))
    known = valid & (jnp.asarray(labelled) != 0)
    log_p = jax.nn.log_softmax(where_counted(class_logits, known[:, None], sum_type(class_logits)), -1)
    right = jnp.take_along_axis(log_p, jnp.where(known, labels, 0)[:, None], 1)[:, 0]
    sums = {
        "rows": valid.sum().astype(dtype),
        "similarity": jnp.sum(graph * text),
        "known": known.sum().astype(dtype),
        "surprise": -jnp.where(known, right, 0).sum().astype(dtype),
        "apart": jnp.sum(graph - text, 0),
    }
    rows = sums["rows"]
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    similarity = safe_divide(sums["similarity"], sums["rows"])
    low, high = (jax.lax.stop_gradient(jnp.asarray(x, dtype)) for x in (low, high))
    penalty = jax.nn.relu(similarity - high) ** 2 + jax.nn.relu(low - similarity) ** 2
    compensation = safe_divide(sums["surprise"], sums["known"])
    weight = jax.lax.stop_gradient(jnp.asarray(alignment_weight, dtype))
    total = weight * align.total + rows * (gap_weight * penalty + compensation_weight * compensation)
    centroids = jax.lax.stop_gradient(safe_divide(sums["apart"], sums["rows"]))
    means = {
        "similarity": similarity,
        "gap_penalty": penalty,
        "compensation": compensation,
        "centroid_gap": jnp.linalg.norm(centroids),
    }
    metrics = {name: (jax.lax.stop_gradient(rows * value), rows) for name, value in means.items()}
    metrics |= {"alignment": (jax.lax.stop_gradient(align.total), rows), "accuracy": align.metrics["accuracy"]}
    return Objective(total, rows, metrics)


def fused_probabilities(
    class_logits: jax.Array, graph: jax.Array, class_text: jax.Array, *, share: float = 0.5, temperature: float = 0.1
) -> jax.Array:
    """[n, C]: share softmax(class_logits) + (1 - share) softmax(u(graph) u(class_text)^T / temperature).

    Predictions of both spaces; share 0 needs no classifier (zero-shot). class_text is [C, D].

    Raises ValueError: a share outside [0, 1], a temperature that is not positive.

    After LLM4GTA (arXiv 2510.12087).
    """
    if not 0 <= share <= 1 or temperature <= 0:
        raise ValueError(f"share={share} must be in [0, 1] and temperature={temperature} positive")
    by_text = jax.nn.softmax(unit(graph) @ unit(class_text).T / temperature, -1)
    return share * jax.nn.softmax(class_logits, -1) + (1 - share) * by_text
