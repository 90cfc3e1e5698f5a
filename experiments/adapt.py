"""Adapting an image classifier to a shifted stream without labels: each test batch is predicted, then learned from.

Before the stream the classifier is trained on clean pictures (or taken from an earlier run) and the features of its
classes are described by Gaussians. A step is one batch of the stream; labels only score it. The report compares the
classifier as it was trained, the same with the statistics of each batch, and the adapted one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.session import Session
from experiments.setup import build_optimizer
from jaxalign.data.corruptions import CORRUPTIONS, corrupted
from jaxalign.data.order import Batches, BatchIterator
from jaxalign.data.sources import load_source, where
from jaxalign.errors import UserError
from jaxalign.losses import class_alignment
from jaxalign.models.resnet import ResNet
from jaxalign.objective import Objective
from jaxalign.training.loop import Advance
from jaxalign.training.mesh import make_mesh, replicated, spread
from jaxalign.training.state import TrainState, abstract_state, create_state, with_shardings
from jaxalign.training.stored_checkpoint import StoredCheckpoint
from jaxalign.training.test_time import make_adapt_step, replaced, selected


class Pictures(NamedTuple):
    images: np.ndarray  # [N, H, W, C] float32, in 0 .. 1
    labels: np.ndarray  # [N] int32


def load_pictures(spec: str, data) -> Pictures:
    """All pictures of a source (`data.image_field`, `data.label_field`); whole numbers are taken as 0 .. 255.

    Raises UserError: an example without picture or label, or pictures of different shapes.
    """
    source = load_source(spec)
    images, labels = [], []
    for index in range(len(source)):
        example = source[index]
        image, label = example.get(data.image_field), example.get(data.label_field)
        image = None if image is None else np.asarray(image)
        if image is None or label is None or image.ndim != 3 or (images and image.shape != images[0].shape):
            raise UserError(
                f"{where(source, index)} has no picture [height, width, channels] like the others under "
                f"{data.image_field!r}, or no label under {data.label_field!r}"
            )
        images.append(image / np.float32(255) if image.dtype.kind in "iu" else image.astype(np.float32))
        labels.append(int(label))
    return Pictures(np.stack(images), np.array(labels, np.int32))


def train_source(network: ResNet, pictures: Pictures, options, seed: int) -> dict:
    """{"params", "statistics"} of a network trained on labelled pictures by cross-entropy (Adam)."""
    optimizer = optax.adam(options.learning_rate)

    @jax.jit
    def step(params, statistics, opt_state, images, labels):
        def loss(params):
            out = network.apply(params, statistics, images, mode="train")
            return optax.softmax_cross_entropy_with_integer_labels(out.logits, labels).mean(), out.statistics

        gradients, statistics = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), statistics, opt_state

    params, statistics = network.init(jax.random.key(seed)), network.init_statistics()
    opt_state = optimizer.init(params)
    order = Batches(range(len(pictures.labels)), options.batch_size, seed=seed)
    for position in range(options.steps):
        rows = np.asarray(order[position])
        batch = (pictures.images[rows], pictures.labels[rows])
        params, statistics, opt_state = step(params, statistics, opt_state, *batch)
    return {"params": params, "statistics": statistics}


def source_features(network: ResNet, source: dict, pictures: Pictures, batch_size: int = 256):
    """(moments of the features by class, accuracy) under the running statistics, read a batch at a time."""

    @jax.jit
    def of_batch(images, labels):
        out = network.apply(source["params"], source["statistics"], images, mode="running")
        return (
            class_alignment.class_moments(out.features, labels, network.classes),
            (jnp.argmax(out.logits, -1) == labels).sum(),
        )

    moments, correct = None, 0
    for start in range(0, len(pictures.labels), batch_size):
        part = slice(start, start + batch_size)
        found, right = of_batch(pictures.images[part], pictures.labels[part])
        moments = found if moments is None else class_alignment.merge(moments, found)
        correct += int(right)
    return moments, correct / len(pictures.labels)


def _cafa(outputs, batch, extra, options) -> Objective:
    return class_alignment.cafa_loss(outputs.features, outputs.logits, extra["gaussians"], batch["valid"], **options)


def _entropy(outputs, batch, extra, options) -> Objective:
    del extra, options
    return class_alignment.entropy_loss(outputs.logits, batch["valid"])


def _global(outputs, batch, extra, options) -> Objective:
    del options
    return class_alignment.global_alignment_loss(outputs.features, extra["whole"], batch["valid"])


# name in config.adapt.objective -> (outputs, batch, extra, config.loss) -> Objective
OBJECTIVES: dict[str, Callable[..., Objective]] = {"cafa": _cafa, "entropy": _entropy, "global": _global}
DISTANCES = ("intra_distance", "inter_distance", "log_distance_ratio")
KINDS = ("source", "batch_statistics", "adapted")


class Stream:
    """The test pictures in an endless order, corrupted; position p is the p-th batch and always the same."""

    def __init__(self, pictures: Pictures, options, seed: int):
        for name in options.corruptions:
            if name not in CORRUPTIONS:
                raise UserError(f"config.stream.corruptions: {name!r} is not known; use {', '.join(CORRUPTIONS)}")
        if options.batch_size < 2 or not options.corruptions or options.batches < 1:
            raise UserError(
                f"config.stream: batch_size={options.batch_size} must be at least 2 (one picture has no batch "
                f"statistics), batches={options.batches} at least 1, and corruptions name at least one"
            )
        self._pictures, self._options, self._seed = pictures, options, seed
        self.order = Batches(range(len(pictures.labels)), options.batch_size, seed=seed)

    def corruption(self, position: int) -> int:
        """Which of `options.corruptions` it is: each stays for `options.batches`, and then the next one comes."""
        return position // self._options.batches % len(self._options.corruptions)

    def begins_corruption(self, position: int) -> bool:
        return position % self._options.batches == 0

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        rows = np.asarray(self.order[position])
        random = np.random.default_rng((self._seed, position))
        images = corrupted(self._pictures.images[rows], self._options.corruptions[self.corruption(position)], random)
        return {
            "images": images,
            "labels": self._pictures.labels[rows],
            "ids": rows.astype(np.int32),
            "valid": np.ones(len(rows), bool),
        }


class Adaptation:
    """What a run of `config` adapts, and how; the state holds all that changes.

    Attributes:
      network, stream, optimizer: built from the config, the training pictures and the held-out ones.
      abstract_source: shapes of {"params", "statistics"}, the classifier as it was trained.
      abstract: the state as ShapeDtypeStructs with their shardings.
    """

    def __init__(self, config, train: Pictures, held_out: Pictures, mesh: jax.sharding.Mesh):
        if config.adapt.objective not in OBJECTIVES:
            raise UserError(f"config.adapt.objective={config.adapt.objective!r}: use one of {', '.join(OBJECTIVES)}")
        counts = np.bincount(train.labels)
        self.config, self.mesh = config, mesh
        self.network = ResNet(train.images.shape[1:], classes=len(counts), **config.network)
        self.stream = Stream(held_out, config.stream, config.seed)
        self.optimizer = build_optimizer(config)
        self.abstract_source = {
            "params": self.network.abstract_params(),
            "statistics": jax.eval_shape(self.network.init_statistics),
        }
        tied = config.adapt.tied
        self._tied = bool(counts.min() < 2 * self.network.feature_dim) if tied is None else tied
        self._scores = (len(config.stream.corruptions), len(held_out.labels))
        key, params = jax.random.key(0), self._selected(self.abstract_source["params"])
        plain = abstract_state(params, self.optimizer, key, self._abstract_extra())
        self.shardings = jax.tree.map(lambda _: replicated(mesh), plain)
        self.abstract = with_shardings(plain, self.shardings)
        self._step = self._make_step()
        self._reset = jax.jit(self._source_again)

    def begin(self, source: dict, moments: class_alignment.ClassMoments) -> TrainState:
        """The state before the stream."""
        gaussians = class_alignment.fit(moments, tied=self._tied, shrinkage=self.config.adapt.shrinkage)
        extra = {
            "source": source,
            "gaussians": gaussians,
            "whole": class_alignment.whole(moments),
            "score": {name: jnp.zeros(self._scores, jnp.int32) for name in (*KINDS, "seen")},
        }
        params = jax.tree.map(jnp.copy, self._selected(source["params"]))
        key = jax.random.key(self.config.seed)
        return create_state(params, self.optimizer, key, extra, shardings=self.shardings)

    def advance(self, state: TrainState, position: int) -> tuple[TrainState, dict[str, float], dict]:
        """(state, metrics, batch) of the batch at that position of the stream: predicted, scored, learned from."""
        if self.config.stream.reset and self.stream.begins_corruption(position):
            state = self._reset(state)
        batch = self.stream[position]
        state, metrics = self._step(state, spread(batch, self.mesh), self.stream.corruption(position))
        return state, {name: float(value) for name, value in jax.device_get(metrics).items()}, batch

    def _selected(self, params: dict) -> dict:
        return selected(params, self.config.adapt.parameters)

    def _source_again(self, state: TrainState) -> TrainState:
        params = self._selected(state.extra["source"]["params"])
        return state.replace(params=params, opt_state=self.optimizer.init(params))

    def _abstract_extra(self) -> dict:
        classes, dim = self.network.classes, self.network.feature_dim

        def floats(*shape):
            return jax.ShapeDtypeStruct(shape, jnp.float32)

        whitening = floats(*(() if self._tied else (classes,)), dim, dim)
        return {
            "source": self.abstract_source,
            "gaussians": class_alignment.ClassGaussians(floats(classes, dim), whitening),
            "whole": class_alignment.Gaussian(floats(dim), floats(dim, dim)),
            "score": {name: jax.ShapeDtypeStruct(self._scores, jnp.int32) for name in (*KINDS, "seen")},
        }

    def _make_step(self) -> Callable:
        """The compiled (state, batch, corruption number) -> (state, metrics)."""
        objective, options = OBJECTIVES[self.config.adapt.objective], dict(self.config.loss)

        def of_network(params, statistics, batch, mode):
            return self.network.apply(params, statistics, batch["images"], mode=mode, valid=batch["valid"])

        def forward(params, batch, extra):
            source = extra["source"]
            return of_network(replaced(source["params"], params), source["statistics"], batch, "batch")

        def loss_fn(outputs, batch, extra):
            found = objective(outputs, batch, extra, options)
            arrays = (outputs.features, outputs.logits, extra["gaussians"], batch["valid"])
            return found._replace(metrics=class_alignment.class_distances(*arrays) | found.metrics)

        adapt_step = make_adapt_step(forward, loss_fn, self.optimizer, mesh=self.mesh, shardings=self.shardings)

        @jax.jit
        def step(state, batch, corruption):
            source = state.extra["source"]
            logits = {
                "source": of_network(source["params"], source["statistics"], batch, "running").logits,
                "batch_statistics": of_network(source["params"], source["statistics"], batch, "batch").logits,
            }
            state, outputs, metrics = adapt_step(state, batch)
            logits["adapted"] = outputs.logits
            right = {kind: (jnp.argmax(logits[kind], -1) == batch["labels"]) & batch["valid"] for kind in KINDS}
            metrics |= {f"accuracy/{kind}": hits.sum() / batch["valid"].sum() for kind, hits in right.items()}
            hits = right | {"seen": batch["valid"]}
            score = {
                name: total.at[corruption, batch["ids"]].add(hits[name].astype(jnp.int32))
                for name, total in state.extra["score"].items()
            }
            return state.replace(extra=state.extra | {"score": score}), metrics

        return step


def image_accuracy(score: dict, kind: str, corruptions: list[int]) -> np.ndarray:
    """Of each test picture that came: how often it was right, under the corruptions of these numbers."""
    hits, seen = (np.asarray(score[name])[corruptions].sum(0) for name in (kind, "seen"))
    return hits[seen > 0] / seen[seen > 0]


def run(config, workdir: str) -> None:
    """Adapts with `config` in `workdir`; the same call again resumes."""
    with Session(config, workdir) as session:
        mesh = make_mesh(**config.mesh)
        train, held_out = (load_pictures(spec, config.data) for spec in (config.data.source, config.data.held_out))
        adaptation = Adaptation(config, train, held_out, mesh)
        network, order = adaptation.network, adaptation.stream.order
        session.announce(
            {
                "model": f"{network}",
                "data": f"{config.data.source}: {len(train.labels)} pictures of {network.classes} classes",
                "stream": f"{config.data.held_out}: {len(held_out.labels)} pictures; {config.stream.batches} batches "
                f"each of {', '.join(config.stream.corruptions)}",
                "adapted": f"{config.adapt.parameters} by {config.adapt.objective}",
            },
            mesh,
        )
        restored = session.restore(adaptation.abstract, BatchIterator(order).set_state)
        if restored is not None:
            state, start = restored
        else:
            source = _source(config, adaptation, train)
            moments, accuracy = source_features(network, source, train)
            _, clean = source_features(network, source, held_out)
            session.print(f"  source classifier: {accuracy:.1%} of its pictures right, {clean:.1%} of held-out ones")
            state, start = adaptation.begin(source, moments), 0

        def advance(state, step: int) -> Advance:
            state, metrics, batch = adaptation.advance(state, step)
            return Advance(state, metrics, [], batch)

        state, done = session.fit(
            state, advance, start=start, data_state=lambda done: BatchIterator(order, done).get_state()
        )
        _record(session, jax.device_get(state.extra["score"]), config.stream.corruptions)
        session.finish(done)


def _source(config, adaptation: Adaptation, train: Pictures) -> dict:
    if not config.source.path:
        return train_source(adaptation.network, train, config.source, config.seed)
    stored = StoredCheckpoint(Path(config.source.path) / "checkpoints")
    # Host arrays: they go wherever this run has its state.
    return jax.device_get(stored.read({"extra": {"source": adaptation.abstract_source}})["extra"]["source"])


def _record(session: Session, score: dict[str, np.ndarray], corruptions) -> None:
    """Accuracies of the stream, by test picture: before = the source classifier, after = what is compared with it."""
    everything = list(range(len(corruptions)))
    groups = {
        "accuracy": ("adapted", everything),
        "accuracy of batch statistics alone": ("batch_statistics", everything),
    }
    groups |= {f"accuracy, {name}": ("adapted", [row]) for row, name in enumerate(corruptions)}
    for name, (kind, rows) in groups.items():
        if score["seen"][rows].any():
            session.record(name, "before", image_accuracy(score, "source", rows))
            session.record(name, "after", image_accuracy(score, kind, rows))
