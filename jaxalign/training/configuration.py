"""Configs as data: loading `file.py:argument`, checked overrides, flattening, comparing, hashing.

A config is an `ml_collections.ConfigDict` that `get_config()` of a Python file returns. Everything
that is stored (checkpoints, `config.json`, the report) is its plain form: nested dicts of None,
bool, int, float, str and lists.
"""

import ast
import difflib
import hashlib
import importlib.util
import inspect
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from jaxalign.errors import UserError


def load_config(spec: str) -> config_dict.ConfigDict:
    """Loads `path/to/config.py` or `path/to/config.py:argument` and locks the result.

    The file must define `get_config()`; the text after the first colon is its only argument. A
    relative path is looked up in the working directory first, then beside the installed `configs`
    package, so that the shipped configs are found from anywhere.

    Raises:
      UserError: the file is missing, has no `get_config`, takes no argument though one is given, or
        refuses the argument by a ValueError.
    """
    name, _, argument = spec.partition(":")
    path = _find_config_file(name)
    module_spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise UserError(f"{name} defines no get_config(): a config file must")
    if argument and not inspect.signature(get_config).parameters:
        raise UserError(f"{name} takes no argument: give --config={name} without ':{argument}'")
    try:
        config = get_config(argument) if argument else get_config()
    except ValueError as error:
        raise UserError(f"--config={spec}: {error}") from error
    if not isinstance(config, config_dict.ConfigDict):
        raise UserError(f"get_config() of {name} must return an ml_collections ConfigDict")
    config.lock()
    return config


def _find_config_file(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix != ".py":
        raise UserError(f"--config={name} is no Python file: give for example configs/grpo_qwen.py")
    package = importlib.util.find_spec("configs")
    folders = [Path(place) for place in (package.submodule_search_locations or [])] if package else []
    if not path.is_absolute() and path.parts[0] == "configs":
        for folder in folders:
            if (folder.parent / path).is_file():
                return folder.parent / path
    parent = path.parent if path.parent.is_dir() else (folders[0] if folders else Path())
    names = [entry.name for entry in parent.glob("*.py") if not entry.name.startswith("_")]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)
    hint = f"; near it: {', '.join(near)}" if near else ""
    raise UserError(f"config file {name} does not exist{hint}")


def apply_overrides(config: config_dict.ConfigDict, arguments: Sequence[str]) -> dict[str, Any]:
    """Applies `--config.key=value` (or `--config.key value`) arguments, with the types checked.

    The value is parsed as the type that the key already has: `--config.steps=0.5` is refused where
    the config has an int. Tuples are written `"(1, 2)"`. A group that the config leaves empty is open:
    any key may be added to it, its value is a Python literal or else a text, and whoever reads the
    group checks it. Returns key -> new value.

    Raises:
      UserError: unknown key (the nearest known keys are named), wrong type, or a group of keys.
    """
    grouped: dict[str, list[str]] = {}
    open_groups = {key for key, value in flatten(config).items() if isinstance(value, Mapping)}
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, _ = argument.partition("=")
        key = name.partition("config.")[2]
        is_open = key.rpartition(".")[0] in open_groups
        if not is_open:
            _check_key(config, key)
        if not equals and (is_open or not isinstance(_lookup(config, key), bool)):
            value = next(waiting, None)
            if value is None:
                raise UserError(f"--config.{key} wants a value: --config.{key}=VALUE")
            argument = f"{argument}={value}"
        grouped.setdefault(key, []).append(argument)
    changed = {}
    for key, values in grouped.items():
        group, _, name = key.rpartition(".")
        if group in open_groups:
            changed[key] = _literal(values[-1].partition("=")[2])
            with config.unlocked():
                _lookup(config, group)[name] = changed[key]
            continue
        # One flag registry per key: config_flags does the parsing, and whatever it objects to is
        # known to concern this key.
        registry = flags.FlagValues()
        before = _lookup(config, key)
        argv = ["", *values]
        try:
            config_flags.DEFINE_config_dict("config", config, flag_values=registry, sys_argv=argv)
            registry(argv)
        except (flags.Error, TypeError, ValueError) as error:
            kind = config_flags.config_path.get_type(key, config)
            raise _wrong_type(key, values, getattr(kind, "__name__", str(kind)), before) from error
        changed[key] = _lookup(config, key)
        kinds = {type(item) for item in _items(before)}
        allowed = kinds | ({int} if float in kinds else set())
        if kinds and any(type(item) not in allowed for item in _items(changed[key])):
            names = " or ".join(sorted(kind.__name__ for kind in kinds))
            config.update_from_flattened_dict({key: before})
            raise _wrong_type(key, values, f"tuple of {names}", before)
    return changed


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (SyntaxError, ValueError):
        return text


