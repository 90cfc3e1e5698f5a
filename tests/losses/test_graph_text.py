"""Graph-text alignment against NumPy, with its band, its classifier and over devices."""

import functools

import jax
import numpy as np
import pytest

from jaxalign.losses import graph_text
from tests.compiled import compiled

ROWS, DIM, CLASSES = 8, 4, 3
VALID = np.arange(ROWS) != 5
LABELLED = np.arange(ROWS) % 2 == 1


def problem():
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, ROWS)
    return (*random.normal(size=(2, ROWS, DIM)), random.normal(size=(ROWS, CLASSES)), labels)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def by_hand(graph, text, logits, labels, low, high):
    """(alignment, penalty, compensation, mean similarity) of the rows that count."""
    g, t = (x[VALID] / np.linalg.norm(x[VALID], axis=-1, keepdims=True) for x in (graph, text))
    z = g @ t.T / 0.1
    align = -(np.diag(log_softmax(z)) + np.diag(log_softmax(z.T))).mean() / 2
    similarity = (g * t).sum(-1).mean()
    penalty = max(similarity - high, 0) ** 2 + max(low - similarity, 0) ** 2
    known = VALID & LABELLED
    surprise = -log_softmax(logits)[known, labels[known]].mean()
    return align, penalty, surprise, similarity


def spoiled(x):
    """NaN where the row is padding."""
    return np.where(VALID.reshape(-1, *(1,) * (x.ndim - 1)), x, np.nan)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-1.0, -0.5), (0.6, 0.9)])
def test_values_against_numpy(low, high):
    graph, text, logits, labels = problem()
    align, penalty, surprise, similarity = by_hand(graph, text, logits, labels, low, high)
    assert (penalty == 0) == (low <= similarity <= high)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def function(graph, text, logits):
        options = dict(alignment_weight=0.4, low=low, high=high, gap_weight=7.0, compensation_weight=0.3, valid=VALID)
        found = graph_text.graph_text_loss(graph, text, logits, labels, LABELLED, **options)
        return found.total / found.weight, found

    with jax.enable_x64(True):
        (value, found), gradients = jax.device_get(function(*(spoiled(x) for x in (graph, text, logits))))
    np.testing.assert_allclose(value, 0.4 * align + 7 * penalty + 0.3 * surprise, rtol=1e-6)
    names = ("alignment", "gap_penalty", "compensation", "similarity")
    for name, want in zip(names, (align, penalty, surprise, similarity), strict=True):
        np.testing.assert_allclose(found.metrics[name][0] / found.metrics[name][1], want, rtol=1e-6)
    assert all(np.isfinite(g).all() and (g[~VALID] == 0).all() for g in gradients)
    assert (gradients[2][~LABELLED] == 0).all()


def test_the_band_pulls_back_from_both_sides():
    graph, text, logits = (x.astype(np.float32) for x in problem()[:3])
    labels = problem()[3]

    def gap_only(text, low, high):
        options = dict(alignment_weight=0.0, compensation_weight=0.0, low=low, high=high)
        return graph_text.graph_text_loss(graph, text, logits, labels, LABELLED, **options).total

    def similarity(x):
        return (
            sum(a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(graph, np.asarray(x), strict=True)) / ROWS
        )

    gradient = jax.jit(jax.grad(gap_only))
    for low, high, sign in ((-1.0, -0.9, -1), (0.9, 1.0, 1)):
        moved = text - 1e-3 * np.asarray(gradient(text, low, high))
        assert sign * (similarity(moved) - similarity(text)) > 0
    assert not np.asarray(gradient(text, -1.0, 1.0)).any()


def test_no_label_no_compensation_and_fused_predictions():
    graph, text, logits, labels = problem()
    found = jax.jit(graph_text.graph_text_loss)(graph, text, logits, labels, np.zeros(ROWS))
    assert float(found.metrics["compensation"][0]) == 0
    by_text, by_class, both = (
        np.asarray(compiled(graph_text.fused_probabilities)(logits, graph, text[:CLASSES], share=share))
        for share in (0.0, 1.0, 0.25)
    )
    np.testing.assert_allclose(by_class, np.exp(log_softmax(logits)), rtol=1e-6)
    np.testing.assert_allclose(both, 0.25 * by_class + 0.75 * by_text, rtol=1e-5)
    np.testing.assert_allclose(both.sum(-1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match=r"share=2 must be in \[0, 1\]"):
        graph_text.fused_probabilities(logits, graph, text[:CLASSES], share=2)


@pytest.mark.devices(4)
def test_over_devices():
    graph, text, logits, labels = problem()
    arrays = (graph, text, logits, labels, LABELLED, VALID)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ("data",))
    rows, everywhere = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def loss(axis_name, graph, text, logits, labels, labelled, valid):
        options = dict(low=0.5, high=0.6, valid=valid, axis_name=axis_name)
        found = graph_text.graph_text_loss(graph, text, logits, labels, labelled, **options)
        return found if axis_name is None else jax.lax.psum(found, axis_name)

    spread = jax.shard_map(functools.partial(loss, "data"), mesh=mesh, in_specs=(rows,) * 6, out_specs=everywhere)
    with jax.enable_x64(True):
        want = jax.device_get(jax.jit(functools.partial(loss, None))(*arrays))
        got = jax.device_get(jax.jit(spread)(*arrays))
        of_total = [
            jax.device_get(jax.jit(jax.grad(lambda g, f=f: f(g, *arrays[1:]).total))(graph))
            for f in (functools.partial(loss, None), spread)
        ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, want)
    np.testing.assert_allclose(of_total[1], of_total[0], rtol=1e-8, atol=1e-11)
