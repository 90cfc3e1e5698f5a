"""The parts of a decoder block as Flax NNX modules, and the one matrix product rule that all of them use.

Modules hold float32 kernels of form [in, out]. `Precision` says in which dtype products are taken and activations are
kept; it is decided once per backend and handed down, so no layer asks where it runs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxalign import placement
from jaxalign.models.config import DecoderConfig
from jaxalign.products import product_precision


class Precision(NamedTuple):
    """compute: dtype of the operands of matrix products; activation: dtype of what flows between them."""

    compute: str
    activation: str

    @property
    def products(self) -> jax.lax.Precision | None:
        """The `precision` argument of products."""
        return product_precision(self.compute)


def default_precision(compute: str, platform: str | None = None) -> Precision:
    """bfloat16 products give float32 on a CPU (2-3x faster than bfloat16 out there), bfloat16 on GPU and TPU."""
    platform = platform or placement.platform()
    return Precision(compute, "float32" if platform == "cpu" else compute)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x, kernel, precision: Precision):
    """`x [..., in] @ kernel [in, out]` with operands in `precision.compute`.

    The result has the activation dtype. Backward, the cotangent is cast to the compute dtype too, which JAX's own rule
    would not do (it would multiply in float32 at a third of the speed); the kernel's gradient is accumulated and
    returned in float32.
    """
    x, kernel = x.astype(precision.compute), kernel.astype(precision.compute)
    return jnp.matmul(x, kernel, precision=precision.products, preferred_element_type=precision.activation)


def _matmul_forward(x, kernel, precision):
    # An empty array carries x's dtype: residuals are arrays, and x itself is kept in the compute dtype only.
    return matmul(x, kernel, precision), (x.astype(precision.compute), kernel, jnp.empty((0,), x.dtype))


def _matmul_backward(precision, residuals, cotangent):
    x, kernel, like = residuals
    cotangent = cotangent.astype(precision.compute)
    contract_out = (((cotangent.ndim - 1,), (1,)), ((), ()))
    product = functools.partial(jax.lax.dot_general, precision=precision.products)
    kernel_compute = kernel.astype(precision.compute)
    d_x = product(cotangent, kernel_compute, contract_out, preferred_element_type=precision.activation)
    rows = tuple(range(x.ndim - 1))
    d_kernel = product(x, cotangent, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    return d_x.astype(like.dtype), d_kernel.astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptedKernel:
    """The kernel (W + scale * a b) * gain: stands in a parameter tree where a kernel does (`models.lora.attach`).

    With stacked layers every array has the layer axis in front. Only a, b and gain receive gradient.
    """

    kernel: jax.Array  # W [in, out]
    a: jax.Array  # [in, rank]
    b: jax.Array  # [rank, out]
    gain: jax.Array | None  # [out]; None: 1
    scale: float = dataclasses.field(metadata={"static": True})

    def merged(self, dtype):
        """The kernel itself: formed in float32, rounded once."""
        whole = _changed(self.kernel, self.a, self.b, self.scale)
        return (whole if self.gain is None else whole * self.gain).astype(dtype)

    def product(self, x, precision: Precision):
        """x [..., in] times the kernel, as `matmul`."""
        y = adapted_matmul(x, self.kernel, self.a, self.b, self.scale, precision)
        return y if self.gain is None else y * self.gain.astype(y.dtype)


def _changed(kernel, a, b, scale):
    return kernel.astype(jnp.float32) + scale * jnp.matmul(a, b, precision="highest")


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def adapted_matmul(x, kernel, a, b, scale, precision: Precision):
    """`x @ (kernel + scale * a b)`: formed for one product at a time, where it costs rank / tokens of that product.

    Backward, the gradients of a and b go through `rank` columns, and one of the kernel's size never exists; the kernel
    receives none.
    """
    return _adapted_matmul_forward(x, kernel, a, b, scale, precision)[0]


def _adapted_matmul_forward(x, kernel, a, b, scale, precision):
    changed = _changed(kernel, a, b, scale).astype(precision.compute)
    x_compute = x.astype(precision.compute)
    y = jnp.matmul(x_compute, changed, precision=precision.products, preferred_element_type=precision.activation)
    return y, (x_compute, changed, kernel, a, b, jnp.empty((0,), x.dtype))


def _adapted_matmul_backward(scale, precision, residuals, cotangent):
    x, changed, kernel, a, b, like = residuals
    cotangent = cotangent.astype(precision.compute)
    rows = tuple(range(x.ndim - 1))
    over_out, over_rows = (((cotangent.ndim - 1,), (1,)), ((), ())), ((rows, rows), ((), ()))
    product = functools.partial(jax.lax.dot_general, precision=precision.products)
    d_x = product(cotangent, changed, over_out, preferred_element_type=precision.activation)

    def narrow(left, right, axes):
        return product(left, right, axes, preferred_element_type=jnp.float32) * scale

    low = narrow(x, a.T.astype(precision.compute), over_out).astype(precision.compute)
    d_low = narrow(cotangent, b.astype(precision.compute), over_out).astype(precision.compute)
    d_a = product(x, d_low, over_rows, preferred_element_type=jnp.float32)
    d_b = product(low, cotangent, over_rows, preferred_element_type=jnp.float32)
    return d_x.astype(like.dtype), jnp.zeros_like(kernel), d_a.astype(a.dtype), d_b.astype(b.dtype)


adapted_matmul.defvjp(_adapted_matmul_forward, _adapted_matmul_backward)


class Linear(nnx.Module):
    def __init__(self, in_dim, out_dim, precision, rngs, use_bias=False):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (in_dim, out_dim)) * in_dim**-0.5)
        self.bias = nnx.Param(jnp.zeros((out_dim,))) if use_bias else None
        self.precision = precision

    def __call__(self, x):
        # Named for the remat policy "products": matmul's own rule hides its product from JAX's policies about dots.
        kernel = self.kernel.get_value()
        adapted = isinstance(kernel, AdaptedKernel)
        y = kernel.product(x, self.precision) if adapted else matmul(x, kernel, self.precision)
        y = checkpoint_name(y, "product")
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * (scale + offset), computed in float32 and returned in x's dtype."""

    def __init__(self, dim, config: DecoderConfig):
        self.scale = nnx.Param((1.0 - config.norm_offset) * jnp.ones((dim,)))
        self.epsilon, self.offset = config.norm_epsilon, config.norm_offset

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * (self.scale[...] + self.offset)).astype(x.dtype)


