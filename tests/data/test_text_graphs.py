"""Made text graphs: edges tell communities, texts tell meanings, and nodes name their neighbours."""

import numpy as np
import pytest

from jaxalign.data.sources import load_source
from jaxalign.data.text_graphs import MEANINGS, TEXT, make_graph
from jaxalign.errors import UserError


def test_edges_tell_communities_and_texts_tell_meanings():
    random = np.random.default_rng(0)
    means = random.normal(size=(MEANINGS, TEXT))
    graph = make_graph(random, means, np.eye(TEXT), 300)
    np.testing.assert_array_equal(graph.adjacency, graph.adjacency.T)
    same = graph.community[:, None] == graph.community
    assert graph.adjacency[same].mean() > 4 * graph.adjacency[~same].mean()
    nearest = ((graph.text[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == graph.meaning).mean() > 0.7


def test_both_graphs_and_the_classes_are_of_one_world():
    train, held_out, classes = (load_source(f"text_graph?split={s}&nodes=90") for s in ("train", "held_out", "classes"))
    assert (len(train), len(held_out), len(classes)) == (90, 90, MEANINGS)
    assert [one["meaning"] for one in classes] == list(range(MEANINGS))
    assert train[0]["features"].shape == (TEXT + 12,) and not np.array_equal(train[0]["text"], held_out[0]["text"])
    means = np.stack([one["text"] for one in classes])
    for source in (train, held_out):
        nodes = [source[index] for index in range(90)]
        assert all(row in nodes[one]["neighbours"] for row, node in enumerate(nodes) for one in node["neighbours"])
        nearest = [((means - node["text"]) ** 2).sum(-1).argmin() for node in nodes]
        assert np.mean(np.equal(nearest, [node["meaning"] for node in nodes])) > 0.6


def test_mistakes_are_named():
    with pytest.raises(UserError, match="text_graph split 'test' is not known; choose one of train, held_out, classes"):
        load_source("text_graph?split=test")
    with pytest.raises(UserError, match="text_graph nodes=5 must be more than 12"):
        load_source("text_graph?nodes=5")
