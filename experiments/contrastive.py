"""Representation training: encoders under any loss of embeddings, on pairs, groups, views or labelled examples.

Every example of a batch is embedded by itself, and the loss looks at all of them together, over all devices and
micro-batches. What a paper changes is the loss and its settings (`config.contrastive.loss`, `config.loss`; see
`experiments.embedding_losses`), never this file. Examples are read once and held in host memory.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.embedding_losses import LOSSES, EmbeddingLoss
from experiments.session import Session
from experiments.setup import build_optimizer, evaluated_params, fresh_state, layout_of
from experiments.towers import SIDES, Towers, column
from jaxalign import objective
from jaxalign.data.class_batches import ClassBatches
from jaxalign.data.order import Batches, BatchIterator
from jaxalign.data.sources import load_source
from jaxalign.errors import UserError
from jaxalign.evaluation.retrieval import retrieval_values, spearman
from jaxalign.losses.alignment_uniformity import uniformity_loss
from jaxalign.losses.similarity import unit
from jaxalign.placement import BATCH_AXES, under_mesh
from jaxalign.training.accumulation import CoupledLoss
from jaxalign.training.coupled import check_pools, coupled_over_mesh
from jaxalign.training.loop import Advance
from jaxalign.training.mesh import gather, make_mesh, put_batch, spread

POOLS = {"all": BATCH_AXES, "data": ("data",), "fsdp": ("fsdp",)}
TWO_SIDED = ("pairs", "groups", "scored")
CUTOFFS = (1, 5, 10)
SPREAD = {"alignment": "", "uniformity": "nats"}  # held-out metrics that are better if lower, and their units


class Examples(NamedTuple):
    """All examples of a source: values of each side as they stand there, and the columns that losses read."""

    values: dict[str, tuple[list[Any], list[str]]]  # of each side, with the places they are from
    ids: np.ndarray  # [N] equal for what is the same thing
    labels: np.ndarray | None  # [N]
    scores: np.ndarray | None = None  # [N] similarities given by people
    mask: np.ndarray | None = None  # [N, m] of groups, which are filled up to one size

    def __len__(self) -> int:
        return len(self.ids)


def read_examples(spec: str, data, form: str) -> Examples:
    """Raises UserError: a missing field, a label or an id that is no integer."""
    source = load_source(spec)
    fields = {"first": data.first_field} | ({"second": data.second_field} if form in TWO_SIDED else {})
    values = {side: column(source, field) for side, field in fields.items()}
    mask = None
    if form == "groups":
        values["second"], mask = _filled_groups(*values["second"])

    def integers(field: str) -> np.ndarray:
        found, places = column(source, field)
        for value, place in zip(found, places, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise UserError(f"{place}: {field!r} is {' '.join(str(value).split())[:40]!r}, not an integer")
        return np.asarray(found, np.int32)

    ids = integers(data.id_field) if data.id_field and form != "scored" else np.arange(len(source), dtype=np.int32)
    labels = integers(data.label_field) if form == "labels" else None
    scores = None
    if form == "scored":
        scores = np.asarray(column(source, data.score_field)[0], np.float64)
    return Examples(values, ids, labels, scores, mask)


def _filled_groups(groups: list[Any], places: list[str]):
    """Groups as one list, each filled up by its first member to the size of the largest; and which are real, [N, m]."""
    for group, place in zip(groups, places, strict=True):
        if isinstance(group, str) or not hasattr(group, "__len__") or not len(group):
            raise UserError(f"{place}: its partners must be a list with at least one entry, not {str(group)[:40]!r}")
    size = max(map(len, groups))
    mask = np.arange(size) < np.array([len(group) for group in groups])[:, None]
    members = [member for group in groups for member in [*group, *[group[0]] * (size - len(group))]]
    return (members, [place for place in places for _ in range(size)]), mask


def inputs_of(towers: Towers, examples: Examples) -> dict[str, dict[str, np.ndarray]]:
    """What the encoders read, with the examples in front (and then the members of a group)."""
    found = {side: towers[side].inputs(*values) for side, values in examples.values.items()}
    if examples.mask is not None:
        shape = examples.mask.shape
        found["second"] = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found["second"])
    return found


def take(arrays: Any, rows) -> Any:
    return jax.tree.map(lambda x: x[np.asarray(rows)], arrays)


class Embedder:
    """Embeddings of any number of examples, `size` at a time, by one compiled program a side."""

    def __init__(self, towers, size: int, sides: Sequence[str] = SIDES):
        self._towers, self._size = towers, size
        self._embed = {
            side: jax.jit(lambda params, inputs, side=side: towers.embed(params, side, inputs)) for side in sides
        }

    def __call__(self, params, side: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """[N, D] unit vectors, on the host."""
        count, found = len(next(iter(inputs.values()))), []
        for start in range(0, count, self._size):
            rows = np.minimum(np.arange(start, start + self._size), count - 1)  # one shape for all
            with under_mesh(self._towers.mesh):
                found.append(
                    gather(self._embed[side](params, spread(take(inputs, rows), self._towers.mesh, fill=True)))
                )
        x = np.concatenate([part[: self._size] for part in found])[:count].astype(np.float64)
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def alignment_and_uniformity(first, second, sides: Sequence[str] = SIDES) -> dict[str, np.ndarray]:
    """How near partners are and how evenly the embeddings of `sides` fill the sphere (arXiv 2005.10242).

    alignment: the squared distance of each of the partners, unit vectors [N, D]; uniformity: log of the mean of
    exp(-2 d^2) over all pairs of rows of one side, its mean over sides, as an array of one number.
    """
    x = dict(zip(SIDES, (first, second), strict=True))
    objectives = [uniformity_loss(jnp.asarray(x[side], jnp.float32), chunk=256) for side in sides]
    uniformity = np.mean([float(objective.loss(one)) for one in objectives], keepdims=True)
    return {"alignment": ((first - second) ** 2).sum(-1), "uniformity": uniformity}


def record(session: Session, found: dict[str, np.ndarray], when: str) -> None:
    """Keeps held-out metrics: rates in percent, and those of `SPREAD`."""
    for name, values in found.items():
        if name in SPREAD:
            session.record(f"held-out {name}, lower is better", when, values, SPREAD[name])
        else:
            session.record(f"held-out {name}", when, values)


class HeldOut:
    """Retrieval on held-out examples: partners among those of all others, or rows of the same class.

    Of pairs also alignment and uniformity.
    """

    def __init__(self, examples: Examples, towers: Towers, embedder: Embedder):
        self._examples, self._embed = examples, embedder
        self._inputs = {side: towers[side].inputs(*values) for side, values in examples.values.items()}

    def values(self, params) -> dict[str, np.ndarray]:
        """Of every query."""
        x = {side: self._embed(params, side, inputs) for side, inputs in self._inputs.items()}
        if self._examples.labels is not None:
            labels = self._examples.labels
            same, others = labels[:, None] == labels, ~np.eye(len(labels), dtype=bool)
            found = retrieval_values(x["first"] @ x["first"].T, same, CUTOFFS, candidates=others)
            return {name: found[name] for name in ("accuracy@1", "precision@10", "map@r")}
        ids, scores = self._examples.ids, x["first"] @ x["second"].T
        if self._examples.mask is not None:
            owners = np.repeat(ids, self._examples.mask.shape[1])
            real = np.broadcast_to(self._examples.mask.reshape(-1), scores.shape)
            found = retrieval_values(scores, ids[:, None] == owners, CUTOFFS, candidates=real)
            return {name: found[name] for name in ("accuracy@1", "recall@10", "mrr", "ndcg@10")}
        relevant = ids[:, None] == ids
        values = {}
        for direction, table in (("", scores), (", backwards", scores.T)):
            found = retrieval_values(table, relevant, CUTOFFS)
            names = ("recall@1", "recall@10", "mrr", "ndcg@10") if not direction else ("recall@1",)
            values |= {f"{name}{direction}": found[name] for name in names}
        return values | alignment_and_uniformity(x["first"], x["second"])

    def metrics(self, params) -> dict[str, float]:
        return {name: float(x.mean()) for name, x in self.values(params).items()}

    def record(self, session: Session, params, when: str) -> None:
        if session.has("held-out mrr", when) or session.has("held-out map@r", when):
            return
        session.print(f"  retrieving {len(self._examples)} held-out examples {when} training ...")
        record(session, self.values(params), when)


class HeldOutViews:
    """How near two views of a held-out example are, and how evenly all are spread (arXiv 2005.10242)."""

    def __init__(self, examples: Examples, towers: Towers, size: int):
        self._inputs, self._size = towers["first"].inputs(*examples.values["first"]), size

        def views(params, inputs, key):
            return [unit(towers.embed(params, "first", inputs, one)) for one in jax.random.split(key)]

        self._views = jax.jit(views)

    def values(self, params) -> dict[str, np.ndarray]:
        """Alignment of the views of each; uniformity of the first views."""
        key, found = jax.random.key(0), []
        count = len(next(iter(self._inputs.values())))
        for start in range(0, count, self._size):
            rows = np.minimum(np.arange(start, start + self._size), count - 1)
            parts = self._views(params, take(self._inputs, rows), jax.random.fold_in(key, start))
            found.append([gather(part) for part in parts])
        first, second = (np.concatenate([part[side] for part in found])[:count] for side in range(2))
        return alignment_and_uniformity(first, second, sides=("first",))

    def metrics(self, params) -> dict[str, float]:
        return {name: float(x.mean()) for name, x in self.values(params).items()}

    def record(self, session: Session, params, when: str) -> None:
        if not session.has("held-out alignment, lower is better", when):
            record(session, self.values(params), when)


class ScoredPairs:
    """Rank correlation of cosines with similarities that people gave (semantic textual similarity)."""

    def __init__(self, examples: Examples, towers: Towers, embedder: Embedder):
        self._scores, self._embed = examples.scores, embedder
        self._inputs = {side: towers[side].inputs(*values) for side, values in examples.values.items()}

    def metrics(self, params) -> dict[str, float]:
        first, second = (self._embed(params, side, self._inputs[side]) for side in SIDES)
        return {"spearman": spearman((first * second).sum(-1), self._scores)}

    def record(self, session: Session, params, when: str) -> None:
        if not session.has("rank correlation with given similarities", when):
            session.record("rank correlation with given similarities", when, [self.metrics(params)["spearman"]], "")


def make_loss(config, towers: Towers, chosen: EmbeddingLoss) -> CoupledLoss:
    """The loss of a batch {"inputs": {side: inputs}, "valid", "ids"[, "labels", "mask"]}, over all devices."""
    options, views = dict(config.loss), config.contrastive.views

    def outputs(params, batch, key, extra):
        del extra
        rows = {}
        for number, (side, inputs) in enumerate(batch["inputs"].items()):
            own_key = jax.random.fold_in(key, number)
            if chosen.form == "views":
                parts = [towers.embed(params, side, inputs, one) for one in jax.random.split(own_key, views)]
                rows[side] = jnp.stack(parts, axis=1)
                continue
            shape = batch["mask"].shape if chosen.form == "groups" and side == "second" else batch["ids"].shape
            flat = jax.tree.map(lambda x, shape=shape: x.reshape(-1, *x.shape[len(shape) :]), inputs)
            x = towers.embed(params, side, flat, own_key if config.contrastive.dropout else None)
            rows[side] = x.reshape(*shape, -1)
        return rows

    def partial(rows, shared, axis_name):
        return chosen.call(rows, shared, options | {"axis_name": axis_name})

    columns = ("valid", "ids", *{"labels": ("labels",), "groups": ("mask",)}.get(chosen.form, ()))
    mesh = towers.mesh if towers.mesh.size > 1 else None
    pools = POOLS[config.contrastive.pool]
    return coupled_over_mesh(
        outputs, partial, mesh, shared=lambda params: params["loss"], columns=columns, keyed=True, pool_axes=pools
    )


def check(config) -> EmbeddingLoss:
    """The row of the loss. Raises UserError: settings that cannot work together."""
    contrastive = config.contrastive
    if contrastive.loss not in LOSSES:
        raise UserError(f"config.contrastive.loss={contrastive.loss!r} is not known; use one of {', '.join(LOSSES)}")
    if contrastive.pool not in POOLS:
        raise UserError(f"config.contrastive.pool={contrastive.pool!r} is not known; use one of {', '.join(POOLS)}")
    if contrastive.batch_size % config.train.micro_batches:
        raise UserError(
            f"config.contrastive.batch_size={contrastive.batch_size} does not divide into "
            f"config.train.micro_batches={config.train.micro_batches} parts"
        )
    classes = contrastive.classes_per_batch
    if classes and contrastive.batch_size % classes:
        raise UserError(
            f"config.contrastive.batch_size={contrastive.batch_size} is not a multiple of "
            f"config.contrastive.classes_per_batch={classes}"
        )
    return LOSSES[contrastive.loss]


def make_batches(config, examples: Examples):
    """The order of the examples: by class where `classes_per_batch` says so."""
    options, size = config.contrastive, config.contrastive.batch_size
    part = dict(process_index=jax.process_index(), process_count=jax.process_count())
    if options.classes_per_batch:
        if examples.labels is None:
            raise UserError("config.contrastive.classes_per_batch wants a loss of labelled examples; set it to 0")
        samples = size // options.classes_per_batch
        return ClassBatches(examples.labels, options.classes_per_batch, samples, seed=config.seed, **part)
    return Batches(range(len(examples)), size, seed=config.seed, **part)


def run(config, workdir: str) -> None:
    """Trains with `config` in `workdir`; the same call again resumes."""
    chosen = check(config)
    with Session(config, workdir) as session:
        mesh = make_mesh(**config.mesh)
        check_pools(config.contrastive.batch_size, mesh, pool_axes=POOLS[config.contrastive.pool])
        examples = read_examples(config.data.source, config.data, chosen.form)
        classes = 0 if examples.labels is None else int(examples.labels.max()) + 1
        first_values = {side: values[0] for side, (values, _) in examples.values.items()}
        towers = Towers(config, first_values, lambda size: chosen.begin(size, classes), mesh)
        for line in towers.describe().items():
            session.print(": ".join(line))  # the first lines: which encoders, and why these
        batches = make_batches(config, examples)
        embedder = Embedder(towers, config.evaluation.batch_size)
        evaluations: list[HeldOut | HeldOutViews | ScoredPairs] = []
        if config.data.held_out:
            held_out = read_examples(config.data.held_out, config.data, chosen.form)
            views = chosen.form == "views"
            evaluations.append(
                HeldOutViews(held_out, towers, config.evaluation.batch_size)
                if views
                else HeldOut(held_out, towers, embedder)
            )
        if config.data.similarities:
            scored = read_examples(config.data.similarities, config.data, "scored")
            evaluations.append(ScoredPairs(scored, towers, embedder))
        size = sum(leaf.size for leaf in jax.tree.leaves(towers.abstract))
        session.announce(
            {
                **towers.describe(),
                "parameters": f"{size / 1e6:,.3g} M in float32, embeddings of {towers.embedding_dim} numbers",
                "data": f"{config.data.source}: {len(examples)} "
                + (f"examples of {classes} classes" if classes else chosen.form),
                "step": f"{config.contrastive.batch_size} rows under {config.contrastive.loss}",
                "held out": config.data.held_out or None,
            },
            mesh,
        )
        inputs = inputs_of(towers, examples)
        optimizer = build_optimizer(config)
        layout = layout_of(towers.abstract, towers.shardings, optimizer, mesh)
        loss_fn = make_loss(config, towers, chosen)
        train_step = towers.train_step(loss_fn, optimizer, layout, micro_batches=config.train.micro_batches)
        if session.latest is not None:
            towers.resume(session.checkpointer)
        restored = session.restore(layout.abstract, BatchIterator(batches).set_state)
        if restored is not None:
            state, start = restored
        else:
            weights = towers.read()
            for evaluation in evaluations:
                evaluation.record(session, weights, "before")
            state, start = fresh_state(config, towers.begin(weights, session.checkpointer), optimizer, layout), 0

        def advance(state, step: int) -> Advance:
            began = time.perf_counter()
            rows = batches.indices(step)
            batch = {"inputs": take(inputs, rows), "valid": np.ones(len(rows), np.float32), "ids": examples.ids[rows]}
            if examples.labels is not None:
                batch["labels"] = examples.labels[rows]
            if examples.mask is not None:
                batch["mask"] = examples.mask[rows].astype(np.float32)
            state, metrics = train_step(state, put_batch(batch, mesh))
            metrics = {name: float(value) for name, value in metrics.items()}
            metrics["rows_per_second"] = config.contrastive.batch_size / (time.perf_counter() - began)
            return Advance(state, metrics, [], batch)

        def evaluate(state, done: int) -> dict[str, float]:
            del done
            params = towers.weights(evaluated_params(state))
            return {name: value for one in evaluations for name, value in one.metrics(params).items()}

        state, done = session.fit(
            state,
            advance,
            start=start,
            data_state=lambda done: BatchIterator(batches, done).get_state(),
            evaluate=evaluate if evaluations else None,
        )
        if not session.stopped:
            for evaluation in evaluations:
                evaluation.record(session, towers.weights(evaluated_params(state)), "after")
        session.finish(done)
