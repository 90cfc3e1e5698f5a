"""Another text encoder for a trained pair of towers, in two stages (docs/methods/proclip.md).

The new text encoder is an adapter on embeddings that a frozen language model has given. First the adapter learns what
the old text encoder says of texts (`config.distillation`), then the image encoder and the adapter learn pairs by
contrast, and the image encoder is held near a moving average of itself (`config.loss`). At the boundary the optimizer
and the average begin anew. The old text encoder is part of the state, because it may have been trained here.
"""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.contrastive import Embedder, take
from experiments.session import Session
from experiments.setup import Layout, fresh_state, layout_of
from experiments.towers import RULES, Tower, column, open_tower, under
from jaxalign import objective
from jaxalign.data.order import Batches, BatchIterator
from jaxalign.data.sources import load_source
from jaxalign.errors import UserError
from jaxalign.evaluation.retrieval import retrieval_values
from jaxalign.losses.contrastive import clip_loss
from jaxalign.losses.proclip import distillation_loss, proclip_loss
from jaxalign.placement import under_mesh
from jaxalign.training.accumulation import CoupledLoss
from jaxalign.training.coupled import check_pools, coupled_over_mesh
from jaxalign.training.ema import average_of, averaged
from jaxalign.training.loop import Advance
from jaxalign.training.mesh import batch_sharding, make_mesh, put_batch, spread
from jaxalign.training.optimizers import make_optimizer
from jaxalign.training.sharding import shardings_for
from jaxalign.training.step import make_train_step

OLD_TEXT = "text"  # where the old text encoder is, in TrainState.extra
TRAINED = ("image", "adapter")
KINDS = (*TRAINED, OLD_TEXT)


class Examples(NamedTuple):
    """What the encoders read of the examples of a source, by their names, and the concepts where it has them."""

    inputs: dict[str, dict[str, np.ndarray]]
    concepts: np.ndarray | None

    def __len__(self) -> int:
        return len(next(iter(next(iter(self.inputs.values())).values())))


class Towers:
    """The encoders: `image`, `adapter` and the old `text`; the first two are what is trained.

    Attributes: abstract, shardings: of the trained parameters {"image", "adapter", "loss": {"log_scale"}};
    abstract_text, text_shardings: of the old text encoder.
    """

    def __init__(self, config, examples: dict[str, Any], mesh: jax.sharding.Mesh):
        self.mesh, self._config = mesh, config
        self._of: dict[str, Tower] = {name: open_tower(config.encoders[name], examples[name]) for name in KINDS}
        widths = {name: tower.encoder.embedding_dim for name, tower in self._of.items()}
        if len(set(widths.values())) > 1:
            raise UserError(f"the encoders give embeddings of different sizes: {widths}; they must meet in one space")
        abstract = {name: tower.encoder.abstract_params() for name, tower in self._of.items()}
        tables = {name: RULES[type(tower.encoder)] for name, tower in self._of.items()}
        abstract |= {"loss": {"log_scale": jax.ShapeDtypeStruct((), jnp.float32)}}
        shardings = shardings_for(abstract, under(tables), mesh)
        self.abstract_text, self.text_shardings = abstract.pop(OLD_TEXT), shardings.pop(OLD_TEXT)
        self.abstract, self.shardings = abstract, shardings

    def __getitem__(self, name: str) -> Tower:
        return self._of[name]

    def describe(self) -> dict[str, str]:
        titles = {"image": "image encoder", "adapter": "adapter", OLD_TEXT: "old text encoder"}
        return {titles[name]: tower.source for name, tower in self._of.items()}

    def begin(self) -> tuple[dict, dict]:
        """(trained parameters, those of the old text encoder) before anything."""
        found = {}
        for number, name in enumerate(KINDS):
            sharding = self.text_shardings if name == OLD_TEXT else self.shardings[name]
            tower, key = self._of[name], jax.random.fold_in(jax.random.key(self._config.seed), number)
            if tower.opened is not None:
                found[name] = tower.opened.read(shardings=sharding)
            else:
                found[name] = jax.jit(tower.encoder.init, out_shardings=sharding)(key)
        found["loss"] = jax.device_put({"log_scale": jnp.float32(math.log(self._config.scale))}, self.shardings["loss"])
        text = found.pop(OLD_TEXT)
        return found, text

    def embed(self, params, name: str, inputs) -> jax.Array:
        """[B, D] by the encoder of that name in `params`, not normalised."""
        return self._of[name].encoder.embed(params[name], inputs).astype(jnp.float32)


