"""Adapters in the format of Hugging Face's PEFT: `adapter_config.json` and `adapter_model.safetensors`.

Per layer the file holds `base_model.model.<module>.lora_A.weight` [r, in], `....lora_B.weight` [out, r] and for DoRA
`....lora_magnitude_vector` [out]: the transposes of `lora_a` and `lora_b`, whose layers are stacked here.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxalign.errors import UserError
from jaxalign.models import weights
from jaxalign.models.config import DecoderConfig
from jaxalign.models.lora import LoraConfig, abstract_adapter, adapter_modules
from jaxalign.models.safetensors_io import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
# Keys whose values change what an adapter computes or trains, with the values under which nothing here is missing.
_OFF: dict[str, tuple] = {
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "fan_in_fan_out": (False, None),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "lora_bias": (False, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None, {}),
    "kasa_config": (None, {}),
    "monteclora_config": (None, {}),
    "velora_config": (None, {}),
}


class LoadedAdapter(NamedTuple):
    adapter: dict  # float32
    config: LoraConfig
    settings: dict[str, Any]  # adapter_config.json as it is; give it to `save` and unknown keys survive


def save(
    folder: str | Path,
    adapter: Mapping,
    config: LoraConfig,
    model: DecoderConfig,
    *,
    base_name: str = "",
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes an adapter as PEFT reads it (`PeftModel.from_pretrained(base, folder)`), in float32.

    Args:
        folder: made if it is not there; the two files are replaced.
        model: of the base; it names the modules.
        base_name: what PEFT is to take the base from, a hub id or a folder.
        settings: more keys of `adapter_config.json`, such as those of a loaded one.
    """
    names = _module_names(model)
    tensors, ranks, alphas = {}, {}, {}
    for module, leaf in adapter_modules(adapter).items():
        for part, suffix in _PARTS.items():
            if part in leaf:
                for layer, factor in enumerate(np.asarray(jax.device_get(leaf[part]), np.float32)):
                    name = f"{_PREFIX}{names[module].format(layer=layer)}.{suffix}"
                    tensors[name] = np.ascontiguousarray(factor.T)
        kind = names[module].rpartition(".")[2]
        rank, alpha = config.rank_and_alpha(module)
        if rank != config.rank:
            ranks[kind] = rank
        if alpha != config.alpha:
            alphas[kind] = alpha
    values = {
        "task_type": "CAUSAL_LM",
        "lora_dropout": 0.0,
        "inference_mode": True,
        **(settings or {}),
        "peft_type": "LORA",
        "base_model_name_or_path": base_name or (settings or {}).get("base_model_name_or_path"),
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.rank_scaled,
        "use_dora": config.kind == "dora",
        "target_modules": [names[module].rpartition(".")[2] for module in adapter_modules(adapter)],
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "init_lora_weights": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(sorted(tensors.items())), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


def load(folder: str | Path, model: DecoderConfig, *, expected: LoraConfig | None = None) -> LoadedAdapter:
    """Reads an adapter that PEFT or `save` wrote, for a base of this configuration.

    Args:
        expected: what the adapter must be: the same modules, ranks, scales and kind.

    Raises:
        UserError: a file is missing or broken; a setting that is not supported (biases, other trained modules, part of
            the layers, ...); tensors that are missing, not expected, not finite or of another shape; not as expected.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; a folder with an adapter in PEFT's format holds it")
    settings = read_json(folder / CONFIG)
    _check_settings(settings, folder / CONFIG)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} is not a whole safetensors file ({error}); copy it again") from error
    stacked = _stack(tensors, model, folder / WEIGHTS)
    config = _config(settings, stacked, model, folder / CONFIG)
    adapter: dict = {}
    for module, parts in stacked.items():
        node = adapter
        for name in module.split("/"):
            node = node.setdefault(name, {})
        node.update({part: jnp.asarray(array) for part, array in parts.items()})
    _check_shapes(adapter, config, model, folder / WEIGHTS)
    if expected is not None:
        _compare(config, expected, model, folder)
    return LoadedAdapter(adapter, config, settings)


def _module_names(model: DecoderConfig) -> dict[str, str]:
    """Path of every linear layer -> its module's name in Hugging Face models, with `{layer}` for the number."""
    return {
        "/".join(leaf.path[:-1]): leaf.hugging_face.removesuffix(".weight")
        for leaf in weights.leaves(model)
        if leaf.transposed
    }


def _check_settings(settings: Mapping[str, Any], where: Path) -> None:
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type {settings.get('peft_type')!r} is not supported, only 'LORA'")
    for key, value in settings.items():
        refused = value not in _OFF[key] if key in _OFF else key.startswith("use_") and value
        if refused and key not in ("use_rslora", "use_dora"):
            raise UserError(
                f"{where}: {key}={value!r} is not supported; remove that part of the adapter, or train anew"
            )
    for key in ("r", "lora_alpha"):
        if not isinstance(settings.get(key), int | float):
            raise UserError(f"{where}: {key!r} is missing")


def _stack(tensors: Mapping[str, np.ndarray], model: DecoderConfig, where: Path) -> dict[str, dict[str, np.ndarray]]:
    """{module: {"lora_a": [L, in, r], ...}} of a file's tensors."""
    stacked: dict[str, dict[str, np.ndarray]] = {}
    left, missing = dict(tensors), []
    for module, name in _module_names(model).items():
        for part, suffix in _PARTS.items():
            keys = [f"{_PREFIX}{name.format(layer=layer)}.{suffix}" for layer in range(model.num_layers)]
            found = [left.pop(key) for key in keys if key in left]
            if found and len(found) == len(keys) and len({array.shape for array in found}) == 1:
                stacked.setdefault(module, {})[part] = np.stack([array.T for array in found]).astype(np.float32)
            elif len(found) == len(keys):
                raise UserError(f"{where}: the layers of {name!r} have different ranks; layers are stacked here")
            elif found:
                missing += [key for key in keys if key not in tensors]
    for module, parts in stacked.items():
        name = _module_names(model)[module].format(layer=0)
        missing += [f"{_PREFIX}{name}.{_PARTS[part]}" for part in ("lora_a", "lora_b") if part not in parts]
    missing = list(dict.fromkeys(missing))
    if missing:
        raise UserError(
            f"{where}: {len(missing)} tensor(s) missing, among them {missing[0]!r}; every layer needs both factors"
        )
    if left:
        raise UserError(
            f"{where}: {len(left)} tensor(s) not expected, among them {min(left)!r}; the base is another model"
        )
    if not stacked:
        raise UserError(f"{where} holds no adapter")
    for module, parts in stacked.items():
        for part, array in parts.items():
            if not np.isfinite(array).all():
                raise UserError(f"{where}: {part} of {module} holds numbers that are not finite")
    return stacked


def _config(settings, stacked, model: DecoderConfig, where: Path) -> LoraConfig:
    """Ranks are those of the file's tensors, which `r` and `rank_pattern` must agree with."""
    names = _module_names(model)
    overrides = []
    for module, parts in stacked.items():
        name = names[module].format(layer=0)
        rank = _by_pattern(settings.get("rank_pattern"), name, settings["r"])
        alpha = _by_pattern(settings.get("alpha_pattern"), name, settings["lora_alpha"])
        if parts["lora_a"].shape[2] != rank:
            raise UserError(f"{where}: rank {rank} for {module}, but its factors have rank {parts['lora_a'].shape[2]}")
        if (rank, alpha) != (settings["r"], settings["lora_alpha"]):
            overrides.append((re.escape(module), int(rank), float(alpha)))
    return LoraConfig(
        kind="dora" if settings.get("use_dora") else "lora",
        rank=int(settings["r"]),
        alpha=float(settings["lora_alpha"]),
        rank_scaled=bool(settings.get("use_rslora")),
        targets=tuple(re.escape(module) for module in stacked),
        overrides=tuple(overrides),
    )


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that is the name's end behind a dot, or the whole name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _check_shapes(adapter, config: LoraConfig, model: DecoderConfig, where: Path) -> None:
    wanted = adapter_modules(abstract_adapter(weights.abstract_params(model), config))
    for module, parts in adapter_modules(adapter).items():
        shapes = [{part: tuple(array.shape) for part, array in some.items()} for some in (parts, wanted[module])]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{where}: {module} has {shapes[0]}, its base calls for {shapes[1]}; the base is another model"
            )


def _compare(found: LoraConfig, expected: LoraConfig, model: DecoderConfig, folder: Path) -> None:
    def facts(config):
        modules = adapter_modules(abstract_adapter(weights.abstract_params(model), config))
        return {module: (config.kind, config.rank_and_alpha(module)[0], config.scale(module)) for module in modules}

    ours, theirs = facts(expected), facts(found)
    for module in sorted(ours.keys() | theirs.keys()):
        if ours.get(module) != theirs.get(module):
            raise UserError(
                f"{folder} holds another adapter than config.adapter asks for: (kind, rank, scale) of {module} is "
                f"{theirs.get(module)} there, {ours.get(module)} in the config; change config.adapter"
            )
