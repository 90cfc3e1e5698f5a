"""How well scores rank documents: recall, precision, MRR, NDCG, MAP; Spearman's rank correlation; TAR at FAR.

Relevance is yes or no. Documents are ranked by falling score, and equal scores by rising index, so that a number does
not depend on the sorting algorithm. Queries without a relevant document have no value in any of these metrics: they
are left out and counted.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def retrieval_values(scores, relevant, ks: Sequence[int] = (1, 10), *, candidates=None) -> dict[str, np.ndarray]:
    """The metrics of every query that has a relevant document, name -> [Q'] in the order of the queries.

    With R the number of relevant documents of a query, h_r = 1 if the document at rank r is relevant, and
    precision_r = (h_1 + ... + h_r) / r:

    | name        | value                                                                            |
    |-------------|----------------------------------------------------------------------------------|
    | accuracy@k  | 1 if there is a hit among the first k (called Recall@k in deep metric learning)  |
    | precision@k | hits among the first k / k                                                       |
    | recall@k    | hits among the first k / R                                                       |
    | mrr@k       | 1 / rank of the first hit; 0 if that is beyond k                                 |
    | ndcg@k      | sum_{r <= k} h_r / log2(r + 1), by the same sum of min(R, k) hits in front       |
    | map@k       | sum_{r <= k} h_r precision_r / min(R, k)                                         |
    | mrr, map@r  | mrr without limit; map with the limit k = R (arXiv 2003.08505)                   |

    Args:
      scores: [Q, N], larger is nearer.
      relevant: [Q, N] bool.
      ks: cutoffs, each at least 1; may exceed N.
      candidates: [Q, N] bool, the documents that take part; None: all. A query that is itself part of the corpus
        excludes itself here.

    Raises ValueError: unequal shapes, NaN among scores, a cutoff below 1.
    """
    scores, relevant = np.asarray(scores, np.float64), np.asarray(relevant, bool)
    candidates = np.ones(scores.shape, bool) if candidates is None else np.asarray(candidates, bool)
    if scores.ndim != 2 or not scores.shape == relevant.shape == candidates.shape:
        raise ValueError(
            f"scores, relevant and candidates must be [Q, N], not {scores.shape}, {relevant.shape}, {candidates.shape}"
        )
    if np.isnan(scores[candidates]).any():
        place = tuple(int(i) for i in np.argwhere(np.isnan(scores) & candidates)[0])
        raise ValueError(f"the score at {place} is NaN; an order needs numbers")
    if any(k < 1 for k in ks):
        raise ValueError(f"cutoffs {tuple(ks)} must be at least 1")
    relevant = relevant & candidates
    kept = relevant.any(-1)
    # The last key counts first. The sort is stable, so that ties stay in the order of the documents.
    order = np.lexsort((-np.where(candidates, scores, 0), ~candidates), axis=-1)
    hits = np.take_along_axis(relevant, order, -1)[kept].astype(np.float64)
    total = hits.sum(-1)
    ranks = np.arange(1, scores.shape[1] + 1)
    found = hits.cumsum(-1)
    gains = 1 / np.log2(ranks + 1)
    ideal = np.concatenate([[0.0], np.cumsum(gains)])
    first = 1 + hits.argmax(-1) if hits.size else np.ones(0)
    precisions = hits * found / ranks

    values = {}
    for k in ks:
        top = slice(0, k)
        among = hits[:, top].sum(-1)
        possible = np.minimum(total, k)
        values[f"accuracy@{k}"] = (among > 0).astype(np.float64)
        values[f"precision@{k}"] = among / k
        values[f"recall@{k}"] = among / total
        values[f"mrr@{k}"] = np.where(first <= k, 1 / first, 0)
        values[f"ndcg@{k}"] = (hits * gains)[:, top].sum(-1) / ideal[possible.astype(int)]
        values[f"map@{k}"] = precisions[:, top].sum(-1) / possible
    values["mrr"] = 1 / first
    values["map@r"] = np.where(ranks <= total[:, None], precisions, 0).sum(-1) / total
    return values


def retrieval_metrics(scores, relevant, ks: Sequence[int] = (1, 10), *, candidates=None) -> dict[str, float]:
    """Means of `retrieval_values` over queries, and `n_skipped`, the number of queries without a relevant document.

    Raises ValueError as `retrieval_values` does, and if no query has a relevant document.
    """
    values = retrieval_values(scores, relevant, ks, candidates=candidates)
    kept = len(values["mrr"])
    if not kept:
        raise ValueError("no query has a relevant document among its candidates")
    return {name: float(x.mean()) for name, x in values.items()} | {"n_skipped": float(len(scores) - kept)}


def same_label_retrieval(x, labels, ks: Sequence[int] = (1,)) -> dict[str, float]:
    """`retrieval_metrics` of embeddings x [N, D] among themselves: cosine scores, other rows of the same label."""
    x, labels = np.asarray(x, np.float64), np.asarray(labels)
    x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return retrieval_metrics(x @ x.T, labels[:, None] == labels, ks, candidates=~np.eye(len(x), dtype=bool))


def topk_chunked(queries: jax.Array, corpus: jax.Array, k: int, chunk: int = 4096) -> tuple[jax.Array, jax.Array]:
    """The k largest inner products of each query with a corpus, and the rows they belong to: (scores, ids) [Q, k].

    Falling scores, equal ones by rising id. At most `chunk` columns of scores exist at a time, in float32 or better.
    Normalise both sides for cosine similarity. Works under jit; not meant for gradients.

    Args:
      queries: [Q, D].
      corpus: [N, D]; all products must be finite.
      k: at most N.
      chunk: corpus rows at a time; need not divide N.

    Raises ValueError: k outside 1..N, chunk below 1.
    """
    count = corpus.shape[0]
    if not 1 <= k <= count:
        raise ValueError(f"k={k} must lie between 1 and the {count} rows of the corpus")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    chunk = min(chunk, count)
    dtype = jnp.promote_types(jnp.result_type(queries, corpus), jnp.float32)

    def step(best, number):
        # The last block is moved back to lie inside the corpus; what was seen before does not count again.
        start = jnp.minimum(number * chunk, count - chunk)
        ids = start + jnp.arange(chunk)
        block = jax.lax.dynamic_slice_in_dim(corpus, start, chunk)
        scores = jnp.matmul(queries, block.T, preferred_element_type=dtype)
        scores = jnp.where(ids >= number * chunk, scores, -jnp.inf)
        # Earlier rows stand in front, and top_k takes the first of equals.
        scores = jnp.concatenate([best[0], scores], -1)
        ids = jnp.concatenate([best[1], jnp.broadcast_to(ids, (queries.shape[0], chunk))], -1)
        scores, places = jax.lax.top_k(scores, k)
        return (scores, jnp.take_along_axis(ids, places, -1)), None

    shape = (queries.shape[0], k)
    start = (jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, jnp.arange(0).dtype))
    return jax.lax.scan(step, start, jnp.arange(-(-count // chunk)))[0]


def spearman(scores, gold) -> float:
    """Rank correlation of predicted and given similarities [P], ties by their mean rank: the score of STS tasks.

    Pearson's correlation of the ranks, in [-1, 1]; NaN if one side is constant.

    Raises ValueError: unequal shapes, fewer than two values, NaN.
    """
    scores, gold = np.asarray(scores, np.float64), np.asarray(gold, np.float64)
    if scores.ndim != 1 or scores.shape != gold.shape or scores.size < 2:
        raise ValueError(f"spearman needs two vectors of one length above 1, not {scores.shape} and {gold.shape}")
    if np.isnan(scores).any() or np.isnan(gold).any():
        raise ValueError("spearman: a value is NaN; a rank needs numbers")
    from scipy import stats  # slow to import, and only this needs it

    a, b = (stats.rankdata(x) - (len(x) + 1) / 2 for x in (scores, gold))
    spread = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread else math.nan


def true_accept_rate(scores, same, false_accept_rates: Sequence[float]) -> np.ndarray:
    """TAR at FAR: the share of genuine pairs accepted where at most a share FAR of the impostors is, [len(rates)].

    A pair is accepted if its score exceeds the (floor(FAR n) + 1)-th largest of the n impostor scores; it is the lowest
    threshold that keeps to the rate, and ties at the threshold are refused.

    Args:
      scores: [P], larger is more alike.
      same: [P] bool, True for genuine pairs.
      false_accept_rates: each in [0, 1].

    Raises ValueError: no genuine or no impostor pair, NaN, a rate outside [0, 1].
    """
    scores, same = np.asarray(scores), np.asarray(same, bool)
    genuine, impostor = scores[same], np.sort(scores[~same])
    if not genuine.size or not impostor.size:
        raise ValueError(f"TAR at FAR needs genuine and impostor pairs; here are {genuine.size} and {impostor.size}")
    if np.isnan(scores).any():
        raise ValueError("TAR at FAR: a score is NaN; a threshold needs numbers")
    rates = np.asarray(false_accept_rates, np.float64)
    if ((rates < 0) | (rates > 1)).any():
        raise ValueError(f"false accept rates {rates.tolist()} must lie in [0, 1]")
    allowed = np.floor(rates * impostor.size + 1e-9).astype(int)  # 0.29 of 100 are 29
    return np.asarray(
        [(genuine > impostor[-1 - n]).mean() if n < impostor.size else 1.0 for n in allowed], dtype=np.float64
    )


def pair_true_accept_rate(x, labels, false_accept_rates: Sequence[float]) -> np.ndarray:
    """`true_accept_rate` of the cosines of all pairs of embeddings x [N, D], genuine if their labels are equal."""
    x, labels = np.asarray(x, np.float64), np.asarray(labels)
    x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    first, second = np.triu_indices(len(x), 1)
    return true_accept_rate((x @ x.T)[first, second], labels[first] == labels[second], false_accept_rates)
