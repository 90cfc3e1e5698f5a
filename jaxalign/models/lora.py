"""Low-rank adapters beside a decoder's weights: LoRA, rsLoRA and DoRA.

An adapter is a tree of its own, and the base stays as it is:

    adapter = init_adapter(key, base, config)      {"layers": {"attention": {"query": {"lora_a", "lora_b"}, ...}}}
    policy = attach(base, adapter, config)         what `Decoder` takes as its parameters; no weight is copied
    reference = base                               one copy of the weights serves both
    merged = merge(base, adapter, config)          plain kernels; the way back is `base`, which nothing has changed

An adapted kernel is W + s A B (kernels [in, out], A [in, r], B [r, out]) with s = alpha / r (LoRA, Hu et al., arXiv
2106.09685) or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732). DoRA (Liu et al., arXiv 2402.09353) takes the length of each
output's column from a trained magnitude m: m * V / ||V|| with V = W + s A B, and treats ||V|| as a constant in the
backward pass. At the start B = 0 and m = ||W||, so that the policy is its base.

The product with an adapted kernel is taken as x (W + s A B), the sum rounded to the compute dtype: what a merged export
computes, and what decoding does. Forming the sum costs less than adding x A B to every output as soon as a batch has
more tokens than a kernel has rows, and the gradient still goes through `r` columns (`layers.adapted_matmul`).

Layers are stacked, and so are their adapters: all layers of a kernel are adapted, with one rank. There is no dropout on
the input of an adapter.
"""

import dataclasses
import difflib
import functools
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.errors import UserError
from jaxalign.models.layers import AdaptedKernel

KINDS = ("lora", "dora")
ALL_LINEAR = (r"layers/(attention|mlp)/.*",)
_LINEAR = r"layers/.*/kernel"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which kernels are adapted, and how. Hashable, hence static under `jax.jit`.

    `targets` and the patterns of `overrides` are regular expressions that must match a module's whole path, such as
    `layers/attention/query`; the first override that matches replaces rank and alpha.
    """

    kind: str = "lora"  # or "dora"
    rank: int = 8
    alpha: float = 16.0
    rank_scaled: bool = False  # rsLoRA: alpha / sqrt(rank)
    targets: tuple[str, ...] = ALL_LINEAR
    overrides: tuple[tuple[str, int, float], ...] = ()  # (pattern, rank, alpha)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"adapter.kind={self.kind!r} is not known; use one of {', '.join(KINDS)}")
        for rank in (self.rank, *(rank for _, rank, _ in self.overrides)):
            if rank < 1:
                raise UserError(f"adapter.rank={rank} must be at least 1")

    def rank_and_alpha(self, module: str) -> tuple[int, float]:
        for pattern, rank, alpha in self.overrides:
            if re.fullmatch(pattern, module):
                return rank, alpha
        return self.rank, self.alpha

    def scale(self, module: str) -> float:
        """s of the module with this path."""
        rank, alpha = self.rank_and_alpha(module)
        return alpha / (rank**0.5 if self.rank_scaled else rank)


def target_modules(base: Any, config: LoraConfig) -> dict[str, Any]:
    """Path of every adapted module -> its kernel [L, in, out], in the order of the tree.

    Raises:
        UserError: a pattern of `targets` that matches no linear layer; a rank larger than a kernel's own.
    """
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(base)}
    linear = {name.removesuffix("/kernel"): leaf for name, leaf in leaves.items() if re.fullmatch(_LINEAR, name)}
    for pattern in config.targets:
        if not any(re.fullmatch(pattern, module) for module in linear):
            near = difflib.get_close_matches(pattern, linear, n=3, cutoff=0.0)
            raise UserError(f"adapter.targets: {pattern!r} matches no linear layer; the nearest are {', '.join(near)}")
    found = {
        module: kernel
        for module, kernel in linear.items()
        if any(re.fullmatch(pattern, module) for pattern in config.targets)
    }
    for module, kernel in found.items():
        rank, limit = config.rank_and_alpha(module)[0], min(kernel.shape[1:])
        if rank > limit:
            raise UserError(f"adapter.rank={rank} is more than {module} has itself ({limit}); give a smaller rank")
    return found


def init_adapter(key, base: Any, config: LoraConfig) -> dict:
    """The adapter before the first step, float32: A uniform in +-1 / sqrt(in), B 0, and m = ||W|| for DoRA.

    The numbers of a module depend on the key and its path, not on what else is adapted.
    """
    adapter: dict = {}
    for module, kernel in target_modules(base, config).items():
        layers, inside, outside = kernel.shape
        rank = config.rank_and_alpha(module)[0]
        module_key = jax.random.fold_in(key, zlib.crc32(module.encode()))
        bound = inside**-0.5
        leaf = {
            "lora_a": jax.random.uniform(module_key, (layers, inside, rank), minval=-bound, maxval=bound),
            "lora_b": jnp.zeros((layers, rank, outside)),
        }
        if config.kind == "dora":
            leaf["magnitude"] = column_norms(kernel, leaf["lora_a"], leaf["lora_b"], config.scale(module))
        _module(adapter, module).update(leaf)
    return adapter


def abstract_adapter(base: Any, config: LoraConfig) -> dict:
    """The adapter's shapes, for a base of arrays or shapes."""
    return jax.eval_shape(lambda base: init_adapter(jax.random.key(0), base, config), base)


