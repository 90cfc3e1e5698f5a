"""From a config to what every experiment on a decoder starts with: model, tokenizer, mesh and a sharded state."""

from typing import NamedTuple

import jax

from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import UserError
from jaxalign.models import loading
from jaxalign.models.config import NAMED
from jaxalign.models.decoder import Decoder
from jaxalign.training.mesh import make_mesh
from jaxalign.training.optimizers import make_optimizer
from jaxalign.training.sharding import DECODER_RULES, shardings_for


class Model(NamedTuple):
    """A decoder with weights on the mesh. `source` says in one line which weights these are and why."""

    decoder: Decoder
    params: dict
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    source: str


def build_model(config) -> Model:
    """The model of `config.model` on the mesh of `config.mesh`."""
    mesh = make_mesh(**config.mesh)
    options = {key: config.model[key] for key in ("compute_dtype", "remat", "attention")}
    path = config.model.path
    if path.startswith("random:"):
        name = path.removeprefix("random:")
        if name not in NAMED:
            raise UserError(f"config.model.path={path!r}: no size of that name; known are {', '.join(NAMED)}")
        decoder = Decoder(NAMED[name], **options)
        shardings = shardings_for(decoder.abstract_params(), DECODER_RULES, mesh)
        params = jax.jit(decoder.init, out_shardings=shardings)(jax.random.key(config.seed))
        source = f"{name}, untrained weights (config.model.path={path!r})"
        return Model(decoder, params, Tokenizer.bytes(), mesh, source)

    def place(decoder_config):
        return shardings_for(Decoder(decoder_config, **options).abstract_params(), DECODER_RULES, mesh)

    loaded = loading.load(path, shardings=place)
    return Model(Decoder(loaded.config, **options), loaded.params, loaded.tokenizer, mesh, loaded.source)


def build_optimizer(config, updates_per_step: int = 1):
    """The optimizer of `config.optimizer`; schedules count updates, of which a step makes `updates_per_step`."""
    return make_optimizer(**config.optimizer, total_steps=config.train.steps * updates_per_step)


def count_parameters(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
