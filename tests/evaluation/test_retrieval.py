"""Retrieval metrics against loops over ranks; top-k, rank correlation and accept rates against sorting."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxalign.evaluation import retrieval


def by_loops(scores, relevant, candidates, k):
    """One query: every metric from the definition, None without a relevant document."""
    order = sorted((i for i in range(len(scores)) if candidates[i]), key=lambda i: (-scores[i], i))
    hits = [bool(relevant[i]) for i in order]
    total = sum(hits)
    if not total:
        return None
    first = hits.index(True) + 1
    precision = [sum(hits[:r]) / r for r in range(1, len(hits) + 1)]
    gain = [1 / math.log2(r + 1) for r in range(1, len(hits) + 1)]
    head = list(zip(hits, precision, gain, strict=True))[:k]
    return {
        f"accuracy@{k}": float(any(hits[:k])),
        f"precision@{k}": sum(hits[:k]) / k,
        f"recall@{k}": sum(hits[:k]) / total,
        f"mrr@{k}": 1 / first if first <= k else 0.0,
        f"ndcg@{k}": sum(g for h, _, g in head if h) / sum(gain[: min(total, k)]),
        f"map@{k}": sum(p for h, p, _ in head if h) / min(total, k),
        "mrr": 1 / first,
        "map@r": sum(p for h, p in list(zip(hits, precision, strict=True))[:total] if h) / total,
    }


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 12))
def test_metrics_equal_their_definitions(seed, documents, k):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, (6, documents))  # many ties
    relevant, candidates = random.random((6, documents)) < 0.4, random.random((6, documents)) < 0.8
    expected = [by_loops(*row, k) for row in zip(scores, relevant, candidates, strict=True)]
    kept = [row for row in expected if row is not None]
    found = retrieval.retrieval_values(scores, relevant, (k,), candidates=candidates)
    assert all(len(values) == len(kept) for values in found.values())
    if not kept:
        with pytest.raises(ValueError, match="no query has a relevant document"):
            retrieval.retrieval_metrics(scores, relevant, (k,), candidates=candidates)
        return
    assert set(found) == set(kept[0])
    for name, values in found.items():
        np.testing.assert_allclose(values, [row[name] for row in kept], rtol=1e-12, err_msg=name)
    means = retrieval.retrieval_metrics(scores, relevant, (k,), candidates=candidates)
    assert means.pop("n_skipped") == len(expected) - len(kept)
    assert means == {name: pytest.approx(np.mean(values)) for name, values in found.items()}


def test_a_perfect_and_a_worst_ranking():
    relevant = np.array([[1, 1, 0, 0, 0]], bool)
    best = retrieval.retrieval_metrics([[5, 4, 3, 2, 1]], relevant, (2,))
    assert {name: value for name, value in best.items() if value != 1} == {"n_skipped": 0}
    worst = retrieval.retrieval_metrics([[1, 2, 3, 4, 5]], relevant, (3,))
    assert worst["accuracy@3"] == worst["ndcg@3"] == worst["map@r"] == 0
    assert worst["mrr"] == 1 / 4


def test_ties_are_ranked_by_index():
    assert retrieval.retrieval_metrics([[1, 1, 1]], [[False, True, False]], (1, 2))["mrr"] == 1 / 2


def test_what_is_no_candidate_may_hold_anything():
    scores, candidates = [[np.nan, 1.0, 2.0]], [[False, True, True]]
    assert retrieval.retrieval_metrics(scores, [[True, True, False]], candidates=candidates)["mrr"] == 1 / 2
    with pytest.raises(ValueError, match=r"score at \(0, 0\) is NaN"):
        retrieval.retrieval_metrics(scores, [[True, True, False]])


def test_impossible_arguments_of_the_metrics():
    with pytest.raises(ValueError, match="must be"):
        retrieval.retrieval_metrics(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"cutoffs \(0,\) must be at least 1"):
        retrieval.retrieval_metrics(np.ones((2, 3)), np.ones((2, 3)), (0,))


def test_retrieval_by_label_leaves_the_query_out():
    x = [[1.0, 0.0], [0.9, 0.1], [0.0, 2.0], [0.0, 0.0], [0.1, 1.0]]
    found = retrieval.same_label_retrieval(x, [0, 0, 1, 2, 0])
    # Rows 0 and 1 find each other, the nearest of row 4 is of another class, rows 2 and 3 are alone.
    assert found["accuracy@1"] == pytest.approx(2 / 3)
    assert found["n_skipped"] == 2


@pytest.mark.parametrize(("k", "chunk"), [(3, 4), (5, 5), (7, 100), (23, 6)])
def test_top_k_in_chunks_equals_a_stable_sort(k, chunk):
    random = np.random.default_rng(0)
    queries, corpus = random.integers(-2, 3, (6, 3)).astype(np.float32), random.integers(-2, 3, (23, 3))
    products = queries @ corpus.T
    order = np.argsort(-products, axis=-1, kind="stable")[:, :k]
    find = jax.jit(retrieval.topk_chunked, static_argnums=(2, 3))
    scores, ids = find(jnp.asarray(queries), jnp.asarray(corpus, jnp.float32), k, chunk)
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(scores, np.take_along_axis(products, order, -1))


@pytest.mark.optimised
def test_top_k_never_holds_all_scores():
    shapes = (jax.ShapeDtypeStruct((64, 8), jnp.float32), jax.ShapeDtypeStruct((1 << 16, 8), jnp.float32))
    compiled = jax.jit(retrieval.topk_chunked, static_argnums=(2, 3)).lower(*shapes, 10, 1024).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.2 * 4 * 64 * (1 << 16)


@pytest.mark.parametrize(("k", "chunk", "message"), [(0, 4, "k=0"), (4, 4, "k=4"), (1, 0, "chunk")])
def test_impossible_top_k(k, chunk, message):
    with pytest.raises(ValueError, match=message):
        retrieval.topk_chunked(jnp.ones((2, 3)), jnp.ones((3, 3)), k, chunk)


def test_spearman_with_ties():
    random = np.random.default_rng(0)
    a, b = random.integers(0, 6, (2, 40))
    assert retrieval.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert retrieval.spearman(a, np.exp(a)) == pytest.approx(1)
    assert math.isnan(retrieval.spearman(a, np.ones(40)))
    with pytest.raises(ValueError, match="one length above 1"):
        retrieval.spearman([1], [1])
    with pytest.raises(ValueError, match="NaN"):
        retrieval.spearman([1, np.nan], [1, 2])


def test_true_accept_rate_is_the_best_that_keeps_to_the_false_accept_rate():
    random = np.random.default_rng(0)
    scores, same = random.integers(0, 30, 200) / 10, random.random(200) < 0.3
    rates = (0.0, 0.01, 0.1, 0.5, 1.0)
    for rate, found in zip(rates, retrieval.true_accept_rate(scores, same, rates), strict=True):
        thresholds = [t for t in [-np.inf, *scores] if (scores[~same] > t).mean() <= rate + 1e-12]
        assert found == max((scores[same] > t).mean() for t in thresholds)


def test_true_accept_rate_of_all_pairs():
    x = [[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [1.0, 1.0]]
    # Genuine: (0, 1) at 0.999 and (2, 3) at 0.71; of the impostors (1, 3) is highest at 0.74.
    np.testing.assert_allclose(retrieval.pair_true_accept_rate(x, [0, 0, 1, 1], [0.0, 0.5]), [0.5, 1.0])


def test_impossible_accept_rates():
    with pytest.raises(ValueError, match="here are 2 and 0"):
        retrieval.true_accept_rate([1, 2], [True, True], [0.1])
    with pytest.raises(ValueError, match="NaN"):
        retrieval.true_accept_rate([1, np.nan], [True, False], [0.1])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        retrieval.true_accept_rate([1, 2], [True, False], [1.1])
