"""The study of graph-text alignment runs."""

import numpy as np

from experiments.studies import llm4gta as study


def test_the_study_runs():
    found = study.run("full", 0, nodes=160, steps=3)
    assert all(np.isfinite(value) and -1 <= value <= 1 for value in found.values())


def test_edges_tell_communities_and_texts_tell_meanings():
    random = np.random.default_rng(0)
    means = random.normal(size=(study.MEANINGS, study.TEXT))
    graph = study.make_graph(random, means, np.eye(study.TEXT), 300)
    adjacency, community = np.asarray(graph.adjacency), np.asarray(graph.community)
    np.testing.assert_array_equal(adjacency, adjacency.T)
    same = community[:, None] == community
    assert adjacency[same].mean() > 4 * adjacency[~same].mean()
    nearest = ((np.asarray(graph.text)[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == np.asarray(graph.meaning)).mean() > 0.7
