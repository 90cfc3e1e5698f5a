"""Graph-text alignment: nodes of a graph and their texts are made alike, as far as a gap between them is to be kept.

A batch is some nodes with their texts; the graph encoder reads the whole graph, which lies on every device beside the
state. A controller of the gap (`config.gap`) follows the similarity; its state is part of the checkpoint. Before the
first step the graph encoder may learn to predict edges (`config.pretraining`). What the loss does is
`jaxalign.losses.graph_text`; docs/methods/llm4gta.md.
"""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.session import Session
from experiments.setup import build_optimizer, evaluated_params, fresh_state, layout_of
from experiments.towers import RULES, column, open_tower, under
from jaxalign.controllers import modality_gap
from jaxalign.data.order import Batches, BatchIterator
from jaxalign.data.sources import load_source
from jaxalign.errors import UserError
from jaxalign.evaluation.linear_probe import few_of_each, probe_hits
from jaxalign.losses.graph_text import fused_probabilities, graph_text_loss
from jaxalign.losses.similarity import unit
from jaxalign.models.graph_encoder import GraphEncoder
from jaxalign.models.mlp_encoder import MlpEncoder
from jaxalign.placement import under_mesh
from jaxalign.training.accumulation import CoupledLoss
from jaxalign.training.coupled import check_pools, over_mesh
from jaxalign.training.loop import Advance
from jaxalign.training.mesh import gather, make_mesh, put_batch, replicated
from jaxalign.training.sharding import MLP_ENCODER_RULES, shardings_for
from jaxalign.training.step import make_train_step

GAP = "gap"  # where the state of the controller is, in TrainState.extra


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


class Aligned:
    """The encoders and the classifier. Parameters are {"graph", "text", "classifier"}.

    Attributes: tower: of texts. abstract, shardings: of the parameters.
    """

    def __init__(self, config, graph: Graph, mesh: jax.sharding.Mesh):
        self.mesh, self._seed = mesh, config.seed
        self.tower = open_tower(config.encoders.text, graph.texts[0][0])
        width = self.tower.encoder.embedding_dim
        self.encoder = GraphEncoder(graph.features.shape[1], tuple(config.encoders.graph.hidden_dims), width)
        self.labels = max(int(graph.labels.max()) + 1, 1)
        self._encoders = {
            "graph": self.encoder,
            "text": self.tower.encoder,
            "classifier": MlpEncoder(width, (), self.labels),
        }
        self.abstract = {name: encoder.abstract_params() for name, encoder in self._encoders.items()}
        text_rules = RULES[type(self.tower.encoder)]
        tables = {"graph": MLP_ENCODER_RULES, "text": text_rules, "classifier": MLP_ENCODER_RULES}
        self.shardings = shardings_for(self.abstract, under(tables), mesh)

    def begin(self) -> dict:
        """The first parameters, where they belong."""
        keys = jax.random.split(jax.random.key(self._seed), len(self._encoders))
        found = {}
        for key, (name, encoder) in zip(keys, self._encoders.items(), strict=True):
            if name == "text" and self.tower.opened is not None:
                found[name] = self.tower.opened.read(shardings=self.shardings[name])
            else:
                found[name] = jax.jit(encoder.init, out_shardings=self.shardings[name])(key)
        return found

    def nodes(self, params, graph: dict) -> jax.Array:
        """[V, D] of all nodes of a graph, not normalised."""
        return self.encoder.embed_edges(params["graph"], graph)

    def texts(self, params, inputs) -> jax.Array:
        return self.tower.encoder.embed(params["text"], inputs).astype(jnp.float32)

    def logits(self, params, nodes: jax.Array) -> jax.Array:
        return self._encoders["classifier"].embed(params["classifier"], {"features": nodes})


def pretrained(encoder: GraphEncoder, params, graph: dict, options, key) -> Any:
    """Parameters of the graph encoder after learning to tell edges from other pairs by the product of embeddings.

    Each of `options.steps` takes `options.pairs` edges and as many pairs of any nodes.
    """
    optimizer = optax.adam(options.learning_rate)
    edges = jnp.stack([graph["receivers"], graph["senders"]], -1)

    def loss(params, key):
        a, b = jax.random.split(key)
        joined = edges[jax.random.randint(a, (options.pairs,), 0, len(edges))]
        others = jax.random.randint(b, (options.pairs, 2), 0, len(graph["nodes"]))
        found = encoder.embed_edges(params, graph)
        logits = [jnp.sum(found[pairs[:, 0]] * found[pairs[:, 1]], -1) for pairs in (joined, others)]
        return jax.nn.softplus(-logits[0]).mean() + jax.nn.softplus(logits[1]).mean()

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, options.steps))[0][0]


