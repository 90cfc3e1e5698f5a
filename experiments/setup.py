"""From a config to what every experiment on a decoder starts with: model, tokenizer, mesh, policy, sharded state."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from experiments.groups import has_critic
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import UserError
from jaxalign.models import loading, peft_io
from jaxalign.models.config import named
from jaxalign.models.decoder import Decoder
from jaxalign.models.fingerprint import fingerprint
from jaxalign.models.lora import LoraConfig, abstract_adapter, adapter_modules, attach, attach_shapes, init_adapter
from jaxalign.models.scoring import frozen_copy
from jaxalign.models.value_head import NAME as VALUE_HEAD
from jaxalign.models.value_head import init_value_head
from jaxalign.placement import under_mesh
from jaxalign.training import configuration
from jaxalign.training.checkpoints import Checkpointer
from jaxalign.training.ema import average_of, averaged
from jaxalign.training.mesh import make_mesh
from jaxalign.training.optimizers import make_optimizer
from jaxalign.training.sharding import ADAPTER_RULES, DECODER_RULES, shardings_for, state_shardings
from jaxalign.training.state import TrainState, abstract_state, create_state, with_shardings
from jaxalign.training.step import LossFn, make_train_step

BASE = "base weights"  # under this name a checkpoint keeps the fingerprint of an adapter's base


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
        try:
            decoder, tokenizer = Decoder(named(name), **options), Tokenizer.bytes()
        except UserError as error:
            raise UserError(f"config.model.path={path!r}: {error}") from error
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


def check_micro_batches(config, *names: str) -> None:
    """Raises UserError: one of these keys of the config, numbers of rows, does not divide into the micro-batches."""
    values, parts = configuration.flatten(config), config.train.micro_batches
    for name in names:
        if values[name] % parts:
            raise UserError(
                f"config.{name}={values[name]} does not divide into config.train.micro_batches={parts} parts"
            )


def build_optimizer(config, updates_per_step: int = 1):
    """The optimizer of `config.optimizer`; its schedule counts updates, of which a step makes `updates_per_step`.

    With `config.train.ema_decay` its state keeps an average of the parameters (`training.ema`).
    """
    optimizer = make_optimizer(**config.optimizer, total_steps=config.train.steps * updates_per_step)
    return averaged(optimizer, config.train.ema_decay) if config.train.ema_decay else optimizer


def adapter_config(config) -> LoraConfig | None:
    """What `config.adapter` asks for; None trains all weights. Raises UserError: a kind that is not known."""
    options = config.adapter
    if options.kind == "none":
        return None
    names = ("kind", "rank", "alpha", "rank_scaled", "targets")
    return LoraConfig(**{name: options[name] for name in names})


def frozen_base(decoder: Decoder, weights) -> dict:
    """The weights under an adapter: kernels and tables in the compute dtype; as they are where activations are float32
    (on a CPU, which reads them faster)."""
    return weights if decoder.precision.activation == "float32" else frozen_copy(decoder, weights)


class Policy:
    """What a run trains: all weights of a model, or an adapter over weights that stay as they are (`config.adapter`).

    `params` is always what TrainState.params holds, `weights` what the decoder takes. With an adapter there is one copy
    of the weights, `base`: the policy is base + adapter, the reference is base alone.

    Attributes:
      adapter: a LoraConfig, or None where all weights are trained.
      abstract, shardings: of `params`.
      base: the frozen weights (see `frozen_base`); None before `begin` or `resume`, and without an adapter.
    """

    def __init__(
        self,
        model: Model,
        adapter: LoraConfig | None = None,
        *,
        path: str = "",
        seed: int = 0,
        value_head: bool = False,
    ):
        self.model, self.mesh, self.adapter, self._value_head = model, model.mesh, adapter, value_head
        self._path, self._seed = path, seed
        self.abstract, self.shardings, self.base = model.decoder.abstract_params(), model.shardings, None
        if adapter is not None:
            self.abstract = abstract_adapter(self.abstract, adapter)
            self.shardings = shardings_for(self.abstract, ADAPTER_RULES, self.mesh)
        if value_head:
            head = jax.eval_shape(self._new_value_head)
            self.abstract = {**self.abstract, **head}
            self.shardings = shardings_for(self.abstract, DECODER_RULES, self.mesh)

    def _new_value_head(self) -> dict:
        return {VALUE_HEAD: init_value_head(self.model.decoder.config.embed_dim)}

    def describe(self) -> str:
        if self.adapter is None:
            return self.model.describe()
        size = sum(leaf.size for leaf in jax.tree.leaves(self.abstract))
        modules = ", ".join(module.rpartition("/")[2] for module in adapter_modules(self.abstract))
        return f"{self.model.describe()}; trained: {size / 1e6:,.2f} M ({self.adapter.kind} of {modules})"

    def begin(self, weights, checkpointer: Checkpointer | None = None) -> Any:
        """The first `params`, from the first weights, which are given away. Checkpoints will name the base."""
        if self._value_head:
            return weights | jax.jit(self._new_value_head, out_shardings={VALUE_HEAD: self.shardings[VALUE_HEAD]})()
        if self.adapter is None:
            return weights
        self._hold(weights, checkpointer)
        if self._path:
            found = peft_io.load(self._path, self.model.decoder.config, expected=self.adapter)
            return jax.device_put(found.adapter, self.shardings)
        start = functools.partial(init_adapter, config=self.adapter)
        return jax.jit(start, out_shardings=self.shardings)(jax.random.key(self._seed), self.base)

    def resume(self, read: Callable[[], dict], checkpointer: Checkpointer | None = None) -> None:
        """Before a state is restored: the base is read again, and only a state of the same base will be restored.

        Without an adapter nothing is read.
        """
        if self.adapter is not None:
            self._hold(read(), checkpointer)

    def weights(self, params) -> dict:
        return params if self.adapter is None else attach(self.base, params, self.adapter)

    def evaluated(self, state: TrainState) -> dict:
        """The weights that evaluations read: of the average of `params` where the run keeps one."""
        return self.weights(evaluated_params(state))

    def abstract_weights(self) -> dict:
        """Shapes of `weights`."""
        if self.adapter is None:
            return self.abstract
        return jax.eval_shape(
            functools.partial(attach, config=self.adapter), self.model.decoder.abstract_params(), self.abstract
        )

    def weight_shapes(self, params) -> dict:
        """`weights` for shapes that carry their shardings."""
        return params if self.adapter is None else attach_shapes(self.abstract_base(), params, self.adapter)

    def abstract_base(self) -> dict:
        """Shapes and places of `base`, as the devices of the mesh hold it."""
        with under_mesh(self.mesh):
            shapes = jax.eval_shape(
                functools.partial(frozen_base, self.model.decoder), self.model.decoder.abstract_params()
            )
        return with_shardings(shapes, self.model.shardings)

    def compiled_step(self, loss_fn: LossFn, optimizer, layout: "Layout", *, micro_batches: int = 1) -> Callable:
        """`make_train_step` of this policy: (state, batch[, base]) -> (state, metrics); `loss_fn` takes weights."""
        options = dict(mesh=self.mesh, shardings=layout.shardings, micro_batches=micro_batches)
        if self.adapter is not None:
            options |= dict(
                attach=functools.partial(attach, config=self.adapter), frozen_shardings=self.model.shardings
            )
        return make_train_step(loss_fn, optimizer, **options)

    def train_step(self, loss_fn: LossFn, optimizer, layout: "Layout", *, micro_batches: int = 1) -> Callable:
        """`compiled_step` over the base that is held: (state, batch) -> (state, metrics)."""
        step = self.compiled_step(loss_fn, optimizer, layout, micro_batches=micro_batches)
        return step if self.adapter is None else lambda state, batch: step(state, batch, self.base)

    def _hold(self, weights, checkpointer: Checkpointer | None) -> None:
        self.base = frozen_base(self.model.decoder, weights)
        if self.base is not weights:
            jax.block_until_ready(self.base)
            for leaf in jax.tree.leaves(weights):  # whoever read them may still hold the name
                leaf.delete()
        if checkpointer is not None:
            checkpointer.require(BASE, fingerprint(self.base))


def build_policy(config, model: Model) -> Policy:
    """Raises UserError: a kind of adapter that is not known, targets that match nothing, a rank that does not fit; an
    adapter together with a value function."""
    adapter, value_head = adapter_config(config), has_critic(config)
    if value_head and adapter is not None:
        raise UserError(
            f"config.adapter.kind={config.adapter.kind!r} does not go with config.rl.objective='ppo_loss': the value "
            "function is trained with all weights"
        )
    return Policy(model, adapter, path=config.adapter.path, seed=config.seed, value_head=value_head)


def evaluated_params(state: TrainState) -> Any:
    """The parameters that evaluations read: the average of those that are trained, where the run keeps one."""
    average = average_of(state.opt_state)
    return state.params if average is None else average


class Layout(NamedTuple):
    """The shapes and the places of a TrainState, before it exists."""

    abstract: TrainState  # ShapeDtypeStructs that carry their shardings: to restore onto
    shardings: TrainState


def layout_of(abstract_params, params_shardings, optimizer, mesh, extra: dict | None = None) -> Layout:
    key = jax.random.key(0)
    plain = abstract_state(abstract_params, optimizer, key, extra)
    shardings = state_shardings(plain, params_shardings, mesh)
    return Layout(abstract_state(abstract_params, optimizer, key, extra, shardings=shardings), shardings)


def state_layout(policy: Policy, optimizer, extra: dict | None = None) -> Layout:
    return layout_of(policy.abstract, policy.shardings, optimizer, policy.mesh, extra)


def fresh_state(config, params, optimizer, layout: Layout, extra: dict | None = None) -> TrainState:
    """The state before the first step; it owns `params` (see `Policy.begin` and `create_state`)."""
    return create_state(params, optimizer, jax.random.key(config.seed), extra, shardings=layout.shardings)