def attach(base: Any, adapter: Any, config: LoraConfig) -> dict:
    """The policy's parameters: `base` with an `AdaptedKernel` wherever `adapter` has a module.

    Gradient: to the adapter alone, of what it adapts.
    """

    def adapted(module: str, kernel, leaf) -> AdaptedKernel:
        scale, gain = config.scale(module), None
        if config.kind == "dora":
            norms = column_norms(kernel, leaf["lora_a"], leaf["lora_b"], scale)
            gain = leaf["magnitude"] / jax.lax.stop_gradient(norms)
        return AdaptedKernel(kernel, leaf["lora_a"], leaf["lora_b"], gain, scale)

    return _replace_kernels(base, adapter, adapted)


def attach_shapes(base: Any, adapter: Any, config: LoraConfig) -> dict:
    """`attach` for trees of ShapeDtypeStructs, whose shardings stay (a gain lies where the magnitude lies)."""

    def adapted(module: str, kernel, leaf) -> AdaptedKernel:
        return AdaptedKernel(kernel, leaf["lora_a"], leaf["lora_b"], leaf.get("magnitude"), config.scale(module))

    return _replace_kernels(base, adapter, adapted)


def merge(base: Any, adapter: Any, config: LoraConfig) -> dict:
    """Plain kernels that compute what the policy does: W + s A B (DoRA: m V / ||V||) in float32, rounded once to the
    kernel's dtype, layer by layer. `base` stays as it is, and is what unmerging gives back."""

    def adapted(leaf) -> bool:
        return isinstance(leaf, AdaptedKernel)

    attached = attach(base, adapter, config)
    return jax.tree.map(lambda leaf: _merged(leaf) if adapted(leaf) else leaf, attached, is_leaf=adapted)


@jax.jit
def _merged(stacked: AdaptedKernel):
    return jax.lax.map(lambda one: one.merged(one.kernel.dtype), stacked)


@jax.jit
def column_norms(kernel, a, b, scale):
    """||W + scale * a b|| over the inputs: kernel [L, in, out], a [L, in, r], b [L, r, out] -> [L, out], float32.

    The square is ||W||^2 + 2 scale sum_r (W^T a) b + scale^2 b^T (a^T a) b, per output: nothing of W's size is made.
    """
    product = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    square = jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=1)
    mixed = jnp.sum(product("lio,lir->lro", kernel.astype(jnp.float32), a) * b, axis=1)
    own = jnp.sum(product("lrs,lso->lro", product("lir,lis->lrs", a, a), b) * b, axis=1)
    smallest = jnp.finfo(jnp.float32).tiny
    return jnp.sqrt(jnp.maximum(square + 2 * scale * mixed + scale**2 * own, smallest))


def delta_norms(adapter: Any, config: LoraConfig) -> dict[str, jax.Array]:
    """Path of a module -> ||s A B||_F of every layer [L]; what is not adapted is not named.

    ||A B||_F^2 = tr((A^T A)(B B^T)), so that no change is ever formed.
    """
    found = {}
    for module, leaf in adapter_modules(adapter).items():
        a, b = leaf["lora_a"], leaf["lora_b"]
        grams = jnp.einsum("lir,lis->lrs", a, a), jnp.einsum("lro,lso->lrs", b, b)
        found[module] = abs(config.scale(module)) * jnp.sqrt(jnp.maximum(jnp.sum(grams[0] * grams[1], (1, 2)), 0))
    return found


def adapter_modules(adapter: Mapping, prefix: str = "") -> dict[str, Mapping]:
    """{"layers/attention/query": {"lora_a": ..., "lora_b": ...}} of an adapter's tree."""
    if "lora_a" in adapter:
        return {prefix: adapter}
    found: dict[str, Mapping] = {}
    for name, child in adapter.items():
        found |= adapter_modules(child, f"{prefix}/{name}" if prefix else name)
    return found


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _module(tree: dict, path: str) -> dict:
    for name in path.split("/"):
        tree = tree.setdefault(name, {})
    return tree


def _replace_kernels(base, adapter, change) -> dict:
    modules = adapter_modules(adapter)

    def leaf(path, kernel):
        module, _, last = _name(path).rpartition("/")
        return change(module, kernel, modules[module]) if last == "kernel" and module in modules else kernel

    return jax.tree_util.tree_map_with_path(leaf, base)
