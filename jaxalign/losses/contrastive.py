"""Losses of paired embeddings: InfoNCE, NT-Xent, CLIP and SigLIP.

Row i of `a` belongs to row i of `b`; every other row is a negative. All four take the unit vectors u(v) = v / ||v|| and
their cosines S_ij = u(a_i) . u(b_j), and share these arguments:

  valid: [B], 0 for padding rows: neither anchors nor candidates, whatever they hold. None: all rows count.
  ids: [B] integers; rows of equal id are the same thing, so that they are not each other's negatives. None: all differ.
  chunk: anchors at a time; at most [chunk, B] similarities exist at once, see `similarity.sum_rows`. None: all at once.
  axis_name: axes of a mesh that the rows lie over, inside `jax.shard_map`. The result is this device's part: its own
    anchors against the candidates of all devices on these axes. Parts of all devices add up to the whole (psum). Take
    the gradient of that sum outside the shard_map: inside, with check_vma=False, each device would get the gradient of
    all devices' sums, too large by their number. Axes that are not named separate pools: with the inner axis of a mesh
    (group, member) alone the negatives of a row are those of its own group (M2-Encoder, arXiv 2401.15896).
  ring: pass blocks of candidates from device to device instead of gathering them all, see `ring.over_candidates`.

Results are sums over the anchors that count, in nats and in float32 or better, with weight = their number. A NaN in a
row that counts comes out as a NaN. The zero vector has cosine 0 with everything, and gradient 0.
"""

import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.ring import LOG_SUM, MAX, NEVER, SUM, sum_over_candidates
from jaxalign.losses.similarity import row_numbers, unit
from jaxalign.objective import Objective

Axes = str | tuple[str, ...] | None
MAX_LOG_SCALE = math.log(100)


class _Pairs(NamedTuple):
    a: jax.Array  # [B, D] unit vectors; 0 in rows that do not count
    b: jax.Array
    counts: jax.Array  # [B] bool
    ids: jax.Array  # [B]


def _pairs(a: jax.Array, b: jax.Array, valid: jax.Array | None, ids: jax.Array | None, axis_name: Axes) -> _Pairs:
    chex.assert_rank([a, b], 2)
    chex.assert_equal_shape([a, b])
    rows = len(a)
    chex.assert_shape([x for x in (valid, ids) if x is not None], (rows,))
    counts = jnp.ones(rows, bool) if valid is None else jnp.asarray(valid) != 0
    ids = row_numbers(rows, axis_name) if ids is None else jnp.asarray(ids)
    # Chosen before anything is computed: a NaN in a product comes back in the gradient even if it is dropped later.
    a, b = (unit(jnp.where(counts[:, None], x, 0)) for x in (a, b))
    return _Pairs(a, b, counts, ids)


def _negatives(anchors, candidates) -> jax.Array:
    """[n, N]: which candidates are negatives of which anchor; its partner has its own id. All extra ones are."""
    found = candidates["counts"] & (anchors["id"][:, None] != candidates["id"])
    if "extra" not in candidates:
        return found
    return jnp.concatenate([found, jnp.ones((len(found), len(candidates["extra"])), bool)], -1)


_JOINS = {"log_sum": LOG_SUM, "best": MAX}


def _look(anchors, candidates) -> dict[str, jax.Array]:
    logits = anchors["x"] @ candidates["x"].T
    if "extra" in candidates:
        logits = jnp.concatenate([logits, anchors["x"] @ candidates["extra"].T], -1)
    logits = jnp.where(_negatives(anchors, candidates), logits, NEVER)
    return {"log_sum": jax.nn.logsumexp(logits, -1), "best": jax.lax.stop_gradient(logits).max(-1)}


def _compare(anchors, found) -> dict[str, jax.Array]:
    """log(exp(z_ii) + sum_j exp(z_ij)) - z_ii, and whether the partner is nearer than all negatives.

    Written as softplus(log_sum_j z_ij - z_ii): exactly 0 without negatives, and no difference of large numbers where
    the loss is small.
    """
    counts, positive = anchors["counts"], jnp.sum(anchors["x"] * anchors["partner"], -1)
    losses = jnp.where(counts, jax.nn.softplus(found["log_sum"] - positive), 0)
    return {"loss": losses, "hits": (counts & (positive > found["best"])).astype(losses.dtype)}