def _items(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ()


def _wrong_type(key: str, values: Sequence[str], wanted: str, before: Any) -> UserError:
    given = ", ".join(value.partition("=")[2] for value in values)
    return UserError(f"--config.{key}={given} has the wrong type: {wanted} is wanted (the config has {before!r})")


def _check_key(config: config_dict.ConfigDict, key: str) -> None:
    known = {name: value for name, value in flatten(config).items() if not isinstance(value, Mapping)}
    if key in known:
        return
    inside = [name for name in known if name.startswith(key + ".")]
    if key and inside:
        raise UserError(f"config key '{key}' is a group of keys: set one of {', '.join(inside)}")
    near = nearest_keys(key, list(known))
    raise UserError(f"unknown config key '{key}'; the nearest known keys are: {', '.join(near)}")


def nearest_keys(key: str, known: Sequence[str], count: int = 3) -> list[str]:
    """The `count` keys that look most like `key`, best first.

    A dotted key is compared as a whole and by its last part, so that a right name in a wrong group
    is found as well as a misspelling; and `lr` finds `learning_rate` by its initials.
    """

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        part, other = key.split(".")[-1], candidate.split(".")[-1]
        last = difflib.SequenceMatcher(None, part, other).ratio()
        initials = "".join(word[:1] for word in other.split("_"))
        return max(whole, 0.95 * last, 0.9 * (part == initials))

    return sorted(known, key=lambda candidate: (-likeness(candidate), candidate))[:count]


def _lookup(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def to_plain(value: Any) -> Any:
    """Nested ConfigDicts, dicts and tuples as nested dicts and lists that JSON can hold."""
    if isinstance(value, config_dict.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"a config value must be a number, a text, a bool or a list, not {value!r}")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, in the config's order. An empty group keeps its own key."""
    plain = config.to_dict() if isinstance(config, config_dict.ConfigDict) else config
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def to_json(config: Mapping[str, Any]) -> str:
    """The plain form as indented JSON; `from_json` reads it back to an equal plain form."""
    return json.dumps(to_plain(config), indent=2)


def from_json(text: str) -> dict[str, Any]:
    """The plain form written by `to_json`."""
    return json.loads(text)


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that depend on keys and values and not on their order."""
    canonical = json.dumps(to_plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value in first, value in second); the text "absent" for a missing key."""
    a, b = flatten(to_plain(first)), flatten(to_plain(second))
    keys = [*a, *(key for key in b if key not in a)]
    pairs = {key: (a.get(key, "absent"), b.get(key, "absent")) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def default_workdir(spec: str) -> str:
    """`runs/grpo_qwen-tiny` for `configs/grpo_qwen.py:tiny`."""
    name, _, argument = spec.partition(":")
    safe = "".join(c if c.isalnum() or c in "._" else "-" for c in argument)
    return str(Path("runs") / (Path(name).stem + (f"-{safe}" if safe else "")))


def launch_command() -> str | None:
    """The command line of this process where it was `python -m experiments.run ...`, else None.

    Running the same command again resumes the run.
    """
    main_spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main_spec is None or main_spec.name != "experiments.run":
        return None
    return shlex.join(["python", "-m", "experiments.run", *sys.argv[1:]])
