"""Representation training: encoders under any loss of embeddings, on pairs, groups, views or labelled examples.

Every example of a batch is embedded by itself, and the loss looks at all of them together, over all devices and
micro-batches. What a paper changes is the loss and its settings (`config.contrastive.loss`, `config.loss`; see
`experiments.embedding_losses`), never this file. Examples are read once and held in host memory.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.embedding_evaluations import Embedder, HeldOut, HeldOutViews, ScoredPairs
from experiments.embedding_losses import LOSSES, EmbeddingLoss
from experiments.evaluated_run import Evaluation, train
from experiments.examples import Examples, inputs_of, read_examples, take
from experiments.session import Session
from experiments.setup import build_optimizer, check_micro_batches, evaluated_params, fresh_state, layout_of
from experiments.towers import Towers
from jaxalign.data.class_batches import ClassBatches
from jaxalign.data.order import Batches
from jaxalign.errors import UserError
from jaxalign.placement import BATCH_AXES
from jaxalign.training.accumulation import CoupledLoss
from jaxalign.training.coupled import check_pools, coupled_over_mesh
from jaxalign.training.mesh import make_mesh, put_batch

POOLS = {"all": BATCH_AXES, "data": ("data",), "fsdp": ("fsdp",)}


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
    check_micro_batches(config, "contrastive.batch_size")
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


def make_evaluations(config, form: str, towers: Towers) -> list[Evaluation]:
    """Of the held-out examples and of the judged pairs, where the config names them."""
    size, evaluations = config.evaluation.batch_size, []
    embedder = Embedder(towers, size)
    if config.data.held_out:
        held_out = read_examples(config.data.held_out, config.data, form)
        views = form == "views"
        evaluations.append(HeldOutViews(held_out, towers, size) if views else HeldOut(held_out, towers, embedder))
    if config.data.similarities:
        scored = read_examples(config.data.similarities, config.data, "scored")
        evaluations.append(ScoredPairs(scored, towers, embedder))
    return evaluations


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
        evaluations = make_evaluations(config, chosen.form, towers)
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

        def batch_at(step: int) -> dict:
            rows = batches.indices(step)
            batch = {"inputs": take(inputs, rows), "valid": np.ones(len(rows), np.float32), "ids": examples.ids[rows]}
            if examples.labels is not None:
                batch["labels"] = examples.labels[rows]
            if examples.mask is not None:
                batch["mask"] = examples.mask[rows].astype(np.float32)
            return batch

        train(
            session,
            layout.abstract,
            batches,
            first=towers.read,
            state_of=lambda found: fresh_state(config, towers.begin(found, session.checkpointer), optimizer, layout),
            batch_at=batch_at,
            take_step=lambda state, batch, step: train_step(state, put_batch(batch, mesh)),
            evaluations=evaluations,
            weights=lambda state: towers.weights(evaluated_params(state)),
        )
