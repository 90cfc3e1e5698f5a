"""Text <-> token ids: one class over the `tokenizers` library, for Hugging Face folders and GGUF files."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from jaxalign.data import gguf_vocabulary
from jaxalign.data.chat import ChatTemplate
from jaxalign.errors import UserError

_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """A tokenizer with its special tokens and chat template.

    Args:
        backend: the `tokenizers.Tokenizer`.
        eos_ids: ids that end a completion; several models have more than one.
        pad_id: filler; by default the first of `eos_ids`, else 0. It never decides what is padding: masks do.
        bos_id: id that opens a text, or None.
        chat_template: jinja2 text, or None for a model without conversations.
        name: for error messages.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_ids: Sequence[int] = (),
        pad_id: int | None = None,
        bos_id: int | None = None,
        chat_template: str | None = None,
        name: str = "tokenizer",
    ):
        self._backend = backend
        self.name = name
        self.eos_ids = tuple(dict.fromkeys(eos_ids))
        self.pad_id = pad_id if pad_id is not None else (self.eos_ids[0] if self.eos_ids else 0)
        self.bos_id = bos_id
        self._limit: int | None = None
        added = backend.get_added_tokens_decoder()
        self._special_ids = {number for number, token in added.items() if token.special}
        self._added_ids = set(added)
        names = {"bos_token": bos_id, "eos_token": self.eos_ids[0] if self.eos_ids else None, "pad_token": self.pad_id}
        texts = {key: backend.id_to_token(number) for key, number in names.items() if number is not None}
        self.chat_template = (
            None if chat_template is None else ChatTemplate(chat_template, {k: v for k, v in texts.items() if v})
        )

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """Reads `tokenizer.json` and the settings beside it from a Hugging Face folder.

        Raises:
            UserError: `tokenizer.json` is missing or broken, or a special token is not in the vocabulary.
        """
        folder = Path(folder)
        backend = _open(folder / "tokenizer.json")
        settings = _optional_json(folder / "tokenizer_config.json")
        names = {**_optional_json(folder / "special_tokens_map.json"), **settings}
        ids = {}
        for name in _SPECIAL_NAMES:
            text = names.get(name)
            text = text.get("content") if isinstance(text, Mapping) else text
            if text is not None:
                ids[name] = backend.token_to_id(text)
                if ids[name] is None:
                    raise UserError(
                        f"{folder}: {name} is {text!r} in tokenizer_config.json but tokenizer.json does not know it; "
                        "the two files belong to different models"
                    )
        # generation_config.json lists what ends an answer (often two ids); config.json is the base model's view.
        generation, config = (_optional_json(folder / f) for f in ("generation_config.json", "config.json"))
        config = {**config, **config.get("text_config", {})}
        eos = [*_as_ids(generation.get("eos_token_id")), *_as_ids(ids.get("eos_token"))]
        eos = eos or _as_ids(config.get("eos_token_id"))
        largest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        for number in eos:
            if number > largest:
                raise UserError(
                    f"{folder}: end-of-sequence id {number} lies outside the tokenizer's {largest + 1} tokens; "
                    "tokenizer.json belongs to another model"
                )
        return cls(
            backend,
            eos_ids=eos,
            pad_id=ids.get("pad_token"),
            bos_id=ids.get("bos_token"),
            chat_template=_template(folder, settings),
            name=str(folder),
        )

    @classmethod
    def from_gguf(cls, source: str | Path | Mapping[str, Any], name: str | None = None) -> "Tokenizer":
        """The tokenizer inside a GGUF file: its path, or its metadata where they are already read.

        Raises:
            UserError: the file holds no vocabulary or one of a kind that is not supported.
        """
        if not isinstance(source, Mapping):
            from jaxalign.models.gguf_file import GgufFile

            name, source = name or str(source), GgufFile(source).metadata
        name = name or str(source.get("general.name", "GGUF file"))
        return cls(
            gguf_vocabulary.build(source, name),
            eos_ids=gguf_vocabulary.eos_ids(source),
            pad_id=source.get("tokenizer.ggml.padding_token_id"),
            bos_id=source.get("tokenizer.ggml.bos_token_id"),
            chat_template=source.get("tokenizer.chat_template"),
            name=name,
        )

    @classmethod
    def from_file(cls, path: str | Path, **settings: Any) -> "Tokenizer":
        """A bare `tokenizer.json` or a `.gguf` file; `settings` as in the constructor (for a `tokenizer.json`)."""
        path = Path(path)
        if path.suffix == ".gguf":
            return cls.from_gguf(path)
        return cls(_open(path), **{"name": str(path), **settings})

    @classmethod
    def bytes(cls) -> "Tokenizer":
        """One token per byte (ids 0..255) and an end token, for models that are trained from nothing."""
        alphabet = gguf_vocabulary.byte_alphabet()  # letter -> byte
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=dict(alphabet), merges=[]))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        backend.add_special_tokens([tokenizers.AddedToken("<|end|>", special=True, normalized=False)])
        return cls(backend, eos_ids=(len(alphabet),), name="byte tokenizer")

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id. The embedding may have more rows: models pad it."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of a text. Special tokens written out in the text become their ids.

        Args:
            text: any string.
            add_special_tokens: also add what the tokenizer puts around a text (a begin token, for some models);
                off by default, because chat templates write those tokens themselves.
        """
        return self._checked(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        """`encode` of many texts, in parallel."""
        found = self._backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [self._checked(each.ids) for each in found]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are not valid UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        return self._backend.decode([int(each) for each in ids], skip_special_tokens=skip_special)

    def decode_batch(self, rows: Iterable[Iterable[int]], skip_special: bool = True) -> list[str]:
        """`decode` of many rows."""
        return self._backend.decode_batch([[int(i) for i in row] for row in rows], skip_special_tokens=skip_special)

    def token_bytes(self) -> list[bytes]:
        """The bytes that each of the `vocab_size` ids adds to a text; b"" for special and unassigned ids.

        Concatenated, they are the UTF-8 text (tokenizers that drop the first space of a text still have it here).
        """
        out = [b""] * self.vocab_size
        to_bytes = _token_decoder(self._backend)
        for text, number in self._backend.get_vocab(with_added_tokens=True).items():
            if number in self._special_ids:
                continue
            out[number] = text.encode() if number in self._added_ids else to_bytes(text)
        return out

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The conversation as the text whose ids `apply_chat` returns."""
        if self.chat_template is None:
            raise UserError(
                f"{self.name} has no chat template (a base model); take an instruct model or give prompts as plain text"
            )
        return self.chat_template.render(messages, add_generation_prompt=add_generation_prompt, **variables)

    def apply_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Ids of a conversation under the model's chat template; `variables` go to the template."""
        return self.encode(self.render_chat(messages, add_generation_prompt, **variables))

    def fingerprint(self) -> str:
        """16 hex digits that change with the vocabulary, the rules, the special ids or the chat template."""
        return self._fingerprint

    def check_fits(self, vocab_size: int, model: str) -> None:
        """Refuses a tokenizer that cannot belong to an embedding of `vocab_size` rows, and guards `encode` from now on.

        Special tokens beyond the embedding are tolerated (Gemma 3's image token is one) until a text contains one.

        Raises:
            UserError: an ordinary token has no row, or most rows have no token.
        """
        if self.vocab_size > vocab_size:
            beyond = {n for n in self._backend.get_vocab(with_added_tokens=True).values() if n >= vocab_size}
            if beyond - self._special_ids:
                raise UserError(
                    f"the tokenizer {self.name} has {self.vocab_size} tokens, but the embedding of {model} has only "
                    f"{vocab_size} rows; this is the tokenizer of another model"
                )
        # Published models pad by a few hundred rows at most.
        if vocab_size - self.vocab_size > max(1024, vocab_size // 10):
            raise UserError(
                f"the tokenizer {self.name} has {self.vocab_size} tokens, but the embedding of {model} has "
                f"{vocab_size} rows; this is the tokenizer of another model"
            )
        self._limit = vocab_size

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json`, `tokenizer_config.json` and the chat template as transformers reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        for name, number in (
            ("bos_token", self.bos_id),
            ("pad_token", self.pad_id),
            ("eos_token", (*self.eos_ids, None)[0]),
        ):
            if number is not None:
                settings[name] = self._backend.id_to_token(number)
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template.source
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=1) + "\n")
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(self.eos_ids)}) + "\n")

    @functools.cached_property
    def _fingerprint(self) -> str:
        template = self.chat_template.source if self.chat_template else None
        rest = json.dumps([self.eos_ids, self.pad_id, self.bos_id, template])
        return hashlib.sha256((self._backend.to_str() + rest).encode()).hexdigest()[:16]

    def _checked(self, ids: list[int]) -> list[int]:
        if self._limit is not None and ids and max(ids) >= self._limit:
            token = self._backend.id_to_token(max(ids))
            raise UserError(f"the text contains {token!r}, for which the model has no embedding; remove it")
        return ids


def _open(path: Path) -> tokenizers.Tokenizer:
    if not path.exists():
        raise UserError(
            f"{path} is missing; a model folder needs it for text (transformers' `save_pretrained` of a fast tokenizer "
            "writes it)"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path} is not a valid tokenizer.json ({error}); copy or download it again") from error
    backend.no_padding()
    backend.no_truncation()
    return backend


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy or download it again") from error


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    found = settings.get("chat_template") or _optional_json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # several named ones
        found = {each["name"]: each["template"] for each in found}.get("default")
    return found


def _as_ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _token_decoder(backend: tokenizers.Tokenizer) -> Any:
    """The function from a vocabulary entry to its bytes, chosen by the tokenizer's decoder."""
    described = "" if backend.decoder is None else bytes(backend.decoder.__getstate__()).decode()
    if '"ByteLevel"' in described:
        table = gguf_vocabulary.byte_alphabet()
        return lambda text: (
            bytes(table[letter] for letter in text) if all(letter in table for letter in text) else text.encode()
        )
    if '"ByteFallback"' in described or '"Metaspace"' in described:
        return _sentencepiece_bytes
    return str.encode


def _sentencepiece_bytes(text: str) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes.fromhex(text[3:5])
    return text.replace("\u2581", " ").encode()
