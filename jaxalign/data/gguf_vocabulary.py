"""The vocabulary inside a GGUF file -> a `tokenizers.Tokenizer`.

Two kinds occur in the supported models: byte-level BPE with its merges ("gpt2": SmolLM2, Qwen, Llama 3) and
SentencePiece BPE with a score per token ("llama": Llama 2, Gemma), from which the merges follow.
"""

import functools
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from jaxalign.errors import UserError

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre -> how a text is cut before merging: pattern of the pieces, or None for GPT-2's own.
_PATTERNS = {
    "gpt-2": None,
    "smollm": None,
    "qwen2": _WORDS % "",
    "deepseek-r1-qwen": _WORDS % "",
    "llama-bpe": _WORDS % "{1,3}",
    "llama3": _WORDS % "{1,3}",
    "llama-v3": _WORDS % "{1,3}",
}
# What ends a turn, in files that were written before tokenizer.ggml.eot_token_id existed.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")


def build(metadata: Mapping[str, Any], name: str) -> tokenizers.Tokenizer:
    """The tokenizer of a GGUF file.

    Raises:
        UserError: there is no vocabulary, or its model or pre-tokenizer is not supported.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    kind = metadata.get("tokenizer.ggml.model")
    if not tokens or kind is None:
        raise UserError(f"{name}: the metadata hold no tokenizer; give a model folder with tokenizer.json instead")
    if kind == "gpt2":
        backend = _byte_level(metadata, tokens, name)
    elif kind == "llama":
        backend = _sentencepiece(metadata, tokens, name)
    else:
        raise UserError(
            f"{name}: tokenizer model {kind!r} is not supported; supported are 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece BPE); give a model folder with tokenizer.json instead"
        )
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    # All of these are in the vocabulary, so they keep their numbers.
    backend.add_tokens(
        [
            AddedToken(token, special=role != _USER_DEFINED, normalized=False)
            for token, role in zip(tokens, types, strict=True)
            if role in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
    )
    bos_id = metadata.get("tokenizer.ggml.bos_token_id")
    if bos_id is not None and metadata.get("tokenizer.ggml.add_bos_token", kind == "llama"):
        bos = tokens[bos_id]
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B:1"], special_tokens=[(bos, bos_id)]
        )
    return backend


def eos_ids(metadata: Mapping[str, Any]) -> list[int]:
    """The ids that end an answer: end of sequence, end of turn."""
    found = [metadata.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "eot_token_id")]
    if found[1] is None and "tokenizer.chat_template" in metadata:
        tokens = metadata.get("tokenizer.ggml.tokens", [])
        template = metadata["tokenizer.chat_template"]
        found += [tokens.index(end) for end in _TURN_ENDS if end in template and end in tokens]
    return list(dict.fromkeys(number for number in found if number is not None))


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as one visible character; this is character -> byte.

    Printable Latin-1 bytes stand for themselves, the others are counted up from U+0100.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], name: str) -> tokenizers.Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in _PATTERNS:
        raise UserError(
            f"{name}: pre-tokenizer {pre!r} is not supported; supported are {', '.join(_PATTERNS)}; give a model "
            "folder with tokenizer.json instead"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges", [])]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges="llama" in pre))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{name}: the vocabulary and merges do not fit together ({error})") from error
    pattern = _PATTERNS[pre]
    if pattern is None:
        cut: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
        if pre == "smollm":
            cut.insert(0, pre_tokenizers.Digits(individual_digits=True))
    else:
        cut = [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    if pre.endswith(("qwen2", "qwen")):
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(cut)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], name: str) -> tokenizers.Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise UserError(f"{name}: tokenizer.ggml.scores is missing or does not match the {len(tokens)} tokens")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # SentencePiece joins the pair whose result has the best score; every way to halve a token is such a pair.
    merges = []
    for number, token in enumerate(tokens):
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None:
                merges.append((-scores[number], number, left, right))
    merges.sort()
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(tokens[left], tokens[right]) for _, _, left, right in merges],
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps = [normalizers.Replace(" ", "\u2581")]
    ends = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend("\u2581"))
        ends.append(decoders.Strip(content=" ", left=1))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(ends)
    return backend
