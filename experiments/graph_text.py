"""Graph-text alignment: nodes of a graph and their texts are made alike, as far as a gap between them is to be kept.

A batch is some nodes with their texts; the graph encoder reads the whole graph, which lies on every device beside the
state. A controller of the gap (`config.gap`) follows the similarity; its state is part of the checkpoint. Before the
first step the graph encoder may learn to predict edges (`config.pretraining`). What the loss does is
`jaxalign.losses.graph_text`; docs/methods/llm4gta.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evaluated_run import Evaluation, train
from experiments.graphs import Graph, learn_edges, read_class_texts, read_graph
from experiments.session import Session
from experiments.setup import build_optimizer, check_micro_batches, fresh_state, layout_of
from experiments.towers import RULES, Tower, open_tower, read_first, under
from jaxalign.controllers import modality_gap
from jaxalign.data.order import Batches
from jaxalign.errors import UserError
from jaxalign.evaluation.linear_probe import few_of_each, probe_hits
from jaxalign.losses.graph_text import fused_probabilities, graph_text_loss
from jaxalign.losses.similarity import unit
from jaxalign.models.graph_encoder import GraphEncoder
from jaxalign.models.mlp_encoder import MlpEncoder
from jaxalign.placement import under_mesh
from jaxalign.training.accumulation import CoupledLoss
from jaxalign.training.coupled import check_pools, over_mesh
from jaxalign.training.mesh import gather, make_mesh, put_batch, replicated
from jaxalign.training.sharding import MLP_ENCODER_RULES, shardings_for
from jaxalign.training.step import make_train_step

GAP = "gap"  # where the state of the controller is, in TrainState.extra


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
        towers = {name: Tower(encoder, None, "") for name, encoder in self._encoders.items()} | {"text": self.tower}
        return read_first(towers, self.shardings, jax.random.split(jax.random.key(self._seed), len(towers)))

    def knowing_edges(self, encoder_params, graph: dict, options) -> dict:
        """The parameters of the graph encoder after it has learned to predict the edges of `graph`."""

        def learn(params, graph, key):
            edges = jnp.stack([graph["receivers"], graph["senders"]], -1)
            return learn_edges(lambda params: self.encoder.embed_edges(params, graph), params, edges, key, **options)

        with under_mesh(self.mesh):
            learn = jax.jit(learn, out_shardings=self.shardings["graph"])
            return learn(encoder_params, graph, jax.random.key(self._seed + 1))

    def nodes(self, params, graph: dict) -> jax.Array:
        """[V, D] of all nodes of a graph, not normalised."""
        return self.encoder.embed_edges(params["graph"], graph)

    def texts(self, params, inputs) -> jax.Array:
        return self.tower.encoder.embed(params["text"], inputs).astype(jnp.float32)

    def logits(self, params, nodes: jax.Array) -> jax.Array:
        return self._encoders["classifier"].embed(params["classifier"], {"features": nodes})


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


class HeldOutGraph(Evaluation):
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


def check(config, graph: Graph) -> None:
    """Raises UserError: settings that cannot work with this graph."""
    if not 0 <= config.labelled <= 1:
        raise UserError(f"config.labelled={config.labelled} is the share of nodes whose label is known, from 0 to 1")
    check_micro_batches(config, "batch_size")
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


def run(config, workdir: str) -> None:
    """Trains with `config` in `workdir`; the same call again resumes."""
    with Session(config, workdir) as session:
        mesh = make_mesh(**config.mesh)
        check_pools(config.batch_size, mesh)
        graph = read_graph(config.data.source, config.data)
        check(config, graph)
        aligned = Aligned(config, graph, mesh)
        session.print(f"texts: {aligned.tower.source}")  # the first line: which encoder, and why this one
        evaluations = []
        if config.data.held_out:
            other = read_graph(config.data.held_out, config.data)
            evaluations.append(HeldOutGraph(config, other, aligned, read_class_texts(config)))
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

        def first() -> dict:
            params = aligned.begin()
            if config.pretraining.steps:
                session.print(f"  predicting edges for {config.pretraining.steps} steps ...")
                params["graph"] = aligned.knowing_edges(params["graph"], arrays, config.pretraining)
            return params

        train(
            session,
            layout.abstract,
            batches,
            first=first,
            state_of=lambda params: fresh_state(config, params, optimizer, layout, extra),
            batch_at=batch_at,
            take_step=lambda state, batch, step: train_step(state, put_batch(batch, mesh), arrays),
            evaluations=evaluations,
            counted="nodes",
        )
