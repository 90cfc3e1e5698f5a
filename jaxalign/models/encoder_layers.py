"""What transformer encoders are made of: the block, the scan over stacked blocks, and the frame around them.

Kernels, products and precision are those of `models.layers`. A block here has biases everywhere and layer norms, sees
both sides of a token, and normalises before (`pre_norm`) or after each sub-layer, as BERT does.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.errors import UserError
from jaxalign.models.attention import attention
from jaxalign.models.decoder import REMAT_POLICIES
from jaxalign.models.layers import Attend, Linear, Precision, default_precision
from jaxalign.placement import spread_rows

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


def check_activation(name: str) -> None:
    """Raises UserError where `name` is none of ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation={name!r} is not known; use one of {', '.join(ACTIVATIONS)}")


def check_dropout(**rates: float) -> None:
    """Raises UserError where a rate lies outside [0, 1)."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UserError(f"{name}={rate} is not a share of entries to leave out; give a number in [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Shape and options that text and image encoders share."""

    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    activation: str = "gelu"  # a key of ACTIVATIONS
    norm_epsilon: float = 1e-12
    pre_norm: bool = True  # False: after each sub-layer (BERT)
    embed_norm: bool = False  # a norm between the embeddings and the first layer (BERT, CLIP's image encoder)
    projection_dim: int | None = None  # a linear map behind the pooling
    projection_bias: bool = False

    def __post_init__(self):
        if self.embed_dim % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}")
        check_activation(self.activation)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """x with a share `rate` of its entries 0 and the others divided by 1 - rate; x itself without a key."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, computed in float32 and returned in x's dtype."""

    def __init__(self, dim: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones((dim,)))
        self.bias = nnx.Param(jnp.zeros((dim,)))
        self.epsilon = epsilon

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]).astype(x.dtype)


class MultiHeadAttention(nnx.Module):
    """Queries from `x`, keys and values from `context`; which of them a query sees is the business of `attend`."""

    def __init__(self, config: StackConfig, precision: Precision, rngs):
        for name in ("query", "key", "value", "output"):
            setattr(self, name, Linear(config.embed_dim, config.embed_dim, precision, rngs, use_bias=True))
        self.num_heads = config.num_heads

    def __call__(self, x, context, attend: Attend):
        def heads(y):
            return y.reshape(*y.shape[:-1], self.num_heads, -1)

        out = attend(heads(self.query(x)), heads(self.key(context)), heads(self.value(context)))
        return self.output(out.reshape(*out.shape[:-2], -1))


class FeedForward(nnx.Module):
    def __init__(self, config: StackConfig, precision: Precision, rngs):
        self.up = Linear(config.embed_dim, config.mlp_dim, precision, rngs, use_bias=True)
        self.down = Linear(config.mlp_dim, config.embed_dim, precision, rngs, use_bias=True)
        self.activation = config.activation

    def __call__(self, x):
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class EncoderBlock(nnx.Module):
    """Attention and feed-forward with residuals; `drop` is applied to what either adds, a key for each."""

    def __init__(self, config: StackConfig, precision: Precision, rngs):
        self.attention_norm = LayerNorm(config.embed_dim, config.norm_epsilon)
        self.attention = MultiHeadAttention(config, precision, rngs)
        self.mlp_norm = LayerNorm(config.embed_dim, config.norm_epsilon)
        self.mlp = FeedForward(config, precision, rngs)
        self.pre_norm = config.pre_norm

    def __call__(self, x, attend: Attend, drop):
        if self.pre_norm:
            y = self.attention_norm(x)
            x = x + drop(self.attention(y, y, attend), 0)
            return x + drop(self.mlp(self.mlp_norm(x)), 1)
        x = self.attention_norm(x + drop(self.attention(x, x, attend), 0))
        return self.mlp_norm(x + drop(self.mlp(x), 1))


def stacked_blocks(config: StackConfig, precision: Precision, rngs: nnx.Rngs) -> EncoderBlock:
    """A block whose parameters have the layers on their leading axis."""

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stacked(rngs):
        return EncoderBlock(config, precision, rngs)

    return stacked(rngs)


class Definition(NamedTuple):
    parts: dict[str, Any]  # graph definition of each part of the module; of one block for "layers"
    abstract: dict


@functools.lru_cache(maxsize=32)
def definition(module: type, config: StackConfig, precision: Precision) -> Definition:
    """The module split once: static definitions of its parts, and its abstract parameter tree."""
    whole = nnx.eval_shape(lambda: module(config, precision, nnx.Rngs(0)))
    abstract = nnx.to_pure_dict(nnx.state(whole))
    parts = {name: nnx.graphdef(getattr(whole, name)) for name in abstract}
    parts["layers"] = nnx.graphdef(nnx.eval_shape(lambda: EncoderBlock(config, precision, nnx.Rngs(0))))
    return Definition(parts, abstract)


@dataclasses.dataclass(frozen=True)
class TransformerEncoder:
    """The frame of text and image encoders: static and hashable, parameters outside.

    `remat` is a key of REMAT_POLICIES. `dropout` is that of the residual branches and of the embeddings; it acts only
    where `embed` is given a key. (Attention weights are not dropped.)
    """

    config: Any
    compute_dtype: str = "bfloat16"
    activation_dtype: str | None = None  # None: chosen for the backend
    remat: str = "full"
    dropout: float = 0.0

    module: ClassVar[type]  # (config, precision, rngs) -> nnx.Module with the parts "embed", "layers", ...

    def __post_init__(self):
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"remat={self.remat!r} is not known; use one of {', '.join(REMAT_POLICIES)}")
        check_dropout(dropout=self.dropout)

    @property
    def precision(self) -> Precision:
        if self.activation_dtype is None:
            return default_precision(self.compute_dtype)
        return Precision(self.compute_dtype, self.activation_dtype)

    @property
    def embedding_dim(self) -> int:
        """D of what `embed` gives."""
        return self.config.embed_dim if self.config.projection_dim is None else self.config.projection_dim

    def init(self, key) -> dict:
        """Random float32 parameters; use under `jax.jit` with `out_shardings` to be born sharded."""
        return nnx.to_pure_dict(nnx.state(self.module(self.config, self.precision, nnx.Rngs(params=key))))

    def abstract_params(self) -> dict:
        return definition(self.module, self.config, self.precision).abstract

    def _part(self, params, name: str):
        return nnx.merge(definition(self.module, self.config, self.precision).parts[name], params[name])

    def _layers(self, params, x, visible, key):
        """All blocks over x [B, T, embed_dim]; visible is boolean and broadcasts to [B, T, T] (query, key)."""
        block, precision = definition(self.module, self.config, self.precision).parts["layers"], self.precision

        def layer(x, inputs):
            layer_params, layer_key = inputs
            x = nnx.merge(block, layer_params)(
                x,
                functools.partial(self._attend, visible=visible),
                lambda y, n: dropout(y, self.dropout, None if layer_key is None else jax.random.fold_in(layer_key, n)),
            )
            return spread_rows(x), None

        if self.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        keys = None if key is None or self.dropout == 0 else jax.random.split(key, self.config.num_layers)
        return jax.lax.scan(layer, x.astype(precision.activation), (params["layers"], keys))[0]

    def _attend(self, query, key, value, *, visible):
        scale = query.shape[-1] ** -0.5
        return attention(query, key, value, visible, scale=scale, precision=self.precision)
