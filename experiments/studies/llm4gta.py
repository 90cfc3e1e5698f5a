"""Graph-text alignment on one graph, carried over to another (after LLM4GTA, arXiv 2510.12087).

Nodes have a meaning, which their texts tell, and a community, which only the edges tell. A graph encoder that knows of
edges from link prediction is aligned with the texts of the source graph; on the target graph it is asked for meanings
through class texts (zero-shot) and for communities by a probe of five labels each.

Settings: none (no alignment), clip, closing (clip and 5 (1 - similarity)), compensation (clip and the classifier),
gap (the controller and its band), full (both).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.graphs import learn_edges
from jaxalign import objective
from jaxalign.controllers import modality_gap
from jaxalign.data.text_graphs import COMMUNITIES, EIGENVECTORS, NODES, TEXT, two_graphs
from jaxalign.evaluation.linear_probe import few_of_each, probe_hits
from jaxalign.losses.graph_text import graph_text_loss
from jaxalign.losses.similarity import unit
from jaxalign.models.graph_encoder import GraphEncoder
from jaxalign.models.mlp_encoder import MlpEncoder

SETTINGS = ("none", "clip", "closing", "compensation", "gap", "full")
ENCODER = GraphEncoder(TEXT + EIGENVECTORS, (64,), 32)
PROJECTION = MlpEncoder(TEXT, (), 32)
CLASSIFIER = MlpEncoder(32, (), COMMUNITIES)


class Graph(NamedTuple):
    nodes: jax.Array  # [V, F]
    adjacency: jax.Array  # [V, V]
    text: jax.Array  # [V, 32]
    meaning: jax.Array  # [V]
    community: jax.Array  # [V]


def embed(params, graph: Graph) -> jax.Array:
    inputs = {"nodes": graph.nodes[None], "adjacency": graph.adjacency[None], "mask": jnp.ones((1, len(graph.nodes)))}
    return ENCODER.embed_nodes(params, inputs)[0]


@functools.partial(jax.jit, static_argnames="steps")
def pretrain(params, graph: Graph, key, *, steps: int):
    """Edge prediction, the edges of the matrix as a list that is filled up to one size for all seeds."""
    edges = jnp.stack(jnp.nonzero(graph.adjacency, size=16_000, fill_value=-1), -1)
    options = {"steps": steps, "pairs": 512, "learning_rate": 2e-3, "number": (edges[:, 0] >= 0).sum()}
    return learn_edges(lambda params: embed(params, graph), params, edges, key, **options)


@functools.partial(jax.jit, static_argnames=("setting", "steps"))
def align(params, graph: Graph, key, *, setting: str, steps: int):
    """(parameters, similarity at the end) of alignment with batches of 256 nodes; a tenth of them has a label."""
    optimizer = optax.adam(2e-3)
    weights = {
        "gap_weight": 50.0 if setting in ("gap", "full") else 0.0,
        "compensation_weight": 0.5 if setting in ("compensation", "full") else 0.0,
    }
    labelled = jax.random.permutation(jax.random.fold_in(key, 7), len(graph.nodes)) < len(graph.nodes) // 10

    def step(carry, key):
        params, state, gap = carry
        decision = modality_gap.decide(gap)
        band = decision._asdict() if setting in ("gap", "full") else {"weight": 1.0, "low": -jnp.inf, "high": jnp.inf}
        rows = jax.random.choice(key, len(graph.nodes), (min(256, len(graph.nodes)),), replace=False)

        def loss(params):
            found = embed(params["graph"], graph)[rows]
            text = PROJECTION.embed(params["text"], {"features": graph.text[rows]})
            logits = CLASSIFIER.embed(params["classifier"], {"features": found})
            options = weights | {"alignment_weight": band["weight"], "low": band["low"], "high": band["high"]}
            result = graph_text_loss(found, text, logits, graph.community[rows], labelled[rows], **options)
            forced = 5 * (1 - jnp.sum(unit(found) * unit(text), -1).mean()) if setting == "closing" else 0.0
            return objective.loss(result) + forced, objective.metric_means(result.metrics)["similarity"]

        gradients, similarity = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        gap, _ = modality_gap.update(gap, similarity)
        return (optax.apply_updates(params, updates), state, gap), similarity

    carry = (params, optimizer.init(params), modality_gap.init())
    (params, _, _), similarities = jax.lax.scan(step, carry, jax.random.split(key, steps))
    return params, similarities[-10:].mean()


@functools.lru_cache(maxsize=1)
def _start(seed: int, nodes: int, steps: int):
    """(source graph, target graph, class means, parameters before alignment)."""
    *graphs, means = two_graphs(seed, nodes)
    source, target = (Graph(*map(jnp.asarray, graph)) for graph in graphs)
    keys = jax.random.split(jax.random.key(seed), 4)
    encoder = pretrain(ENCODER.init(keys[0]), source, keys[1], steps=steps)
    params = {"graph": encoder, "text": PROJECTION.init(keys[2]), "classifier": CLASSIFIER.init(keys[3])}
    return source, target, jnp.asarray(means), params


def run(setting: str, seed: int, *, nodes: int = NODES, steps: int = 300) -> dict[str, float]:
    """zero_shot: accuracy for meanings on the target graph; probe: for communities; similarity: at the end, source."""
    source, target, means, params = _start(seed, nodes, steps * 2 // 3)
    similarity = jnp.nan
    if setting != "none":
        params, similarity = align(params, source, jax.random.key(seed + 100), setting=setting, steps=steps)
    found = embed(params["graph"], target)
    names = unit(PROJECTION.embed(params["text"], {"features": means}))
    zero_shot = (jnp.argmax(unit(found) @ names.T, -1) == target.meaning).mean()
    chosen = few_of_each(np.random.default_rng((43, seed)), np.asarray(target.community), 5)
    hits = np.asarray(probe_hits(unit(found), target.community, chosen, classes=COMMUNITIES))
    return {
        "zero_shot": float(zero_shot),
        "probe": float(np.delete(hits, chosen).mean()),
        "similarity": float(similarity) if setting != "none" else 0.0,
    }
