"""Graphs whose nodes have texts: how they are read, and how an encoder learns their edges."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.towers import column
from jaxalign import objective
from jaxalign.data.sources import load_source
from jaxalign.errors import UserError
from jaxalign.losses.edge_prediction import draw_pairs, edge_prediction_loss


class Graph(NamedTuple):
    """A graph as it is read; labels are negative where they are not known."""

    features: np.ndarray  # [V, F]
    edges: np.ndarray  # [E, 2]: a node, and one that it reads
    texts: tuple[list[Any], list[str]]  # of the nodes, with the places they are from
    labels: np.ndarray  # [V] what the classifier learns
    classes: np.ndarray  # [V] what the texts of classes are asked for

    def __len__(self) -> int:
        return len(self.features)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `GraphEncoder.embed_edges` reads."""
        receivers, senders = np.ascontiguousarray(self.edges.T)
        return {"nodes": self.features, "senders": senders, "receivers": receivers}


def read_graph(spec: str, data) -> Graph:
    """The graph of a source of nodes, each of which names its neighbours by their ids.

    Raises UserError: a missing field, features that are not vectors of one size, an id that comes twice, a neighbour
    that is no node, a label that is no integer.
    """
    source = load_source(spec)
    values, places = column(source, data.features_field)
    try:
        features = np.stack([np.asarray(value, np.float32) for value in values])
    except (ValueError, TypeError) as error:
        raise UserError(f"{places[0]} and others: {data.features_field!r} are not vectors of one size ({error})") from (
            error
        )
    if features.ndim != 2:
        raise UserError(f"{places[0]}: {data.features_field!r} has the shape {features.shape[1:]}, no vector")
    ids, _ = column(source, data.id_field)
    for one, place in zip(ids, places, strict=True):
        if not isinstance(one, str | int):
            raise UserError(f"{place}: {data.id_field!r} is {str(one)[:40]!r}, neither a text nor an integer")
    rows = {one: row for row, one in enumerate(ids)}
    if len(rows) < len(ids):
        twice = next(row for row, one in enumerate(ids) if rows[one] != row)
        raise UserError(f"{places[twice]}: the id {ids[twice]!r} comes again at {places[rows[ids[twice]]]}")
    edges = []
    for row, neighbours in enumerate(column(source, data.neighbours_field)[0]):
        if not isinstance(neighbours, list | tuple):
            raise UserError(f"{places[row]}: {data.neighbours_field!r} must be a list of ids, not {neighbours!r:.40}")
        for one in neighbours:
            if not isinstance(one, str | int) or one not in rows:
                raise UserError(f"{places[row]}: its neighbour {one!r} is the id ({data.id_field!r}) of no node")
            edges.append((row, rows[one]))
    texts = column(source, data.text_field)
    labels, classes = (_integers(source, field) for field in (data.label_field, data.class_field))
    return Graph(features, np.array(edges, np.int32).reshape(-1, 2), texts, labels, classes)


def _integers(source, field: str) -> np.ndarray:
    """[V], -1 where there is none."""
    if not field:
        return np.full(len(source), -1, np.int32)
    values, places = column(source, field)
    for value, place in zip(values, places, strict=True):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0):
            raise UserError(f"{place}: {field!r} is {str(value)[:40]!r}, neither an integer from 0 on nor null")
    return np.array([-1 if value is None else value for value in values], np.int32)


def read_class_texts(config) -> tuple[list[Any], list[str]] | None:
    """The texts of classes, in the order of their numbers. Raises UserError: a class without a text, or with two."""
    if not config.data.classes or not config.data.class_field:
        return None
    source = load_source(config.data.classes)
    numbers = _integers(source, config.data.class_field)
    texts, places = column(source, config.data.text_field)
    order = np.argsort(numbers)
    if not np.array_equal(numbers[order], np.arange(len(numbers))):
        raise UserError(
            f"{config.data.classes}: {config.data.class_field!r} must be 0, 1, ... {len(numbers) - 1}, each once"
        )
    return [texts[row] for row in order], [places[row] for row in order]


def learn_edges(
    embed: Callable[[Any], jax.Array],
    params: Any,
    edges: jax.Array,
    key: jax.Array,
    *,
    steps: int,
    pairs: int,
    learning_rate: float,
    number: int | jax.Array | None = None,
) -> Any:
    """`params` after `steps` of Adam on edge prediction, each on `pairs` edges and as many pairs of any nodes.

    `embed(params)` are all nodes [V, D]; of `edges` [E, 2] the first `number` count (None: all).
    """
    optimizer = optax.adam(learning_rate)

    def loss(params, key):
        nodes = embed(params)
        return objective.loss(
            edge_prediction_loss(nodes, *draw_pairs(key, edges, pairs=pairs, nodes=len(nodes), number=number))
        )

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))[0][0]
