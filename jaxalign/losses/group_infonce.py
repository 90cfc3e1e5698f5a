"""Contrastive losses of queries with groups of documents: Group-InfoNCE, single positives, many positives."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.ring import NEVER
from jaxalign.losses.similarity import map_rows, row_numbers, unit
from jaxalign.objective import Objective, safe_divide


def _inputs(queries, documents, mask, ids, axis_name):
    """Unit vectors with 0 where nothing counts: queries [B, D], documents [B, m, D], mask and validity as numbers."""
    chex.assert_rank([queries, documents, mask], [2, 3, 2])
    chex.assert_equal_shape_prefix([documents, mask], 2)
    chex.assert_equal_shape_prefix([queries, documents], 1)
    counts = jnp.asarray(mask) != 0
    valid = counts.any(-1)
    # Before the norm as well as after it: what stands in a masked slot must not reach the gradient.
    queries = unit(jnp.where(valid[:, None], queries, 0))
    documents = unit(jnp.where(counts[..., None], documents, 0))
    dtype = jnp.promote_types(queries.dtype, documents.dtype)
    return {
        "query": queries.astype(dtype),
        "documents": documents.astype(dtype),
        "counts": counts,
        "valid": valid,
        "id": row_numbers(len(valid), axis_name) if ids is None else jnp.asarray(ids),
    }


def _others(anchors, candidates):
    """[k, B] bool: valid candidates that are neither the anchor nor a copy of it."""
    return candidates["valid"][None, :] & (anchors["id"][:, None] != candidates["id"][None, :])


def _log_sum_exp(cosines, kept, temperature):
    """[k]: log sum e^{cosine / temperature} over blocks of candidates [k, ...]; about NEVER where there is none."""
    logits = jnp.where(jnp.concatenate(kept, -1), jnp.concatenate(cosines, -1) / temperature, NEVER)
    return jax.nn.logsumexp(logits, axis=-1)


def group_infonce_loss(
    queries: jax.Array,
    documents: jax.Array,
    mask: jax.Array,
    *,
    temperature: float = 0.07,
    penalty_weight: float = 1.0,
    query_negatives: bool = True,
    ids: jax.Array | None = None,
    chunk: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Objective:
    """With the cosines sim_ijk of query i and document k of group j, G_ij their mean over the n_j documents of group j:

      l_i = -G_ii / temperature + log( sum_j e^{G_ij / temperature} + sum_{j != i} e^{cos(q_i, q_j) / temperature} )
      v_i = sum_k (sim_iik - G_ii)^2 / (n_i - 1)
      total = sum_i l_i + penalty_weight / temperature^2 sum_i v_i

    over the number of queries that have documents. The mean is taken before the exponential; G_ij is the product of the
    query with the mean of the unit vectors of group j, so that a group costs as much as a document. The variance
    keeps all documents of a query at one distance from it. Gradient flows into queries and documents through both.

    Args:
      queries: [B, D]; not normalised.
      documents: [B, m, D], row i belongs to query i.
      mask: [B, m], 1 = there is a document. A row without any is no query, and no candidate of others. A single
        document has v = 0.
      temperature: of cosines.
      penalty_weight: 1 in the paper; its factor 1 / temperature^2 (204 at 0.07) is apart from it.
      query_negatives: whether other queries are candidates.
      ids: [B] int; rows of equal id are the same query, and no negatives of each other. None: all differ.
      chunk: queries at a time.
      axis_name: axes over which rows are spread, inside `jax.shard_map`: candidates are those of all devices, and the
        objective is this device's part.

    Returns:
      An Objective with contrastive (mean l), group_variance (mean v), group_similarity (mean G_ii) and accuracy (how
      often no other group has a larger G).

    Raises:
      ValueError: temperature not positive.

    Group-InfoNCE: arXiv 2505.12925. There a group of one document gives NaN, and the similarity of a query to itself
    is subtracted from the sum, which costs digits; here it never enters.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive")
    rows = _inputs(queries, documents, mask, ids, axis_name)
    dtype = rows["query"].dtype
    counts, valid = rows["counts"].astype(dtype), rows["valid"].astype(dtype)
    number = counts.sum(-1)
    rows["centre"] = safe_divide(rows["documents"].sum(1), number[:, None])

    def contrast(a, c):
        others = _others(a, c)
        own = (a["query"] * a["centre"]).sum(-1)
        groups = a["query"] @ c["centre"].T
        logits, kept = [own[:, None], groups], [jnp.ones_like(others[:, :1]), others]
        if query_negatives:
            logits.append(a["query"] @ c["query"].T)
            kept.append(others)
        lse = _log_sum_exp(logits, kept, temperature)
        best = jnp.where(others, groups, -jnp.inf).max(-1, initial=-jnp.inf)
        return {"loss": lse - own / temperature, "own": own, "accuracy": own >= best}

    candidates = {name: rows[name] for name in ("query", "centre", "valid", "id")}
    found = map_rows(contrast, candidates, candidates, chunk=chunk, axis_name=axis_name)
    own = jnp.einsum("bd,bmd->bm", rows["query"], rows["documents"])
    deviation = jnp.where(rows["counts"], own - found["own"][:, None], 0)
    variance = (deviation**2).sum(-1) / jnp.maximum(number - 1, 1)
    contrastive = jnp.where(rows["valid"], found["loss"], 0).sum()
    penalty = variance.sum()
    weight = valid.sum()
    sums = {
        "contrastive": contrastive,
        "group_variance": penalty,
        "group_similarity": (valid * found["own"]).sum(),
        "accuracy": (valid * found["accuracy"]).sum(),
    }
    return Objective(
        contrastive + penalty_weight / temperature**2 * penalty,
        weight,
        {name: (jax.lax.stop_gradient(x), weight) for name, x in sums.items()},
    )


