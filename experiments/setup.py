"""From a config to what every experiment on a decoder starts with: model, tokenizer, mesh, sharded state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import UserError
from jaxalign.models import loading
from jaxalign.models.config import NAMED
from jaxalign.models.decoder import Decoder
from jaxalign.training.mesh import make_mesh
from jaxalign.training.optimizers import make_optimizer
from jaxalign.training.sharding import DECODER_RULES, shardings_for, state_shardings
from jaxalign.training.state import TrainState, abstract_state, create_state


class Model(NamedTuple):
    """A decoder whose weights have not been read yet; `read()` gives them on the mesh."""

    decoder: Decoder
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    shardings: Any  # a tree of NamedSharding like the parameters
    read: Callable[[], dict]
    source: str  # one line: which weights, and why these

    def describe(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self.decoder.abstract_params()))
        precision = self.decoder.precision
        return f"{size / 1e6:,.1f} M in float32; products in {precision.compute}"


def decoder_options(config) -> dict[str, Any]:
    """What `config.model` says about how a decoder computes, whatever its size."""
    return {key: config.model[key] for key in ("compute_dtype", "remat", "attention")}


def build_model(config) -> Model:
    """The model of `config.model` on the mesh of `config.mesh`.

    Raises UserError: no such model, a tokenizer of another model, a mesh that does not fit the devices.
    """
    mesh = make_mesh(**config.mesh)
    options = decoder_options(config)
    path = config.model.path
    if path.startswith("random:"):
        name = path.removeprefix("random:")
        if name not in NAMED:
            raise UserError(f"config.model.path={path!r}: no size of that name; known are {', '.join(NAMED)}")
        decoder, tokenizer = Decoder(NAMED[name], **options), Tokenizer.bytes()
        source = f"{name}, untrained weights, byte tokenizer (config.model.path={path!r})"
    else:
        opened = loading.open_model(path)
        decoder, tokenizer, source = Decoder(opened.config, **options), opened.tokenizer, opened.source
    shardings = shardings_for(decoder.abstract_params(), DECODER_RULES, mesh)

    def read() -> dict:
        if path.startswith("random:"):
            return jax.jit(decoder.init, out_shardings=shardings)(jax.random.key(config.seed))
        return opened.read(shardings=shardings)

    return Model(decoder, tokenizer, mesh, shardings, read, source)


def build_optimizer(config, updates_per_step: int = 1):
    """The optimizer of `config.optimizer`; its schedule counts updates, of which a step makes `updates_per_step`."""
    return make_optimizer(**config.optimizer, total_steps=config.train.steps * updates_per_step)


class Layout(NamedTuple):
    """The shapes and the places of a TrainState, before it exists."""

    abstract: TrainState  # ShapeDtypeStructs that carry their shardings: to restore onto
    shardings: TrainState


def state_layout(model: Model, optimizer, extra: dict | None = None) -> Layout:
    key = jax.random.key(0)
    plain = abstract_state(model.decoder.abstract_params(), optimizer, key, extra)
    shardings = state_shardings(plain, model.shardings, model.mesh)
    abstract = abstract_state(model.decoder.abstract_params(), optimizer, key, extra, shardings=shardings)
    return Layout(abstract, shardings)


def fresh_state(config, params, optimizer, layout: Layout, extra: dict | None = None) -> TrainState:
    """The state before the first step; it owns `params` (see `create_state`)."""
    return create_state(params, optimizer, jax.random.key(config.seed), extra, shardings=layout.shardings)
