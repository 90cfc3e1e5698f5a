"""The encoders of a text replacement, old and new: what they read, how the old ones begin, how all are judged."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.embedding_evaluations import Embedder
from experiments.evaluated_run import Evaluation
from experiments.examples import take
from experiments.towers import RULES, Tower, column, common_size, integers, numbered_keys, open_tower, read_first, under
from jaxalign import objective
from jaxalign.data.order import Batches
from jaxalign.data.sources import load_source
from jaxalign.evaluation.retrieval import retrieval_values
from jaxalign.losses.contrastive import clip_loss
from jaxalign.placement import under_mesh
from jaxalign.training.mesh import spread
from jaxalign.training.sharding import shardings_for

OLD_TEXT = "text"  # where the old text encoder is, in TrainState.extra
TRAINED = ("image", "adapter")
KINDS = (*TRAINED, OLD_TEXT)
FIELDS = {"image": "image_field", "adapter": "embedding_field", OLD_TEXT: "caption_field"}  # in config.data


class Examples(NamedTuple):
    """What the encoders read of the examples of a source, by their names, and the concepts where it has them."""

    inputs: dict[str, dict[str, np.ndarray]]
    concepts: np.ndarray | None

    def __len__(self) -> int:
        return len(next(iter(next(iter(self.inputs.values())).values())))


class Towers:
    """The encoders: `image`, `adapter` and the old `text`; the first two are what is trained.

    Attributes: abstract, shardings: of the trained parameters {"image", "adapter", "loss": {"log_scale"}};
    abstract_text: of the old text encoder; all_shardings: of all of them.
    """

    def __init__(self, config, examples: dict[str, Any], mesh: jax.sharding.Mesh):
        self.mesh, self._config = mesh, config
        self._of: dict[str, Tower] = {name: open_tower(config.encoders[name], examples[name]) for name in KINDS}
        common_size(self._of)
        abstract = {name: tower.encoder.abstract_params() for name, tower in self._of.items()}
        tables = {name: RULES[type(tower.encoder)] for name, tower in self._of.items()}
        abstract |= {"loss": {"log_scale": jax.ShapeDtypeStruct((), jnp.float32)}}
        self.all_shardings = shardings_for(abstract, under(tables), mesh)
        self.abstract_text = abstract.pop(OLD_TEXT)
        self.abstract, self.shardings = abstract, {name: self.all_shardings[name] for name in abstract}

    def __getitem__(self, name: str) -> Tower:
        return self._of[name]

    def describe(self) -> dict[str, str]:
        titles = {"image": "image encoder", "adapter": "adapter", OLD_TEXT: "old text encoder"}
        return {titles[name]: tower.source for name, tower in self._of.items()}

    def begin(self) -> dict:
        """The trained parameters before anything, and beside them those of the old text encoder."""
        found = read_first(self._of, self.all_shardings, numbered_keys(self._config.seed, len(KINDS)))
        log_scale = {"log_scale": jnp.float32(math.log(self._config.scale))}
        return found | {"loss": jax.device_put(log_scale, self.shardings["loss"])}

    def embed(self, params, name: str, inputs) -> jax.Array:
        """[B, D] by the encoder of that name in `params`, not normalised."""
        return self._of[name].encoder.embed(params[name], inputs).astype(jnp.float32)


def read(spec: str, data, kinds: Sequence[str], towers: Towers, *, concepts: bool = False) -> Examples:
    """Raises UserError: a missing field, a value that its encoder cannot read, a concept that is no integer."""
    source = load_source(spec)
    inputs = {kind: towers[kind].inputs(*column(source, data[FIELDS[kind]])) for kind in kinds}
    found = None
    if concepts:
        found = integers(source, data.concept_field)
    return Examples(inputs, found)


def pretrained(config, towers: Towers, params: dict, examples: Examples) -> dict:
    """`params` with image and old text encoder after CLIP's loss on images and captions, at the scale of the config."""
    options, optimizer = config.pretraining, optax.adam(config.pretraining.learning_rate)
    scale = math.log(config.scale)

    def loss(trained, batch):
        pair = (towers.embed(trained, name, batch[name]) for name in ("image", OLD_TEXT))
        return objective.loss(clip_loss(*pair, scale))

    @jax.jit
    def step(trained, opt_state, batch):
        updates, opt_state = optimizer.update(jax.grad(loss)(trained, batch), opt_state)
        return optax.apply_updates(trained, updates), opt_state

    trained = {name: params[name] for name in ("image", OLD_TEXT)}
    opt_state = jax.jit(optimizer.init)(trained)
    order = Batches(range(len(examples)), options.batch_size, seed=config.seed)
    with under_mesh(towers.mesh):
        for position in range(options.steps):
            batch = spread(take(examples.inputs, order.indices(position)), towers.mesh)
            trained, opt_state = step(trained, opt_state, batch)
    return params | jax.device_put(trained, {name: towers.all_shardings[name] for name in trained})


class HeldOut(Evaluation):
    """Retrieval of held-out pairs, and zero-shot classification of images by the texts of classes.

    Texts are read by the adapter, and before training, while the parameters still hold it, by the old text encoder.
    """

    def __init__(self, config, towers: Towers):
        data = config.data
        self._embed = Embedder(towers, config.evaluation.batch_size, KINDS)
        self._pairs = read(data.held_out, data, KINDS, towers) if data.held_out else None
        self._images = self._classes = None
        if data.images and data.classes:
            self._images = read(data.images, data, ("image",), towers, concepts=True)
            self._classes = read(data.classes, data, ("adapter", OLD_TEXT), towers, concepts=True)

    def values(self, params) -> dict[str, np.ndarray]:
        text, values = OLD_TEXT if OLD_TEXT in params else "adapter", {}
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