FIELDS = {"image": "image_field", "adapter": "embedding_field", OLD_TEXT: "caption_field"}


def read(spec: str, data, kinds: Sequence[str], towers: Towers, *, concepts: bool = False) -> Examples:
    """Raises UserError: a missing field, a value that its encoder cannot read, a concept that is no integer."""
    source = load_source(spec)
    inputs = {kind: towers[kind].inputs(*column(source, data[FIELDS[kind]])) for kind in kinds}
    found = None
    if concepts:
        values, places = column(source, data.concept_field)
        for value, place in zip(values, places, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise UserError(f"{place}: {data.concept_field!r} is {str(value)[:40]!r}, not an integer")
        found = np.asarray(values, np.int32)
    return Examples(inputs, found)


def only_adapter(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer`, with the same state, moving the adapter alone: nothing else decays or follows old moments."""

    def update(gradients, state, params=None, **extra):
        updates, state = optax.with_extra_args_support(optimizer).update(gradients, state, params, **extra)
        still = {name: jax.tree.map(jnp.zeros_like, part) for name, part in updates.items() if name != "adapter"}
        return {**updates, **still}, state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


class Stages:
    """The steps of both stages, over one layout of the state.

    Attributes: first: steps of stage 1. layout: of the state.
    """

    def __init__(self, config, towers: Towers):
        self.first, self._towers, mesh = config.distillation.steps, towers, towers.mesh
        options = dict(config.optimizer)
        second = config.train.steps - self.first
        rates = {"learning_rate": config.distillation.learning_rate}
        distilling = only_adapter(make_optimizer(**{**options, **rates}, total_steps=max(self.first, 1)))
        tuning = make_optimizer(**options, total_steps=max(second, 1))
        optimizers = [averaged(one, config.average_decay) for one in (distilling, tuning)]
        self.optimizer = optimizers[0]
        extra = {OLD_TEXT: towers.abstract_text}
        self.layout: Layout = layout_of(towers.abstract, towers.shardings, optimizers[0], mesh, extra)
        losses = [self._distillation(config), self._contrast(config)]
        self._steps = [
            make_train_step(
                loss_fn, one, mesh=mesh, shardings=self.layout.shardings, micro_batches=config.train.micro_batches
            )
            for loss_fn, one in zip(losses, optimizers, strict=True)
        ]
        self._begin_again = jax.jit(optimizers[1].init, out_shardings=self.layout.shardings.opt_state)

        def embed_images(params, inputs):
            return towers.embed(params, "image", inputs)

        self._teacher = jax.jit(embed_images, out_shardings=batch_sharding(mesh))
        self._holds_on = config.loss.regularisation > 0

    def _distillation(self, config) -> CoupledLoss:
        towers, options = self._towers, dict(config.distillation.loss)

        def outputs(params, batch, key, extra):
            del key
            return {
                "adapter": towers.embed(params, "adapter", batch["inputs"]["adapter"]),
                "teacher": towers.embed(extra, OLD_TEXT, batch["inputs"][OLD_TEXT]),
            }

        def part(rows, shared, axis_name):  # distances are taken between the rows of a device
            del shared, axis_name
            return distillation_loss(rows["adapter"], rows["teacher"], valid=rows["valid"], **options)

        return self._over_mesh(outputs, part, ("valid",))

    def _contrast(self, config) -> CoupledLoss:
        towers, options = self._towers, dict(config.loss)

        def outputs(params, batch, key, extra):
            del key, extra
            return {name: towers.embed(params, name, batch["inputs"][name]) for name in TRAINED}

        def part(rows, shared, axis_name):
            pair = rows["image"], rows["adapter"], rows.get("teacher")
            return proclip_loss(*pair, shared["log_scale"], valid=rows["valid"], axis_name=axis_name, **options)

        columns = ("valid", "teacher") if config.loss.regularisation > 0 else ("valid",)
        return self._over_mesh(outputs, part, columns, shared=lambda params: params["loss"])

    def _over_mesh(self, outputs, part, columns, **options) -> CoupledLoss:
        mesh = self._towers.mesh
        return coupled_over_mesh(outputs, part, mesh if mesh.size > 1 else None, columns=columns, **options)

    def advance(self, state, step: int, batch: dict):
        """(state, metrics) of a step of the stage that it belongs to; `batch` has "inputs" and "valid" on the host."""
        if step == self.first:  # the boundary: moments and average begin anew
            state = state.replace(opt_state=self._begin_again(state.params))
        batch = put_batch(batch, self._towers.mesh)
        if step >= self.first and self._holds_on:
            with under_mesh(self._towers.mesh):
                batch["teacher"] = self._teacher(average_of(state.opt_state), batch["inputs"]["image"])
        return self._steps[step >= self.first](state, batch)


def pretrained(config, towers: Towers, params: dict, text: dict, examples: Examples) -> tuple[dict, dict]:
    """(image encoder, old text encoder) after CLIP's loss on images and captions, at the scale of the config."""
    options, optimizer = config.pretraining, optax.adam(config.pretraining.learning_rate)
    scale = math.log(config.scale)

    def loss(trained, batch):
        pair = (towers.embed(trained, name, batch[name]) for name in ("image", OLD_TEXT))
        return objective.loss(clip_loss(*pair, scale))

    @jax.jit
    def step(trained, opt_state, batch):
        updates, opt_state = optimizer.update(jax.grad(loss)(trained, batch), opt_state)
        return optax.apply_updates(trained, updates), opt_state

    trained = {"image": params["image"], OLD_TEXT: text}
    opt_state = jax.jit(optimizer.init)(trained)
    order = Batches(range(len(examples)), options.batch_size, seed=config.seed)
    with under_mesh(towers.mesh):
        for position in range(options.steps):
            batch = spread(take(examples.inputs, order.indices(position)), towers.mesh)
            trained, opt_state = step(trained, opt_state, batch)
    places = {"image": towers.shardings["image"], OLD_TEXT: towers.text_shardings}
    trained = jax.device_put(trained, places)
    return trained["image"], trained[OLD_TEXT]


class Evaluation:
    """Retrieval of held-out pairs, and zero-shot classification of images by the texts of classes."""

    def __init__(self, config, towers: Towers):
        data = config.data
        self._embed = Embedder(towers, config.evaluation.batch_size, KINDS)
        self._pairs = read(data.held_out, data, KINDS, towers) if data.held_out else None
        self._images = self._classes = None
        if data.images and data.classes:
            self._images = read(data.images, data, ("image",), towers, concepts=True)
            self._classes = read(data.classes, data, ("adapter", OLD_TEXT), towers, concepts=True)

    def values(self, params, text: str = "adapter") -> dict[str, np.ndarray]:
        """Of every query; `text` says which text encoder of `params` reads the texts."""
        values = {}
        if self._pairs is not None:
            images, texts = (self._embed(params, name, self._pairs.inputs[name]) for name in ("image", text))
            own = np.eye(len(images), dtype=bool)
            for name, table in {"": images @ texts.T, ", backwards": texts @ images.T}.items():
                values[f"held-out recall@1{name}"] = retrieval_values(table, own, (1,))["recall@1"]
        if self._images is not None and self._classes is not None:
            images = self._embed(params, "image", self._images.inputs["image"])
            names = self._embed(params, text, self._classes.inputs[text])
            found = self._classes.concepts[(images @ names.T).argmax(-1)]
            values["zero-shot accuracy"] = (found == self._images.concepts).astype(np.float64)
        return values

    def metrics(self, params) -> dict[str, float]:
        return {name: float(x.mean()) for name, x in self.values(params).items()}

    def record(self, session: Session, params, when: str, text: str = "adapter") -> None:
        for name, values in self.values(params, text).items():
            if not session.has(name, when):
                session.record(name, when, values)


def check(config) -> None:
    """Raises UserError: settings that cannot work together. ValueError: an option that a loss refuses."""
    stages = config.distillation
    if not 0 <= stages.steps <= config.train.steps:
        raise UserError(
            f"config.distillation.steps={stages.steps} must lie between 0 and config.train.steps={config.train.steps}, "
            "which counts both stages"
        )
    for name, size in {"distillation.batch_size": stages.batch_size, "batch_size": config.batch_size}.items():
        if size % config.train.micro_batches:
            raise UserError(
                f"config.{name}={size} does not divide into "
                f"config.train.micro_batches={config.train.micro_batches} parts"
            )
    if config.scale <= 0 or config.loss.regularisation < 0:
        raise UserError(
            f"config.scale={config.scale} must be positive and config.loss.regularisation="
            f"{config.loss.regularisation} not negative"
        )
    # Both losses asked once for their complaints: an option of stage 2 is not refused only when stage 1 is done.
    x = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    jax.eval_shape(lambda x: distillation_loss(x, x, **stages.loss), x)
    jax.eval_shape(lambda x: proclip_loss(x, x, x, 0.0, **config.loss), x)


def run(config, workdir: str) -> None:
    """Trains with `config` in `workdir`; the same call again resumes."""
    check(config)
    with Session(config, workdir) as session:
        mesh, data = make_mesh(**config.mesh), config.data
        for size in (config.distillation.batch_size, config.batch_size):
            check_pools(size, mesh)
        sources = {"image": data.source, "adapter": data.source, OLD_TEXT: data.texts}
        firsts = {kind: column(load_source(spec), data[FIELDS[kind]])[0][0] for kind, spec in sources.items()}
        towers = Towers(config, firsts, mesh)
        for line in towers.describe().items():
            session.print(": ".join(line))  # the first lines: which encoders, and why these
        texts = read(data.texts, data, ("adapter", OLD_TEXT), towers)
        pairs = read(data.source, data, TRAINED, towers)
        evaluation = Evaluation(config, towers)
        stages = Stages(config, towers)
        session.announce(
            {
                "model": "; ".join(": ".join(line) for line in towers.describe().items()),
                "stage 1": f"{stages.first} steps, {config.distillation.batch_size} of {len(texts)} texts "
                f"({data.texts})"
                if stages.first
                else "none",
                "stage 2": f"{config.train.steps - stages.first} steps, {config.batch_size} of {len(pairs)} pairs "
                f"({data.source}), regularisation {config.loss.regularisation:g}",
                "held out": data.held_out or None,
            },
            mesh,
        )
        part = dict(seed=config.seed, process_index=jax.process_index(), process_count=jax.process_count())
        orders = {
            "texts": Batches(range(len(texts)), config.distillation.batch_size, **part),
            "pairs": Batches(range(len(pairs)), config.batch_size, **part),
        }

        def data_state(done: int) -> dict:
            return {name: BatchIterator(order, done).get_state() for name, order in orders.items()}

        def check_data(saved: dict) -> None:
            for name, order in orders.items():
                BatchIterator(order).set_state(saved[name])

        restored = session.restore(stages.layout.abstract, check_data)
        if restored is not None:
            state, start = restored
        else:
            params, text = towers.begin()
            if config.pretraining.steps:
                session.print(f"  training the old towers for {config.pretraining.steps} steps ...")
                examples = read(data.pretraining, data, ("image", OLD_TEXT), towers)
                params["image"], text = pretrained(config, towers, params, text, examples)
            evaluation.record(session, {**params, OLD_TEXT: text}, "before", text=OLD_TEXT)
            state, start = fresh_state(config, params, stages.optimizer, stages.layout, {OLD_TEXT: text}), 0

        def advance(state, step: int) -> Advance:
            began, later = time.perf_counter(), step >= stages.first
            order, examples = (orders["pairs"], pairs) if later else (orders["texts"], texts)
            rows = order.indices(step - stages.first if later else step)
            batch = {"inputs": take(examples.inputs, rows), "valid": np.ones(len(rows), np.float32)}
            state, metrics = stages.advance(state, step, batch)
            metrics = {name: float(value) for name, value in metrics.items()} | {"stage": 1.0 + later}
            metrics["rows_per_second"] = order.batch_size / (time.perf_counter() - began)
            return Advance(state, metrics, [], batch)

        def evaluate(state, done: int) -> dict[str, float]:
            del done
            return evaluation.metrics(state.params)

        state, done = session.fit(state, advance, start=start, data_state=data_state, evaluate=evaluate)
        if not session.stopped:
            evaluation.record(session, state.params, "after")
        session.finish(done)
