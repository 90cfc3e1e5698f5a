"""Another text encoder for a trained pair of towers, in two stages (docs/methods/proclip.md).

The new text encoder is an adapter on embeddings that a frozen language model has given. First the adapter learns what
the old text encoder says of texts (`config.distillation`), then the image encoder and the adapter learn pairs by
contrast, and the image encoder is held near a moving average of itself (`config.loss`). At the boundary the optimizer
and the average begin anew. The old text encoder is part of the state, because it may have been trained here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.evaluated_run import train
from experiments.examples import take
from experiments.replaced_towers import FIELDS, OLD_TEXT, TRAINED, HeldOut, Towers, pretrained, read
from experiments.session import Session
from experiments.setup import Layout, check_micro_batches, fresh_state, layout_of
from experiments.towers import column
from jaxalign.data.order import Batches
from jaxalign.data.sources import load_source
from jaxalign.errors import UserError
from jaxalign.losses.proclip import distillation_loss, proclip_loss
from jaxalign.placement import under_mesh
from jaxalign.training.accumulation import CoupledLoss
from jaxalign.training.coupled import check_pools, coupled_over_mesh
from jaxalign.training.ema import average_of, averaged
from jaxalign.training.mesh import batch_sharding, make_mesh, put_batch
from jaxalign.training.optimizers import make_optimizer
from jaxalign.training.state import TrainState
from jaxalign.training.step import make_train_step


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
        """(state, metrics) of a step of its stage; `batch` has "inputs" and "valid" on the host."""
        if step == self.first:  # the boundary: moments and average begin anew
            state = state.replace(opt_state=self._begin_again(state.params))
        batch = put_batch(batch, self._towers.mesh)
        if step >= self.first and self._holds_on:
            with under_mesh(self._towers.mesh):
                batch["teacher"] = self._teacher(average_of(state.opt_state), batch["inputs"]["image"])
        state, metrics = self._steps[step >= self.first](state, batch)
        return state, metrics | {"stage": 1 + (step >= self.first)}


def check(config) -> None:
    """Raises UserError: settings that cannot work together. ValueError: an option that a loss refuses."""
    stages = config.distillation
    if not 0 <= stages.steps <= config.train.steps:
        raise UserError(
            f"config.distillation.steps={stages.steps} must lie between 0 and config.train.steps={config.train.steps}, "
            "which counts both stages"
        )
    check_micro_batches(config, "distillation.batch_size", "batch_size")
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

        def first() -> dict:
            params = towers.begin()
            if config.pretraining.steps:
                session.print(f"  training the old towers for {config.pretraining.steps} steps ...")
                params = pretrained(config, towers, params, read(data.pretraining, data, ("image", OLD_TEXT), towers))
            return params

        def state_of(params: dict) -> TrainState:
            trained = {name: params[name] for name in towers.abstract}
            return fresh_state(config, trained, stages.optimizer, stages.layout, {OLD_TEXT: params[OLD_TEXT]})

        def batch_at(step: int) -> dict:
            later = step >= stages.first
            order, examples = (orders["pairs"], pairs) if later else (orders["texts"], texts)
            rows = order.indices(step - stages.first if later else step)
            return {"inputs": take(examples.inputs, rows), "valid": np.ones(len(rows), np.float32)}

        train(
            session,
            stages.layout.abstract,
            orders,
            first=first,
            state_of=state_of,
            batch_at=batch_at,
            take_step=lambda state, batch, step: stages.advance(state, step, batch),
            evaluations=[HeldOut(config, towers)],
            weights=lambda state: state.params,
        )
