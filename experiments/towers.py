"""The encoders of a contrastive run, one for both sides of a pair or one each, and the examples as they read them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.setup import BASE, Layout, adapter_config
from jaxalign.data.sources import Source, where
from jaxalign.errors import UserError
from jaxalign.models.encoders import OpenEncoder, open_encoder
from jaxalign.models.fingerprint import fingerprint
from jaxalign.models.image_encoder import ImageEncoder
from jaxalign.models.lora import abstract_adapter, attach, init_adapter
from jaxalign.models.mlp_encoder import MlpEncoder
from jaxalign.models.sentences import cut_tokens, token_rows
from jaxalign.models.text_encoder import TextEncoder
from jaxalign.training.checkpoints import Checkpointer
from jaxalign.training.sharding import (
    IMAGE_ENCODER_RULES,
    MLP_ENCODER_RULES,
    TEXT_ENCODER_RULES,
    Rule,
    adapter_rules,
    shardings_for,
)
from jaxalign.training.step import make_train_step

SIDES = ("first", "second")
LENGTH_BUCKET = 8  # texts are padded to a multiple of so many tokens

RULES: dict[type, Sequence[Rule]] = {
    MlpEncoder: MLP_ENCODER_RULES,
    TextEncoder: TEXT_ENCODER_RULES,
    ImageEncoder: IMAGE_ENCODER_RULES,
}


class Tower(NamedTuple):
    encoder: Any
    opened: OpenEncoder | None  # None: begins at random
    source: str  # one line: which, and why

    def inputs(self, values: Sequence[Any], places: Sequence[str]) -> dict[str, np.ndarray]:
        """What the encoder reads, of values of a source; `places` say where each is from.

        Raises UserError: a value of another kind, or vectors of another size.
        """
        if isinstance(self.encoder, TextEncoder):
            for value, place in zip(values, places, strict=True):
                if not isinstance(value, str):
                    raise UserError(f"{place} has no text: {type(value).__name__} {str(value)[:40]!r}")
            assert self.opened is not None
            if self.opened.tokenizer is None:
                raise UserError(f"{self.opened.name} has no tokenizer.json: texts cannot be read")
            rows = cut_tokens(self.opened.tokenizer, list(values), self.opened.preprocess.max_length)
            longest = max(map(len, rows))
            return token_rows(rows, -(-longest // LENGTH_BUCKET) * LENGTH_BUCKET, self.opened.tokenizer.pad_id)
        try:
            arrays = np.stack([np.asarray(value, np.float32) for value in values])
        except (ValueError, TypeError) as error:
            raise UserError(f"{places[0]} and others are not arrays of one shape ({error})") from error
        if isinstance(self.encoder, ImageEncoder):
            preprocess = self.opened.preprocess if self.opened else None
            return {"images": np.asarray(preprocess.images(arrays) if preprocess else arrays)}
        flat = arrays.reshape(len(arrays), -1)
        if flat.shape[1] != self.encoder.in_dim:
            raise UserError(f"{places[0]} has {flat.shape[1]} numbers, the encoder takes {self.encoder.in_dim}")
        return {"features": flat}


def open_tower(options, example: Any) -> Tower:
    """A config group `encoders.first` or `.second`; the size of plain vectors is that of `example`.

    Raises UserError: no such encoder; an example that is neither text nor numbers.
    """
    if options.path:
        opened = open_encoder(options.path, dropout=options.dropout)
        if type(opened.encoder) not in RULES:
            raise UserError(
                f"config.encoders: {options.path!r} is a {type(opened.encoder).__name__}; give each side a text or an "
                "image encoder of its own"
            )
        return Tower(opened.encoder, opened, opened.source)
    if isinstance(example, str):
        raise UserError(
            "texts need an encoder: set config.encoders.first.path='auto' (MiniLM) or a Hugging Face folder"
        )
    encoder = MlpEncoder(
        int(np.size(example)),
        tuple(options.hidden_dims),
        options.out_dim,
        dropout=options.dropout,
        input_dropout=options.input_dropout,
    )
    widths = "-".join(map(str, encoder.dims))
    return Tower(encoder, None, f"linear maps {widths}, begun at random")


class Towers:
    """Both sides. Weights are {"first": ..., "second": ... unless shared, "loss": what the loss learns}.

    `params` is what TrainState.params holds: the weights, or with `config.adapter` adapters in place of encoders. These
    are then the `base`, and stay as they are.

    Attributes: abstract, shardings: of `params`. base: None before `begin` or `resume`, and without an adapter.
    """

    def __init__(self, config, examples: dict[str, Any], learned: dict[str, Any], mesh: jax.sharding.Mesh):
        """`examples` has one value of each side (one: the sides share an encoder); `learned` begins the loss's part."""
        self.mesh, self._seed, self._learned = mesh, config.seed, learned
        first = open_tower(config.encoders.first, examples["first"])
        self._of = dict.fromkeys(SIDES, first)
        self.names: tuple[str, ...] = ("first",)
        if "second" in examples and not config.encoders.shared:
            self._of["second"] = open_tower(config.encoders.second, examples["second"])
            self.names = SIDES
        self.embedding_dim = common_size({name: self._of[name] for name in self.names})
        self._learned = jax.eval_shape(lambda: learned(self.embedding_dim))
        self._begin_loss = learned
        encoders = {name: self._of[name].encoder.abstract_params() for name in self.names}
        tables = {name: RULES[type(self._of[name].encoder)] for name in self.names}
        self._weight_shardings = shardings_for({**encoders, "loss": self._learned}, under(tables), mesh)
        self.adapter, self.base = adapter_config(config), None
        self.abstract, self.shardings = {**encoders, "loss": self._learned}, self._weight_shardings
        if self.adapter is not None:
            if config.adapter.path:
                raise UserError("config.adapter.path is for adapters of decoders; those of encoders begin anew")
            adapters = {name: abstract_adapter(tree, self.adapter) for name, tree in encoders.items()}
            self.abstract = {**adapters, "loss": self._learned}
            adapted = {name: adapter_rules(rules) for name, rules in tables.items()}
            self.shardings = shardings_for(self.abstract, under(adapted), mesh)

    def __getitem__(self, side: str) -> Tower:
        return self._of[side]

    def describe(self) -> dict[str, str]:
        return {name if len(self.names) > 1 else "encoder": self._of[name].source for name in self.names}

    def read(self) -> dict:
        """The first weights, where they belong."""
        towers = {name: self._of[name] for name in self.names}
        params = read_first(towers, self._weight_shardings, numbered_keys(self._seed, len(towers)))
        begin = jax.jit(lambda: self._begin_loss(self.embedding_dim), out_shardings=self.shardings["loss"])
        return params | {"loss": begin()}

    def begin(self, weights: dict, checkpointer: Checkpointer) -> dict:
        """The first `params`, from the first weights, which are given away."""
        if self.adapter is None:
            return weights
        self._hold(weights, checkpointer)
        start = functools.partial(init_adapter, config=self.adapter)
        adapters = {
            name: jax.jit(start, out_shardings=self.shardings[name])(jax.random.key(self._seed), self.base[name])
            for name in self.names
        }
        return {**adapters, "loss": weights["loss"]}

    def resume(self, checkpointer: Checkpointer) -> None:
        """Before a state is restored: the base is read again, and only a state over the same base will be restored."""
        if self.adapter is not None:
            self._hold(self.read(), checkpointer)

    def _hold(self, weights: dict, checkpointer: Checkpointer) -> None:
        self.base = {name: weights[name] for name in self.names}
        checkpointer.require(BASE, fingerprint(self.base))

    def attach(self, base, params) -> dict:
        """The weights of adapters over a base; gradient reaches the adapters and what the loss learns."""
        adapted = {name: attach(base[name], params[name], self.adapter) for name in self.names}
        return {**adapted, "loss": params["loss"]}

    def weights(self, params) -> dict:
        return params if self.adapter is None else self.attach(self.base, params)

    def train_step(self, loss_fn, optimizer, layout: Layout, *, micro_batches: int) -> Callable:
        """(state, batch) -> (state, metrics); `loss_fn` takes the weights."""
        options: dict[str, Any] = dict(mesh=self.mesh, shardings=layout.shardings, micro_batches=micro_batches)
        if self.adapter is None:
            return make_train_step(loss_fn, optimizer, **options)
        frozen = {name: self._weight_shardings[name] for name in self.names}
        step = make_train_step(loss_fn, optimizer, attach=self.attach, frozen_shardings=frozen, **options)
        return lambda state, batch: step(state, batch, self.base)

    def embed(self, params, side: str, inputs, key=None) -> jax.Array:
        """[B, D] of one side, not normalised."""
        name = side if side in self.names else "first"
        return self._of[side].encoder.embed(params[name], inputs, key=key).astype(jnp.float32)