def _against_negatives(x, partners, candidates, pairs: _Pairs, extra: jax.Array | None = None, **how):
    """(sum of the losses, number of hits) of anchors `x`, which have the scale in them."""
    anchors = {"x": x, "partner": partners, "id": pairs.ids, "counts": pairs.counts}
    others = {"x": candidates, "id": pairs.ids, "counts": pairs.counts}
    if extra is not None:
        others["extra"] = unit(extra)
    found = sum_over_candidates(_look, _JOINS, _compare, anchors, others, **how)
    return found["loss"], found["hits"]


def _objective(total: jax.Array, counts: jax.Array, hits: dict[str, jax.Array], **constants: jax.Array) -> Objective:
    """Of the rows that count; `hits` of them had what is reported as a share."""
    weight = counts.astype(total.dtype).sum()
    sums = hits | {name: value * weight for name, value in constants.items()}
    return Objective(total, weight, {name: (jax.lax.stop_gradient(value), weight) for name, value in sums.items()})


def _inverse(temperature: float | jax.Array, dtype) -> jax.Array:
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive")
    return 1 / jnp.asarray(temperature, dtype)


def info_nce(
    a: jax.Array,
    b: jax.Array,
    temperature: float | jax.Array,
    *,
    extra_negatives: jax.Array | None = None,
    valid: jax.Array | None = None,
    ids: jax.Array | None = None,
    chunk: int | None = None,
    axis_name: Axes = None,
    ring: bool = False,
) -> Objective:
    """sum_i [log sum_j exp(S_ij / tau) - S_ii / tau]: each row of `a` finds its partner among the rows of `b`.

    log B minus its mean is a lower bound of the mutual information of a and b, so the mean is log B where embeddings
    say nothing. Gradient flows into `a`, `b`, `extra_negatives` and `temperature`.

    Args:
      a, b: [B, D].
      temperature: tau > 0. 0.07 (CLIP), 0.05 (sentences).
      extra_negatives: [M, D], candidates that are nobody's partner; with `axis_name` this device's part of them.
      valid, ids, chunk, axis_name, ring: see the module.

    Returns:
      An Objective with the metric accuracy: the share of anchors nearer to their partner than to any negative.

    Raises:
      ValueError: a number as temperature that is not positive; from `over_candidates`.

    arXiv 1807.03748.
    """
    pairs = _pairs(a, b, valid, ids, axis_name)
    how: dict[str, Any] = dict(chunk=chunk, axis_name=axis_name, ring=ring)
    x = pairs.a * _inverse(temperature, pairs.a.dtype)
    total, hits = _against_negatives(x, pairs.b, pairs.b, pairs, extra_negatives, **how)
    return _objective(total, pairs.counts, {"accuracy": hits})


def clip_loss(
    a: jax.Array,
    b: jax.Array,
    log_scale: float | jax.Array,
    *,
    valid: jax.Array | None = None,
    ids: jax.Array | None = None,
    chunk: int | None = None,
    axis_name: Axes = None,
    ring: bool = False,
) -> Objective:
    """sum_i 1/2 [log sum_j exp(z_ij) - z_ii + log sum_j exp(z_ji) - z_ii] with z = exp(min(log_scale, log 100)) S.

    `info_nce` in both directions with a learnable scale. The second direction is a problem of its own, rows of `b`
    against all `a`, so that no device needs a column. Gradient flows into `a`, `b`, and into `log_scale` while it is
    below log 100.

    Args:
      a, b: [B, D].
      log_scale: scalar; log(1 / 0.07) at the start in the paper.
      valid, ids, chunk, axis_name, ring: see the module.

    Returns:
      An Objective with the metrics accuracy_a_to_b and accuracy_b_to_a (the share of anchors nearer to their partner
      than to any negative), accuracy (their mean) and scale.

    Raises:
      ValueError: from `over_candidates`.

    arXiv 2103.00020.
    """
    pairs = _pairs(a, b, valid, ids, axis_name)
    how: dict[str, Any] = dict(chunk=chunk, axis_name=axis_name, ring=ring)
    scale = jnp.exp(jnp.minimum(jnp.asarray(log_scale, pairs.a.dtype), MAX_LOG_SCALE))
    forth, found_b = _against_negatives(scale * pairs.a, pairs.b, pairs.b, pairs, **how)
    back, found_a = _against_negatives(scale * pairs.b, pairs.a, pairs.a, pairs, **how)
    hits = {"accuracy_a_to_b": found_b, "accuracy_b_to_a": found_a, "accuracy": (found_b + found_a) / 2}
    return _objective((forth + back) / 2, pairs.counts, hits, scale=scale)


