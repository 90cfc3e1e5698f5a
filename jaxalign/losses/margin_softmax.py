"""Classification by cosines with a margin at the true class: CosFace and ArcFace."""

import math
from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.similarity import row_numbers, sum_rows, unit
from jaxalign.objective import Objective

MarginKind = Literal["cosface", "arcface", "none"]
AxisName = str | tuple[str, ...] | None
_EDGE = 1e-7  # the angle has no derivative at cosine 1 and -1


def margin_logits(x: jax.Array, w: jax.Array, labels: jax.Array, margin: float, kind: MarginKind) -> jax.Array:
    """[N, C] cosines c_ij = u(x_i) . u(w_j), made smaller at the true class j = y_i.

    With u the unit vector and theta the angle of the true class:

    | kind    | logit of the true class                                                 |
    |---------|-------------------------------------------------------------------------|
    | cosface | c - m                                                                   |
    | arcface | cos(theta + m) where theta <= pi - m, else c - m sin(m): falls with theta |
    | none    | c                                                                       |

    Cosines of the true class are clipped to [-1 + 1e-7, 1 - 1e-7] for the angle, beyond which no gradient flows.
    Gradient flows into `x` and `w`.

    Args:
      x: [N, D] embeddings, of any length.
      w: [C, D] class vectors, of any length.
      labels: [N] classes; the row of a label outside [0, C) has no true class and gets no margin.
      margin: m, of cosine (cosface) or in radians (arcface); at least 0, and below pi for arcface.
      kind: see above.

    Returns:
      Logits without a scale, in float32 or better.

    Raises:
      ValueError: unknown kind, or a margin out of its range.

    CosFace: arXiv 1801.09414; ArcFace: arXiv 1801.07698.
    """
    if kind not in get_args(MarginKind):
        raise ValueError(f"unknown kind of margin {kind!r}; choose one of {get_args(MarginKind)}")
    if margin < 0 or (kind == "arcface" and margin >= math.pi):
        raise ValueError(f"margin={margin} of {kind} must be at least 0" + " and below pi" * (kind == "arcface"))
    chex.assert_rank([x, w, labels], [2, 2, 1])
    cosines = unit(x) @ unit(w).T
    if kind == "none":
        return cosines
    # The margin is taken of one number a row; the others never see an angle.
    true = labels[:, None] == jnp.arange(len(w))
    c = jnp.where(true, cosines, 0).sum(-1, keepdims=True)
    return jnp.where(true, _with_margin(c, margin, kind), cosines)


def _with_margin(c: jax.Array, margin: float, kind: MarginKind) -> jax.Array:
    if kind == "cosface":
        return c - margin
    inside = jnp.clip(c, -1 + _EDGE, 1 - _EDGE)
    turned = inside * math.cos(margin) - jnp.sqrt(1 - inside * inside) * math.sin(margin)
    return jnp.where(c >= -math.cos(margin), turned, c - margin * math.sin(margin))


def own_labels(labels: jax.Array, classes: int, class_axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
    """(labels [N] among this device's `classes`, which of them are), where class vectors lie over devices.

    A label of another device's class becomes `classes`, which is none. Without an axis all labels are this device's.
    """
    if class_axis_name is None:
        return labels, jnp.ones(len(labels), bool)
    own = labels - row_numbers(classes, class_axis_name)[0]
    here = (own >= 0) & (own < classes)
    return jnp.where(here, own, classes), here


def class_logsumexp(logits: jax.Array, class_axis_name: AxisName) -> jax.Array:
    """[N], the same on all devices: log of the sum of exp over [N, C] logits of all classes."""
    if class_axis_name is None:
        return jax.nn.logsumexp(logits, -1)
    largest = jax.lax.pmax(jax.lax.stop_gradient(logits).max(-1), class_axis_name)
    return largest + jnp.log(jax.lax.psum(jnp.exp(logits - largest[:, None]).sum(-1), class_axis_name))


def nearest_class(cosines: jax.Array, class_axis_name: AxisName) -> jax.Array:
    """[N], the same on all devices: which class has the largest of the [N, C] cosines, of equal ones the first."""
    if class_axis_name is None:
        return cosines.argmax(-1)
    best, numbers = cosines.max(-1), row_numbers(cosines.shape[1], class_axis_name)
    leads = best == jax.lax.pmax(best, class_axis_name)
    return jax.lax.pmin(jnp.where(leads, numbers[cosines.argmax(-1)], jnp.iinfo(numbers.dtype).max), class_axis_name)


def margin_softmax_loss(
    x: jax.Array,
    w: jax.Array,
    labels: jax.Array,
    *,
    scale: float | jax.Array = 64.0,
    margin: float = 0.5,
    kind: MarginKind = "arcface",
    valid: jax.Array | None = None,
    chunk: int | None = None,
    class_axis_name: AxisName = None,
) -> Objective:
    """Cross-entropy of `scale * margin_logits`, in nats, summed over the rows that count.

    Gradient flows into `x`, `w` and `scale`. Rows do not interact: on several devices each takes the loss of its own
    rows against all class vectors, and the sums add up. Class vectors too many for one device lie over the devices of
    `class_axis_name`; each then holds [N, its classes] logits, and [N] numbers of every row go between them.

    Args:
      x, w, labels, margin, kind: see `margin_logits`.
      scale: s, the length that unit vectors are given; 64 in both papers, with margin 0.35 (cosface) or 0.5 (arcface).
      valid: [N], 0 for rows that do not count, whatever they hold. None: all count.
      chunk: rows at a time, whose [chunk, C] logits exist at once. None: all at once.
      class_axis_name: axes that class vectors lie over, inside `jax.shard_map`: `w` is this device's part, in the order
        of the devices and of one size everywhere. `x` and `labels`, of all classes, are the same along these axes. The
        objective is this device's part: a row counts where its class is. A label of no class counts nowhere.

    Returns:
      An Objective with weight = rows that count, and the metric accuracy: the share of rows whose true class has the
      largest cosine (without the margin; of equal cosines the first).

    Raises:
      ValueError: from `margin_logits` and `sum_rows`.
    """
    chex.assert_rank([x, w, labels], [2, 2, 1])
    counts = jnp.ones(len(x), bool) if valid is None else jnp.asarray(valid) != 0
    anchors = {"x": jnp.where(counts[:, None], x, 0), "label": jnp.where(counts, labels, 0), "counts": counts}

    def cross_entropy(anchors, w):
        label, here = own_labels(anchors["label"], len(w), class_axis_name)
        logits = scale * margin_logits(anchors["x"], w, label, margin, kind)
        cosines = jax.lax.stop_gradient(unit(anchors["x"]) @ unit(w).T)
        losses = class_logsumexp(logits, class_axis_name) - jnp.take_along_axis(logits, label[:, None], 1)[:, 0]
        counts = anchors["counts"] & here
        hits = counts & (nearest_class(cosines, class_axis_name) == anchors["label"])
        found = {"loss": losses, "hits": hits, "counts": counts}
        return {name: jnp.where(counts, value, 0).astype(losses.dtype) for name, value in found.items()}

    found = sum_rows(cross_entropy, anchors, w, chunk=chunk)
    return Objective(found["loss"], found["counts"], {"accuracy": (found["hits"], found["counts"])})
