"""Where each parameter lives: rule tables from parameter paths to mesh axes.

A path is the keys of the tree joined by "/", for example `layers/mlp/down/kernel`. The first rule whose
pattern matches the whole path decides. Forgetting is an error in both directions: a parameter that no
rule covers, and a rule that covers nothing (unless it is marked `optional` because only some models
have such a parameter).
"""

import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import UserError


class Rule(NamedTuple):
    """Parameters whose whole path matches the regular expression `pattern` are laid out as `spec`."""

    pattern: str
    spec: PartitionSpec
    optional: bool = False


_P = PartitionSpec

# Layers are stacked: their leading axis is never split, because the scan over layers walks along it.
# The fsdp axis lies on the embedding dimension, the tensor axis on heads, MLP width and vocabulary.
DECODER_RULES: tuple[Rule, ...] = (
    Rule(r"embed/embedding", _P("tensor", "fsdp")),
    Rule(r"head/kernel", _P("tensor", "fsdp"), optional=True),
    Rule(r"layers/attention/(query|key|value)/kernel", _P(None, "fsdp", "tensor")),
    Rule(r"layers/attention/(query|key|value)/bias", _P(None, "tensor"), optional=True),
    Rule(r"layers/attention/(query|key)_norm/scale", _P(), optional=True),
    Rule(r"layers/attention/output/kernel", _P(None, "tensor", "fsdp")),
    Rule(r"layers/mlp/(gate|up)/kernel", _P(None, "fsdp", "tensor")),
    Rule(r"layers/mlp/down/kernel", _P(None, "tensor", "fsdp")),
    Rule(r"layers/(attention|mlp)_norm/scale", _P()),
    Rule(r"layers/post_(attention|mlp)_norm/scale", _P(), optional=True),
    Rule(r"final_norm/scale", _P()),
    Rule(r"value_head/(kernel|bias)", _P(), optional=True),
)


