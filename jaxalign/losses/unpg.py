"""Margin softmax whose negatives are class vectors and pairs of the batch (unified negative pair generation)."""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.aggregation import float_sums
from jaxalign.losses.margin_softmax import AxisName, class_logsumexp, margin_logits, nearest_class, own_labels
from jaxalign.losses.ring import NEVER
from jaxalign.losses.similarity import gathered, row_numbers, unit
from jaxalign.objective import Metrics, Objective, safe_divide

HeadKind = Literal["arcface", "cosface", "magface"]
Pool = Literal["global", "device"]

# MagFace (arXiv 2103.06627) as used with UNPG: norms between which the margin grows, and the margins there.
NORM_RANGE, MARGIN_RANGE, NORM_WEIGHT = (10.0, 110.0), (0.45, 0.8), 35.0


def whisker_mask(values: jax.Array, mask: jax.Array, whisker: float | None) -> jax.Array:
    """[P] bool: the values that a box plot would not call outliers; a constant.

    With the n values of mask 1 in rising order, Q1 the one at index floor(n / 4) and Q3 at floor(3 n / 4):

        kept:  Q1 - whisker (Q3 - Q1) <= value <= Q3 + whisker (Q3 - Q1)

    Quartiles are values of the set, never interpolated. whisker None or infinite keeps all.
    """
    values, mask = jax.lax.stop_gradient(values), mask != 0
    if whisker is None or whisker == float("inf"):
        return mask
    number = mask.sum()
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf))
    first, third = ordered[number // 4], ordered[3 * number // 4]
    reach = whisker * (third - first)
    return mask & (values >= first - reach) & (values <= third + reach)


def wdfs_gap(x: jax.Array, labels: jax.Array, valid: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """(min of cosines of equal labels - max of those of different labels, whether both kinds exist), scalars.

    Above 0 one threshold tells all pairs of the batch apart: the well-discriminative feature space of the paper.
    Where a kind of pair is missing the gap is 0. Negative labels are unknown.
    """
    s, positive, negative = _batch_pairs(*_rows(x, labels, valid))
    return _gap(s, positive, negative)


def _rows(x, labels, valid):
    labels = jnp.asarray(labels)
    counts = labels >= 0 if valid is None else (labels >= 0) & (jnp.asarray(valid) != 0)
    return float_sums(jnp.where(counts[:, None], x, 0)), jnp.where(counts, labels, 0), counts


def _batch_pairs(x, labels, counts):
    """Cosines [N, N], and which are positive and negative pairs, each unordered pair once."""
    u, number = unit(x), row_numbers(len(labels))
    pair = counts[:, None] & counts & (number[:, None] < number)
    same = labels[:, None] == labels
    return u @ u.T, pair & same, pair & ~same


def _gap(s, positive, negative):
    s = jax.lax.stop_gradient(s)
    both = positive.any() & negative.any()
    gap = jnp.where(positive, s, jnp.inf).min() - jnp.where(negative, s, -jnp.inf).max()
    return jnp.where(both, gap, 0), both


def magface_margins(norms: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(margin, regulariser) of embeddings of these norms, [B] each: long embeddings get larger margins and cost less.

    With a = clip(norm, 10, 110): margin .45 + .35 (a - 10) / 100 in radians, and a / 110^2 + 1 / a, which the loss
    takes 35 times. Gradient flows into norms inside the range.
    """
    (low, high), (first, last) = NORM_RANGE, MARGIN_RANGE
    a = jnp.clip(norms, low, high)
    return first + (last - first) * (a - low) / (high - low), a / high**2 + 1 / a


def _magface_logits(x, w, labels):
    """Cosines with the margin of each embedding's norm at the true class where that cosine is above 0; regularisers."""
    squared = (x * x).sum(-1)
    norms = jnp.sqrt(jnp.where(squared > 0, squared, 1)) * (squared > 0)
    margins, regulariser = magface_margins(norms)
    cosines = margin_logits(x, w, labels, 0.0, "none")
    true = labels[:, None] == jnp.arange(len(w))
    c = jnp.where(true, cosines, 0).sum(-1)
    inside = jnp.clip(c, -1 + 1e-7, 1 - 1e-7)
    turned = inside * jnp.cos(margins) - jnp.sqrt(1 - inside * inside) * jnp.sin(margins)
    return jnp.where(true, jnp.where(c > 0, turned, c)[:, None], cosines), regulariser


def unpg_loss(
    x: jax.Array,
    w: jax.Array,
    labels: jax.Array,
    *,
    scale: float = 64.0,
    margin: float = 0.5,
    kind: HeadKind = "arcface",
    whisker: float | None = 1.5,
    batch_negatives: bool = True,
    pool: Pool = "global",
    valid: jax.Array | None = None,
    axis_name: AxisName = None,
    class_axis_name: AxisName = None,
) -> Objective:
    """With cosines c_ij of row i and class j, t_i that of its own class with the margin, and M the batch's negatives:

      sum_i log( e^{s t_i} + sum_{j != y_i} e^{s c_ij} + sum_{v in M} e^{s v} ) - s t_i

    M holds the cosine of each unordered pair of rows of different classes, once, without outliers (`whisker_mask`). It
    is the same set for every row, whether or not the row is in a pair, so that its log-sum-exp is taken once: memory is
    O(B^2 + B C). Gradient flows into x and w, into M through x, and not through the choice of M.

    Args:
      x: [B, D] embeddings, of any length.
      w: [C, D] class vectors, of any length.
      labels: [B] classes; negative: no label, neither anchor nor in a pair.
      scale: s.
      margin: of the head, see `margin_logits`; not used by magface, whose margin follows from the norm of x.
      kind: arcface, cosface, or magface: `magface_margins`, only where the cosine is above 0, and the regulariser.
      whisker: r of `whisker_mask`; 1.5 for many noisy identities, 1 for few clean ones. None: no filter.
      batch_negatives: False is the margin softmax alone: the baseline, and the limit where a batch has one class.
      pool: with `axis_name`, whether M is that of the rows of all devices or of this one.
      valid: [B] bool. None: all.
      axis_name: axes over which rows are spread, inside `jax.shard_map`. The objective is this device's part.
      class_axis_name: other axes, over which class vectors are spread; see `margin_softmax_loss`. None: w is whole on
        every device.

    Returns:
      An Objective with base_loss (the margin softmax alone) and accuracy (of the cosines without margin); where there
      are pairs of different classes also kept (their share in M), low and high (the smallest and largest cosine in M),
      and wdfs_gap. All are means over rows, of which those of the batch are the same for each.

    Raises:
      ValueError: an unknown kind or pool, a whisker below 0, and as `margin_logits` does.

    UNPG: arXiv 2203.11593. The released ArcFace head lets the logit rise again where theta > pi - margin; here it keeps
    falling (`margin_logits`).
    """
    if kind not in get_args(HeadKind) or pool not in get_args(Pool):
        known = (get_args(HeadKind), get_args(Pool))
        raise ValueError(f"kind={kind!r} or pool={pool!r} is not known; choose from {known[0]}, {known[1]}")
    if whisker is not None and whisker < 0:
        raise ValueError(f"whisker={whisker} cannot be negative")
    chex.assert_rank([x, w, labels], [2, 2, 1])
    chex.assert_equal_shape_prefix([x, labels], 1)
    x, labels, counts = _rows(x, labels, valid)
    regulariser = jnp.zeros((), x.dtype)
    own, here = own_labels(labels, len(w), class_axis_name)
    if kind == "magface":
        logits, regulariser = _magface_logits(x, w, own)
    else:
        logits = margin_logits(x, w, own, margin, kind)
    dtype = logits.dtype
    true = own[:, None] == jnp.arange(len(w))
    target = jnp.where(true, logits, 0).sum(-1)  # where the class is; elsewhere the row does not count
    against = class_logsumexp(jnp.where(true, NEVER, scale * logits), class_axis_name)
    base = jax.nn.softplus(against - scale * target)
    cosines = jax.lax.stop_gradient(margin_logits(x, w, own, 0.0, "none"))
    every, counts = counts, counts & here
    weight = counts.astype(dtype).sum()
    found: dict[str, tuple[jax.Array, jax.Array]] = {
        "base_loss": (base, counts),
        "accuracy": (nearest_class(cosines, class_axis_name) == labels, counts),
    }
    loss = base
    if batch_negatives:
        pairs = gathered((x, labels, every), axis_name if pool == "global" else None)
        s, positive, negative = _batch_pairs(*pairs)
        values = s.reshape(-1)
        kept = whisker_mask(values, negative.reshape(-1), whisker)
        extra = jax.nn.logsumexp(jnp.where(kept, scale * values, NEVER))
        loss = jax.nn.softplus(jnp.logaddexp(against, extra) - scale * target)
        some = negative.any()
        gap, both = _gap(s, positive, negative)
        found |= {
            "kept": (safe_divide(kept.sum().astype(dtype), negative.sum().astype(dtype)), counts & some),
            "low": (jnp.where(some, jnp.where(kept, values, jnp.inf).min(), 0), counts & some),
            "high": (jnp.where(some, jnp.where(kept, values, -jnp.inf).max(), 0), counts & some),
            "wdfs_gap": (gap, counts & both),
        }
    metrics: Metrics = {}
    for name, (value, where) in found.items():
        value = jnp.broadcast_to(jax.lax.stop_gradient(value).astype(dtype), counts.shape)
        metrics[name] = (jnp.where(where, value, 0).sum(), where.astype(dtype).sum())
    return Objective(jnp.where(counts, loss + NORM_WEIGHT * regulariser, 0).sum(), weight, metrics)