def common_size(towers: dict[str, Tower]) -> int:
    """Of their embeddings. Raises UserError: it is not one."""
    sizes = {name: tower.encoder.embedding_dim for name, tower in towers.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"the encoders give embeddings of different sizes: {sizes}; they must meet in one space")
    return min(sizes.values())


def numbered_keys(seed: int, number: int) -> list[jax.Array]:
    return [jax.random.fold_in(jax.random.key(seed), index) for index in range(number)]


def under(tables: dict[str, Sequence[Rule]]) -> list[Rule]:
    """The rules of encoders, each under its name, and that of what the loss learns."""
    rules = [rule._replace(pattern=f"{name}/(?:{rule.pattern})") for name, table in tables.items() for rule in table]
    return [*rules, Rule("loss/.*", jax.sharding.PartitionSpec(), optional=True)]


def read_first(towers: dict[str, Tower], shardings: dict[str, Any], keys: Sequence[jax.Array]) -> dict[str, Any]:
    """The first weights of encoders by name, where they belong: from their folders, or at random from one key each."""
    found = {}
    for (name, tower), key in zip(towers.items(), keys, strict=True):
        if tower.opened is not None:
            found[name] = tower.opened.read(shardings=shardings[name])
        else:
            found[name] = jax.jit(tower.encoder.init, out_shardings=shardings[name])(key)
    return found


def column(source: Source, field: str) -> tuple[list[Any], list[str]]:
    """A field of all examples, and where each is from. Raises UserError: an example without it."""
    values, places = [], []
    for index in range(len(source)):
        example = source[index]
        if field not in example:
            raise UserError(
                f"{where(source, index)} has no field {field!r}; its fields are {', '.join(map(str, example))}"
            )
        values.append(example[field])
        places.append(where(source, index))
    return values, places


def integers(source: Source, field: str) -> np.ndarray:
    """A field of all examples as [N] int32. Raises UserError: an example without it, a value that is no integer."""
    values, places = column(source, field)
    for value, place in zip(values, places, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise UserError(f"{place}: {field!r} is {' '.join(str(value).split())[:40]!r}, not an integer")
    return np.asarray(values, np.int32)