def adapter_rules(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules of low-rank adapters (`jaxalign.models.lora`), from those of the stacked kernels beside them.

    A [L, in, r] lies like the kernel's inputs, B [L, r, out] and the magnitude [L, out] like its outputs. The rank is
    whole on every device, so that (x A) B moves `r` numbers a token and no more.
    """
    found = []
    for rule in rules:
        if rule.pattern.startswith("layers/") and rule.pattern.endswith("/kernel"):
            module, (_, inside, outside) = rule.pattern.removesuffix("kernel"), rule.spec
            specs = {"lora_a": _P(None, inside), "lora_b": _P(None, None, outside), "magnitude": _P(None, outside)}
            found += [Rule(f"{module}{name}", spec, optional=True) for name, spec in specs.items()]
    return tuple(found)


ADAPTER_RULES = adapter_rules(DECODER_RULES)

# The layers of text and image encoders lie as a decoder's do.
_ENCODER_LAYERS = (
    Rule(r"layers/attention/(query|key|value)/kernel", _P(None, "fsdp", "tensor")),
    Rule(r"layers/attention/(query|key|value)/bias", _P(None, "tensor")),
    Rule(r"layers/attention/output/kernel", _P(None, "tensor", "fsdp")),
    Rule(r"layers/mlp/up/kernel", _P(None, "fsdp", "tensor")),
    Rule(r"layers/mlp/up/bias", _P(None, "tensor")),
    Rule(r"layers/mlp/down/kernel", _P(None, "tensor", "fsdp")),
    Rule(r"layers/(attention/output|mlp/down)/bias", _P()),
    Rule(r"layers/(attention|mlp)_norm/(scale|bias)", _P()),
)
# A norm and a projection that only some of them have. The projection's outputs are whole: embeddings are compared.
_ENCODER_ENDS = (
    Rule(r"embed/norm/(scale|bias)", _P(), optional=True),
    Rule(r"final_norm/(scale|bias)", _P(), optional=True),
    Rule(r"projection/kernel", _P("fsdp"), optional=True),
    Rule(r"projection/bias", _P(), optional=True),
)
TEXT_ENCODER_RULES: tuple[Rule, ...] = (
    Rule(r"embed/tokens", _P("tensor", "fsdp")),
    Rule(r"embed/positions", _P(None, "fsdp")),
    Rule(r"embed/types", _P(None, "fsdp"), optional=True),
    *_ENCODER_LAYERS,
    *_ENCODER_ENDS,
)
IMAGE_ENCODER_RULES: tuple[Rule, ...] = (
    Rule(r"embed/patches/kernel", _P(None, "fsdp")),
    Rule(r"embed/patches/bias", _P(), optional=True),
    Rule(r"embed/positions", _P(None, "fsdp")),
    Rule(r"embed/class_token", _P(), optional=True),
    *_ENCODER_LAYERS,
    Rule(r"pool/(probe|norm/scale|norm/bias)", _P(), optional=True),
    Rule(r"pool/(attention/(query|key|value)|mlp/up)/kernel", _P("fsdp", "tensor"), optional=True),
    Rule(r"pool/(attention/(query|key|value)|mlp/up)/bias", _P("tensor"), optional=True),
    Rule(r"pool/(attention/output|mlp/down)/kernel", _P("tensor", "fsdp"), optional=True),
    Rule(r"pool/(attention/output|mlp/down)/bias", _P(), optional=True),
    *_ENCODER_ENDS,
)
MLP_ENCODER_RULES: tuple[Rule, ...] = (
    Rule(r"layer_\d+/kernel", _P("fsdp", "tensor")),
    Rule(r"layer_\d+/bias", _P("tensor")),
)


def dual_rules(image: Sequence[Rule], text: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules of a `DualEncoder`, from those of its two encoders."""
    towers = [
        rule._replace(pattern=f"{tower}/(?:{rule.pattern})")
        for tower, rules in (("image", image), ("text", text))
        for rule in rules
    ]
    return (*towers, Rule("log_scale", _P()), Rule("bias", _P(), optional=True))


DUAL_ENCODER_RULES = dual_rules(IMAGE_ENCODER_RULES, TEXT_ENCODER_RULES)


def path_name(path: Sequence[Any]) -> str:
    """The keys of a `jax.tree_util` path joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _fitting_spec(name: str, shape: Sequence[int], spec: PartitionSpec, mesh: Mesh) -> PartitionSpec:
    """`spec` without the axes that do not divide their dimension."""
    if len(spec) > len(shape):
        raise UserError(f"the sharding rule of {name} names {len(spec)} dimensions, its shape is {shape}")
    kept = []
    for dimension, axes in zip(shape, spec, strict=False):
        names = axes if isinstance(axes, tuple) else (axes,) if axes else ()
        unknown = [axis for axis in names if axis not in mesh.shape]
        if unknown:
            raise UserError(
                f"the sharding rule of {name} names the mesh axis {unknown[0]!r}; "
                f"the mesh has {', '.join(mesh.axis_names)}"
            )
        size = math.prod(mesh.shape[axis] for axis in names)
        if dimension % size:
            warnings.warn(
                f"{name}: a dimension of {dimension} does not divide over mesh axis {axes!r} of size "
                f"{size}; it stays whole on every device of that axis",
                stacklevel=3,
            )
            axes = None
        kept.append(axes)
    return PartitionSpec(*kept)


def shardings_for(abstract_tree: Any, rules: Sequence[Rule], mesh: Mesh) -> Any:
    """A tree of NamedShardings like `abstract_tree` (arrays or ShapeDtypeStructs).

    An axis that does not divide its dimension is dropped with a warning. A tensor axis that divides
    heads * head_dim but not the number of heads is kept: right, but such a split crosses heads.

    Raises:
      UserError: a parameter that no rule covers; a rule that matches nothing and is not optional; a
        rule with more dimensions than its parameter or with an axis that the mesh lacks.
    """
    used = set()

    def sharding(path, leaf):
        name = path_name(path)
        for rule in rules:
            if re.fullmatch(rule.pattern, name):
                used.add(rule.pattern)
                return NamedSharding(mesh, _fitting_spec(name, leaf.shape, rule.spec, mesh))
        raise UserError(f"no sharding rule covers the parameter {name} of shape {leaf.shape}; add one to the table")

    shardings = jax.tree_util.tree_map_with_path(sharding, abstract_tree)
    idle = [r.pattern for r in rules if not r.optional and r.pattern not in used]
    if idle:
        raise UserError(
            f"the sharding rule {idle[0]!r} matches no parameter; correct or remove it, or mark it optional"
        )
    return shardings


def state_shardings(abstract_state: Any, params_shardings: Any, mesh: Mesh) -> Any:
    """Shardings of a whole TrainState, given those of its parameters.

    A leaf of the optimizer state or of `extra` whose path ends in the path of a parameter of the same
    shape (a moment, an average) lies where that parameter lies; everything else is replicated.
    """
    params = {
        path_name(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(abstract_state.params),
            jax.tree.leaves(params_shardings),
            strict=True,
        )
    }
    everywhere = NamedSharding(mesh, PartitionSpec())

    def sharding(path, leaf):
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            shape, found = params.get("/".join(parts[start:]), (None, everywhere))
            if shape == leaf.shape:
                return found
        return everywhere

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)