def rope_turns(positions, config: DecoderConfig, *, local: bool = False):
    """Cosines and sines [2, ..., head_dim / 2] of rotary embedding at `positions` [...] (Su et al., arXiv 2104.09864).

    `local` takes the base of sliding layers (Gemma 3), which is never rescaled. Rescaling: "linear" divides every
    frequency; "llama3" divides only wavelengths that are long against the original window, with a smooth crossover.
    """
    theta = config.rope_local_theta if local and config.rope_local_theta else config.rope_theta
    frequency = theta ** (-jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim)
    if config.rope_scaling and not (local and config.rope_local_theta):
        kind, factor, *rest = config.rope_scaling
        if kind == "linear":
            frequency = frequency / factor
        else:
            low, high, original = rest
            turns = original * frequency / (2 * jnp.pi)  # full turns within the original window
            smooth = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
            frequency = frequency * (smooth + (1 - smooth) / factor)
    angles = positions[..., None].astype(jnp.float32) * frequency
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def rotate(x, turns):
    """Rotate halves of x [B, T, heads, head_dim] by turns [2, B, T, head_dim / 2]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = turns[:, :, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


# (query [B, T, H, d], key [B, T, KV, d], value [B, T, KV, d]) -> [B, T, H, d]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Attention(nnx.Module):
    """Projections, QK-norm and rotation; which keys a query sees is the business of `attend`."""

    def __init__(self, config: DecoderConfig, precision, rngs):
        dim, head_dim = config.embed_dim, config.head_dim
        self.query = Linear(dim, config.num_heads * head_dim, precision, rngs, config.qkv_bias)
        self.key = Linear(dim, config.num_kv_heads * head_dim, precision, rngs, config.qkv_bias)
        self.value = Linear(dim, config.num_kv_heads * head_dim, precision, rngs, config.qkv_bias)
        self.output = Linear(config.num_heads * head_dim, dim, precision, rngs)
        self.query_norm = RMSNorm(head_dim, config) if config.qk_norm else None
        self.key_norm = RMSNorm(head_dim, config) if config.qk_norm else None
        self.head_dim = head_dim

    def __call__(self, x, turns, attend: Attend):
        def heads(y):
            return y.reshape(*y.shape[:-1], -1, self.head_dim)

        query, key, value = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        out = attend(rotate(query, turns), rotate(key, turns), value)
        return self.output(out.reshape(*out.shape[:-2], -1))


class Mlp(nnx.Module):
    def __init__(self, config: DecoderConfig, precision, rngs):
        self.gate = Linear(config.embed_dim, config.mlp_dim, precision, rngs)
        self.up = Linear(config.embed_dim, config.mlp_dim, precision, rngs)
        self.down = Linear(config.mlp_dim, config.embed_dim, precision, rngs)
        self.activation = config.activation

    def __call__(self, x):
        gate = self.gate(x)
        gate = jax.nn.silu(gate) if self.activation == "silu" else jax.nn.gelu(gate, approximate=True)
        return self.down(gate * self.up(x))


class Block(nnx.Module):
    """Pre-norm residual block; with `post_norms` each sub-layer's output is normalised before it is added."""

    def __init__(self, config: DecoderConfig, precision, rngs):
        self.attention_norm = RMSNorm(config.embed_dim, config)
        self.attention = Attention(config, precision, rngs)
        self.mlp_norm = RMSNorm(config.embed_dim, config)
        self.mlp = Mlp(config, precision, rngs)
        self.post_attention_norm = RMSNorm(config.embed_dim, config) if config.post_norms else None
        self.post_mlp_norm = RMSNorm(config.embed_dim, config) if config.post_norms else None

    def __call__(self, x, turns, attend: Attend):
        y = self.attention(self.attention_norm(x), turns, attend)
        x = x + (y if self.post_attention_norm is None else self.post_attention_norm(y))
        y = self.mlp(self.mlp_norm(x))
        return x + (y if self.post_mlp_norm is None else self.post_mlp_norm(y))
