"""Made graphs whose nodes have texts: a text tells what its node means, and edges alone in which community it is."""

from typing import Any, NamedTuple

import numpy as np

from jaxalign.data.rows import Rows
from jaxalign.errors import UserError

MEANINGS, COMMUNITIES, EIGENVECTORS, TEXT = 6, 8, 12, 32
NODES = 800
_SPLITS = ("train", "held_out", "classes")


class TextGraph(NamedTuple):
    features: np.ndarray  # [V, 44]
    adjacency: np.ndarray  # [V, V], 1 where two nodes are joined
    text: np.ndarray  # [V, 32]
    meaning: np.ndarray  # [V]
    community: np.ndarray  # [V]


def make_graph(random: np.random.Generator, means: np.ndarray, view: np.ndarray, nodes: int) -> TextGraph:
    """A graph of nodes with a meaning and a community, drawn independently.

    Two nodes are joined with probability 0.06 in one community and 0.006 otherwise, and 0.012 more if they mean the
    same. A text is the mean of its meaning, means [6, 32], plus 1.6 noise; features are text @ view plus 0.5 noise, and
    12 eigenvectors of the Laplacian with random signs.
    """
    meaning, community = random.integers(MEANINGS, size=nodes), random.integers(COMMUNITIES, size=nodes)
    same, alike = (x[:, None] == x for x in (community, meaning))
    upper = np.triu(random.random((nodes, nodes)) < np.where(same, 0.06, 0.006) + 0.012 * alike, 1)
    adjacency = (upper | upper.T).astype(np.float32)
    text = means[meaning] + 1.6 * random.normal(size=(nodes, TEXT))
    degree = np.maximum(adjacency.sum(1), 1) ** -0.5
    _, vectors = np.linalg.eigh(np.eye(nodes) - degree[:, None] * adjacency * degree)
    signs = random.choice([-1, 1], EIGENVECTORS)
    place = vectors[:, 1 : EIGENVECTORS + 1] * signs * nodes**0.5
    seen = text @ view + 0.5 * random.normal(size=text.shape)
    features = np.hstack([seen, place]).astype(np.float32)
    return TextGraph(features, adjacency, text.astype(np.float32), meaning, community)


def two_graphs(seed: int, nodes: int = NODES) -> tuple[TextGraph, TextGraph, np.ndarray]:
    """(one graph, another with the same texts of meanings, these texts [6, 32])."""
    random = np.random.default_rng((41, seed))
    means = random.normal(size=(MEANINGS, TEXT))
    view = random.normal(size=(TEXT, TEXT)) / TEXT**0.5
    first, second = (make_graph(random, means, view, nodes) for _ in range(2))
    return first, second, means.astype(np.float32)


class TextGraphNodes(Rows):
    """A source of nodes {'id', 'features': [44], 'text': [32], 'neighbours': ids, 'meaning': int, 'community': int}.

    Args:
      split: "train" or "held_out", two graphs of one world; "classes": a {'text', 'meaning'} for each meaning.
      nodes: of each graph.
      seed: of the world.

    Raises UserError: no such split, or too few nodes for the eigenvectors.
    """

    def __init__(self, split: str = "train", nodes: int = NODES, seed: int = 0):
        if split not in _SPLITS:
            raise UserError(f"text_graph split {split!r} is not known; choose one of {', '.join(_SPLITS)}")
        if nodes <= EIGENVECTORS:
            raise UserError(f"text_graph nodes={nodes} must be more than {EIGENVECTORS}")
        train, held_out, means = two_graphs(seed, nodes)
        graph = held_out if split == "held_out" else train
        examples: list[dict[str, Any]] = [
            {
                "id": index,
                "features": graph.features[index],
                "text": graph.text[index],
                "neighbours": np.flatnonzero(graph.adjacency[index]).tolist(),
                "meaning": int(graph.meaning[index]),
                "community": int(graph.community[index]),
            }
            for index in range(nodes)
        ]
        if split == "classes":
            examples = [{"text": text, "meaning": number} for number, text in enumerate(means)]
        super().__init__(examples, f"text_graph ({split})", "node")