def make_loss(config, aligned: Aligned) -> CoupledLoss:
    """The loss of a batch {"node", "text", "label", "labelled", "valid"}; its parameters are {"weights", "graph"}."""
    options, controller = dict(config.loss), dict(config.gap)
    follows, decay = controller.pop("enabled"), controller.pop("decay")

    def outputs(given, batch, key, extra):
        del key, extra
        nodes = aligned.nodes(given["weights"], given["graph"])[batch["node"]]
        texts = aligned.texts(given["weights"], batch["text"])
        return {"graph": nodes, "text": texts, "logits": aligned.logits(given["weights"], nodes)}

    def part(rows, band, axis_name):
        arrays = (rows[name] for name in ("graph", "text", "logits", "label", "labelled"))
        return graph_text_loss(*arrays, **band, **options, valid=rows["valid"], axis_name=axis_name)

    sharded = over_mesh(part, aligned.mesh if aligned.mesh.size > 1 else None)

    def objective(outputs, batch, key, extra):
        del key
        decision = modality_gap.decide(extra[GAP], **controller)
        weight = decision.weight if follows else jnp.ones(())
        low, high = (decision.low, decision.high) if follows else (jnp.float32(-jnp.inf), jnp.float32(jnp.inf))
        columns = {name: batch[name] for name in ("label", "labelled", "valid")}
        found = sharded(outputs | columns, {"alignment_weight": weight, "low": low, "high": high})
        shown = {"alignment_weight": weight, "natural_similarity": extra[GAP].reference}
        return found._replace(metrics=found.metrics | {n: (x * found.weight, found.weight) for n, x in shown.items()})

    def update(outputs, batch, extra):
        similarities = jnp.sum(unit(outputs["graph"]) * unit(outputs["text"]), -1)
        mean = jnp.sum(similarities * batch["valid"]) / batch["valid"].sum()
        return {GAP: modality_gap.update(extra[GAP], mean, decay=decay, **controller)[0]}

    return CoupledLoss(outputs, objective, update=update)


class HeldOutGraph:
    """A graph that is not aligned: its nodes by the texts of classes, and their labels by a probe of few of them."""

    def __init__(self, config, graph: Graph, aligned: Aligned, class_texts: tuple[list[Any], list[str]] | None):
        self._graph, self._aligned, self._temperature = graph, aligned, config.loss.temperature
        if graph.features.shape[1] != aligned.encoder.in_dim:
            raise UserError(
                f"{config.data.held_out}: its nodes have {graph.features.shape[1]} features, those of "
                f"{config.data.source} {aligned.encoder.in_dim}"
            )
        self._arrays = jax.device_put(graph.arrays(), replicated(aligned.mesh))
        self._class_texts = None if class_texts is None else aligned.tower.inputs(*class_texts)
        self._fuses = bool(config.data.class_field) and config.data.class_field == config.data.label_field
        random = np.random.default_rng((43, config.seed))
        labels = graph.labels if (graph.labels >= 0).any() else None
        self._chosen = None if labels is None else few_of_each(random, labels, config.evaluation.probe_labels)
        self._read = jax.jit(self._predict, out_shardings=replicated(aligned.mesh))

    def _predict(self, params, graph):
        nodes = self._aligned.nodes(params, graph)
        found = {"nodes": unit(nodes)}
        if self._class_texts is not None:
            names = self._aligned.texts(params, self._class_texts)
            logits = self._aligned.logits(params, nodes)
            found["zero-shot"] = jnp.argmax(unit(nodes) @ unit(names).T, -1)
            if self._fuses and logits.shape[-1] == len(names):
                probabilities = fused_probabilities(logits, nodes, names, temperature=self._temperature)
                found["fused"] = jnp.argmax(probabilities, -1)
        return found

    def values(self, params) -> dict[str, np.ndarray]:
        """Of every node that has a class, or a label that the probe was not told: whether it is right."""
        with under_mesh(self._aligned.mesh):
            found = gather(self._read(params, self._arrays))
        known, values = self._graph.classes >= 0, {}
        for kind in ("zero-shot", "fused"):
            if kind in found:
                values[f"{kind} accuracy"] = (found[kind] == self._graph.classes)[known].astype(np.float64)
        if self._chosen is not None:
            labels = self._graph.labels
            hits = probe_hits(found["nodes"], labels, self._chosen, classes=int(labels.max()) + 1)
            asked = labels >= 0
            asked[self._chosen] = False
            values["probe accuracy"] = np.asarray(hits)[asked].astype(np.float64)
        return {name: x for name, x in values.items() if len(x)}

    def metrics(self, params) -> dict[str, float]:
        return {name: float(x.mean()) for name, x in self.values(params).items()}

    def record(self, session: Session, params, when: str) -> None:
        for name, values in self.values(params).items():
            if not session.has(name, when):
                session.record(name, when, values)