def nt_xent(
    a: jax.Array,
    b: jax.Array,
    temperature: float | jax.Array,
    *,
    valid: jax.Array | None = None,
    ids: jax.Array | None = None,
    chunk: int | None = None,
    axis_name: Axes = None,
    ring: bool = False,
) -> Objective:
    """Two views of B things as 2 B rows: each finds its partner among the 2 B - 1 others.

    With Z = [a; b] and p(i) the partner of row i: sum_i [log sum_{k != i} exp(S_ik / tau) - S_ip(i) / tau] over all
    2 B anchors, which is also the weight. A row itself is left out by its number; its similarity is never subtracted.
    Gradient flows into `a`, `b` and `temperature`.

    Args:
      a, b: [B, D].
      temperature: tau > 0. 0.5 for small images in the paper.
      valid, ids, chunk, axis_name, ring: see the module; `chunk` counts the 2 B anchors.

    Returns:
      An Objective with weight = 2 x rows that count and the metric accuracy, as in `info_nce`.

    Raises:
      ValueError: a number as temperature that is not positive; from `over_candidates`.

    SimCLR, arXiv 2002.05709.
    """
    pairs = _pairs(a, b, valid, ids, axis_name)
    how: dict[str, Any] = dict(chunk=chunk, axis_name=axis_name, ring=ring)
    both, partners = jnp.concatenate([pairs.a, pairs.b]), jnp.concatenate([pairs.b, pairs.a])
    doubled = pairs._replace(counts=jnp.tile(pairs.counts, 2), ids=jnp.tile(pairs.ids, 2))
    x = both * _inverse(temperature, both.dtype)
    total, hits = _against_negatives(x, partners, both, doubled, **how)
    return _objective(total, doubled.counts, {"accuracy": hits})


def siglip_loss(
    a: jax.Array,
    b: jax.Array,
    log_scale: float | jax.Array,
    bias: float | jax.Array,
    *,
    valid: jax.Array | None = None,
    ids: jax.Array | None = None,
    chunk: int | None = None,
    axis_name: Axes = None,
    ring: bool = False,
) -> Objective:
    """sum_ij softplus(-y_ij z_ij) with z = exp(log_scale) S + bias, and y = 1 for partners, -1 for all other pairs.

    The sum over pairs is divided by B, not by B^2. Every pair is judged alone; nothing is normalised over the batch.
    Gradient flows into `a`, `b`, `log_scale` and `bias`.

    Args:
      a, b: [B, D].
      log_scale: scalar; log 10 at the start in the paper. It is not clipped.
      bias: scalar; -10 at the start. With 0 the many negatives of a large batch rule the first steps.
      valid, ids, chunk, axis_name, ring: see the module.

    Returns:
      An Objective with the metrics accuracy, as in `info_nce`, scale and bias.

    Raises:
      ValueError: from `over_candidates`.

    arXiv 2303.15343.
    """
    pairs = _pairs(a, b, valid, ids, axis_name)
    dtype = pairs.a.dtype
    scale, bias = jnp.exp(jnp.asarray(log_scale, dtype)), jnp.asarray(bias, dtype)

    def look(anchors, candidates):
        logits = anchors["x"] @ candidates["x"].T + anchors["bias"][:, None]
        negative = _negatives(anchors, candidates)
        best = jnp.where(negative, jax.lax.stop_gradient(logits), NEVER).max(-1)
        return {"sum": jnp.where(negative, jax.nn.softplus(logits), 0).sum(-1), "best": best}

    def compare(anchors, found):
        counts, positive = anchors["counts"], jnp.sum(anchors["x"] * anchors["partner"], -1) + anchors["bias"]
        losses = jnp.where(counts, jax.nn.softplus(-positive) + found["sum"], 0)
        return {"loss": losses, "hits": (counts & (positive > found["best"])).astype(dtype)}

    candidates = {"x": pairs.b, "id": pairs.ids, "counts": pairs.counts}
    anchors = {"x": scale * pairs.a, "partner": pairs.b, "bias": jnp.broadcast_to(bias, pairs.ids.shape)}
    anchors |= {"id": pairs.ids, "counts": pairs.counts}
    joins = {"sum": SUM, "best": MAX}
    found = sum_over_candidates(look, joins, compare, anchors, candidates, chunk=chunk, axis_name=axis_name, ring=ring)
    return _objective(found["loss"], pairs.counts, {"accuracy": found["hits"]}, scale=scale, bias=bias)
