"""The programs of an experiment, from a config and devices that need not exist: what `experiments.aot` compiles.

Weights and data are not read. The shapes are those of `experiments.run` with the same config, for prompts of
config.data.max_prompt_tokens tokens, and the functions are those that it runs.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from experiments import rl, sft
from experiments.groups import abstract_groups, reference_use
from experiments.questions import PROMPT_BUCKET
from experiments.rollout import make_sampler, make_score
from experiments.setup import Model, build_optimizer, build_policy, decoder_options, state_layout
from jaxalign.data.packing import PackedRows
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.decoding.sampler import bucket_length
from jaxalign.errors import UserError
from jaxalign.models import loading
from jaxalign.models.config import NAMED, named
from jaxalign.models.decoder import Decoder
from jaxalign.models.scoring import frozen_copy
from jaxalign.placement import under_mesh
from jaxalign.training.mesh import batch_sharding, batch_shards, make_mesh, replicated
from jaxalign.training.sharding import DECODER_RULES, shardings_for
from jaxalign.training.state import with_shardings


class Part(NamedTuple):
    """A program to compile."""

    name: str
    lower: Callable[[], jax.stages.Lowered]
    state: int  # bytes of the whole train state on each device
    held: int  # bytes that lie on each device while the program runs without being its own


def abstract_model(config, devices) -> Model:
    """The decoder of a config on a mesh of `devices`, without its weights. Raises UserError."""
    try:
        mesh = make_mesh(**config.mesh, devices=devices)
    except NotImplementedError as error:
        raise UserError(
            f"config.mesh={dict(config.mesh)} cannot be laid over this slice: every axis is a product of sides of the "
            "slice; choose sizes so"
        ) from error
    name = config.model.path.removeprefix("random:")
    shape = named(name) if name.partition("?")[0] in NAMED else loading.read_config(config.model.path)
    decoder = Decoder(shape, **decoder_options(config))
    shardings = shardings_for(decoder.abstract_params(), DECODER_RULES, mesh)
    return Model(decoder, Tokenizer.bytes(), mesh, shardings, lambda: {}, name)


def parts(config, model: Model) -> dict[str, Part]:
    """The programs of the config's experiment. Raises UserError: settings that cannot work together."""
    return {"rl": rl_parts, "sft": sft_parts}[config.experiment](config, model)


def rl_parts(config, model) -> dict[str, Part]:
    """The programs of experiments/rl.py."""
    rl.check(config)
    updates = config.rl.epochs * config.rl.batches_per_epoch
    optimizer = build_optimizer(config, updates)
    copy = jax.eval_shape(lambda params: frozen_copy(model.decoder, params), model.decoder.abstract_params())
    reference = with_shardings(copy, model.shardings)
    policy = build_policy(config, model)
    adapted = policy.adapter is not None
    in_state = bool(reference_use(config)) and config.warm_start.steps > 0 and not adapted
    layout = state_layout(policy, optimizer, {"reference": copy} if in_state else {})
    base = (policy.abstract_base(),) if adapted else ()
    if adapted:
        reference = base[0]
    width = bucket_length([config.data.max_prompt_tokens], PROMPT_BUCKET)
    groups = abstract_groups(config, width, with_old=updates > 1)
    part = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] // config.rl.batches_per_epoch, *x.shape[1:]), x.dtype), groups
    )
    filled = spread_shapes(groups, model.mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(model.mesh))

    def train():
        loss_fn = rl.build_loss(config, model.decoder)
        step = policy.compiled_step(loss_fn, optimizer, layout, micro_batches=config.train.micro_batches)
        return step.lower(layout.abstract, placed(part, batch_sharding(model.mesh)), *base)

    def score():
        with under_mesh(model.mesh):
            return make_score(config, model.decoder).lower(reference, *filled[:4])

    def decode():
        sampler = make_sampler(config, model)
        return sampler.lower(
            policy.weight_shapes(layout.abstract.params),
            filled.prompts,
            filled.prompt_lengths,
            key,
            samples_per_prompt=config.rollout.group_size,
        )

    state, params = device_bytes(layout.abstract), device_bytes(layout.abstract.params)
    frozen = device_bytes(reference) if reference_use(config) and not in_state and not adapted else 0
    return {
        "train": Part("train step", train, state, frozen),
        "score": Part("scoring step", score, state, state),
        "decode": Part("decode program", decode, state, state - params + frozen),
    }


def sft_parts(config, model) -> dict[str, Part]:
    """The programs of experiments/sft.py."""
    optimizer = build_optimizer(config)
    policy = build_policy(config, model)
    layout = state_layout(policy, optimizer)
    base = () if policy.adapter is None else (policy.abstract_base(),)
    shape = (config.packing.rows_per_step, config.packing.row_length)
    rows = PackedRows(*(jax.ShapeDtypeStruct(shape, np.int32) for _ in PackedRows._fields))

    def train():
        loss_fn = sft.make_loss(model.decoder, **config.loss)
        step = policy.compiled_step(loss_fn, optimizer, layout, micro_batches=config.train.micro_batches)
        return step.lower(layout.abstract, placed(rows, batch_sharding(model.mesh)), *base)

    return {"train": Part("train step", train, device_bytes(layout.abstract), 0)}


def spread_shapes(shapes, mesh):
    """What `jaxalign.training.mesh.spread(..., fill=True)` makes of a batch."""
    shards = batch_shards(mesh)

    def fill(x):
        rows = -(-x.shape[0] // shards) * shards
        return jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=batch_sharding(mesh))

    return jax.tree.map(fill, shapes)


def placed(shapes, sharding):
    """The shapes of a batch on the mesh. Raises UserError where its rows do not divide."""
    shards = batch_shards(sharding.mesh)
    rows = jax.tree.leaves(shapes)[0].shape[0]
    if rows % shards:
        raise UserError(
            f"a batch of {rows} rows does not divide over the {shards} devices of mesh.data x mesh.fsdp; set "
            f"config.rollout.prompts_per_step (sft: config.packing.rows_per_step) to a multiple of {shards}, or give "
            "devices to mesh.tensor"
        )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def device_bytes(tree) -> int:
    """Bytes of one device of a tree of shapes with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