def check(config, graph: Graph) -> None:
    """Raises UserError: settings that cannot work with this graph."""
    if not 0 <= config.labelled <= 1:
        raise UserError(f"config.labelled={config.labelled} is the share of nodes whose label is known, from 0 to 1")
    if config.batch_size % config.train.micro_batches:
        raise UserError(
            f"config.batch_size={config.batch_size} does not divide into "
            f"config.train.micro_batches={config.train.micro_batches} parts"
        )
    if config.batch_size > len(graph):
        raise UserError(
            f"config.batch_size={config.batch_size} is more than the {len(graph)} nodes of {config.data.source}: "
            "a node would meet itself"
        )
    if config.pretraining.steps and not len(graph.edges):
        raise UserError(f"{config.data.source} has no edges to predict; set config.pretraining.steps=0")
    if config.loss.compensation_weight and not (graph.labels >= 0).any():
        raise UserError(
            f"config.loss.compensation_weight={config.loss.compensation_weight} wants labels: name their field in "
            "config.data.label_field, or set the weight to 0"
        )


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


def run(config, workdir: str) -> None:
    """Trains with `config` in `workdir`; the same call again resumes."""
    with Session(config, workdir) as session:
        mesh = make_mesh(**config.mesh)
        check_pools(config.batch_size, mesh)
        graph = read_graph(config.data.source, config.data)
        check(config, graph)
        aligned = Aligned(config, graph, mesh)
        session.print(f"texts: {aligned.tower.source}")  # the first line: which encoder, and why this one
        held_out = None
        if config.data.held_out:
            other = read_graph(config.data.held_out, config.data)
            held_out = HeldOutGraph(config, other, aligned, read_class_texts(config))
        known = (graph.labels >= 0) & (
            np.random.default_rng(config.seed).permutation(len(graph)) < round(config.labelled * len(graph))
        )
        session.announce(
            {
                "model": f"texts: {aligned.tower.source}",
                "graph encoder": "means of neighbours, widths " + "-".join(map(str, aligned.encoder.dims)),
                "data": f"{config.data.source}: {len(graph)} nodes, {len(graph.edges)} neighbours, "
                f"{known.sum()} labels of {aligned.labels} classes",
                "step": f"{config.batch_size} nodes, "
                + ("the gap is kept" if config.gap.enabled else "the gap is not kept"),
                "held out": config.data.held_out or None,
            },
            mesh,
        )
        texts = aligned.tower.inputs(*graph.texts)
        arrays = jax.device_put(graph.arrays(), replicated(mesh))
        part = dict(process_index=jax.process_index(), process_count=jax.process_count())
        batches = Batches(range(len(graph)), config.batch_size, seed=config.seed, **part)
        optimizer, extra = build_optimizer(config), {GAP: modality_gap.init()}
        layout = layout_of(aligned.abstract, aligned.shardings, optimizer, mesh, extra)

        def batch_at(step: int) -> dict[str, Any]:
            rows = np.asarray(batches.indices(step))
            return {
                "node": rows.astype(np.int32),
                "text": jax.tree.map(lambda x: x[rows], texts),
                "label": np.maximum(graph.labels[rows], 0),
                "labelled": known[rows],
                "valid": np.ones(len(rows), np.float32),
            }

        loss_fn = make_loss(config, aligned)
        # Asked once for its complaints: an option that is refused is told before anything is trained.
        modality_gap.update(extra[GAP], jnp.zeros(()), **{k: v for k, v in config.gap.items() if k != "enabled"})
        train_step = make_train_step(
            loss_fn,
            optimizer,
            mesh=mesh,
            shardings=layout.shardings,
            micro_batches=config.train.micro_batches,
            attach=lambda arrays, params: {"weights": params, "graph": arrays},
            frozen_shardings=replicated(mesh),
        )
        restored = session.restore(layout.abstract, BatchIterator(batches).set_state)
        if restored is not None:
            state, start = restored
        else:
            params = aligned.begin()
            if config.pretraining.steps:
                session.print(f"  predicting edges for {config.pretraining.steps} steps ...")
                learn = functools.partial(pretrained, aligned.encoder, options=config.pretraining)
                with under_mesh(mesh):
                    learn = jax.jit(learn, out_shardings=aligned.shardings["graph"])
                    params["graph"] = learn(params["graph"], arrays, key=jax.random.key(config.seed + 1))
            if held_out is not None:
                held_out.record(session, params, "before")
            state, start = fresh_state(config, params, optimizer, layout, extra), 0

        def advance(state, step: int) -> Advance:
            began, batch = time.perf_counter(), batch_at(step)
            state, metrics = train_step(state, put_batch(batch, mesh), arrays)
            metrics = {name: float(value) for name, value in metrics.items()}
            metrics["nodes_per_second"] = config.batch_size / (time.perf_counter() - began)
            return Advance(state, metrics, [], batch)

        def evaluate(state, done: int) -> dict[str, float]:
            del done
            return {} if held_out is None else held_out.metrics(evaluated_params(state))

        state, done = session.fit(
            state,
            advance,
            start=start,
            data_state=lambda done: BatchIterator(batches, done).get_state(),
            evaluate=None if held_out is None else evaluate,
        )
        if held_out is not None and not session.stopped:
            held_out.record(session, evaluated_params(state), "after")
        session.finish(done)