def single_positive_infonce_loss(queries: jax.Array, documents: jax.Array, valid: jax.Array, **options) -> Objective:
    """sum_i -log e^{q_i d_i} / ( sum_j e^{q_i d_j} + sum_{j != i} e^{q_i q_j} ), with cosines over temperature.

    One document a query, [B, D] each, valid [B]. Options are those of `group_infonce_loss`, of which it is the case of
    groups of one.
    """
    return group_infonce_loss(queries, documents[:, None], valid[:, None], **options)


def multi_positive_infonce_loss(
    queries: jax.Array,
    documents: jax.Array,
    mask: jax.Array,
    *,
    temperature: float = 0.07,
    query_negatives: bool = True,
    ids: jax.Array | None = None,
    chunk: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Objective:
    """Every document of a group is a positive of its own:

      l_ik = -log e^{s_iik} / ( e^{s_iik} + sum_{j != i, k'} e^{s_ijk'} + sum_{j != i} e^{cos(q_i, q_j) / temperature} )

    with s = sim / temperature; the sum over all (i, k) over their number. Other documents of the same group do not
    enter. Arguments, gradient and errors as in `group_infonce_loss`; chunks hold [chunk, B m] numbers.

    Returns:
      An Objective with group_variance and group_similarity as there (means over queries).

    The baseline of arXiv 2505.12925.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive")
    rows = _inputs(queries, documents, mask, ids, axis_name)
    dtype = rows["query"].dtype

    def negatives(a, c):
        others = _others(a, c)
        flat = c["documents"].reshape(-1, c["documents"].shape[-1])
        logits = [a["query"] @ flat.T]
        kept = [(others[:, :, None] & c["counts"]).reshape(len(others), -1)]
        if query_negatives:
            logits.append(a["query"] @ c["query"].T)
            kept.append(others)
        return _log_sum_exp(logits, kept, temperature)

    anchors = {name: rows[name] for name in ("query", "id")}
    candidates = {name: rows[name] for name in ("query", "documents", "counts", "valid", "id")}
    against = map_rows(negatives, anchors, candidates, chunk=chunk, axis_name=axis_name)
    own = jnp.einsum("bd,bmd->bm", rows["query"], rows["documents"])
    loss = jax.nn.softplus(against[:, None] - own / temperature)
    counts = rows["counts"].astype(dtype)
    number, valid = counts.sum(-1), rows["valid"].astype(dtype)
    mean = safe_divide((counts * own).sum(-1), number)
    variance = (counts * (own - mean[:, None]) ** 2).sum(-1) / jnp.maximum(number - 1, 1)
    sums = {"group_variance": variance.sum(), "group_similarity": mean.sum()}
    return Objective(
        jnp.where(rows["counts"], loss, 0).sum(),
        number.sum(),
        {name: (jax.lax.stop_gradient(x), valid.sum()) for name, x in sums.items()},
    )
