"""Tokenizers: folders and GGUF vocabularies, special tokens, the bytes of tokens, the guard of the embedding."""

import json
import shutil

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from jaxalign.data import gguf_vocabulary
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import UserError

TEXTS = ["", " ", "hello hello", " hé ", "a\n\n b", "<s>hello</s>", "日本 👍", "\x00\x7f", "hello  hell"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


def byte_level():
    """Bytes by their number, he 256, ll 257, hell 258, special <s> 259, </s> 260, <end> 261, added <tool> 262."""
    merges = [("h", "e"), ("l", "l"), ("he", "ll")]
    vocabulary = gguf_vocabulary.byte_alphabet() | {"he": 256, "ll": 257, "hell": 258}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in ("<s>", "</s>", "<end>")])
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 259)])
    return backend


def sentencepiece():
    """Words with a visible space, and a fallback to bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello"]
    vocabulary = {text: number for number, text in enumerate(tokens)}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello")]
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def write_folder(folder, backend=None, **files):
    """`tokenizer.json` and JSON files beside it, named without their suffix."""
    folder.mkdir(exist_ok=True)
    (backend or byte_level()).save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def read(folder, **files):
    return Tokenizer.from_folder(write_folder(folder, **files))


def test_ids_of_texts_and_back(tmp_path):
    tokenizer = read(tmp_path)
    assert tokenizer.encode("hello") == [258, ord("o")]
    assert tokenizer.encode("<s>he</s>") == [259, 256, 260], "special tokens that are written out"
    assert tokenizer.encode("he", add_special_tokens=True) == [259, 256]
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
    assert tokenizer.decode([259, 256, 262, 260]) == "he<tool>", "only special tokens are left out"
    assert tokenizer.decode([0xE6, 0x97]) == "\ufffd"
    assert tokenizer.decode([256, 5000]) == "he"
    assert tokenizer.decode_batch([[256], [], [259, 257]]) == ["he", "", "ll"]
    assert tokenizer.vocab_size == 263


@given(st.text())
def test_bytes_of_tokens_are_the_bytes_of_the_text(text):
    for backend in (byte_level(), sentencepiece()):
        tokenizer = Tokenizer(backend)
        ids = tokenizer.encode(text)
        pieces = tokenizer.token_bytes()
        assert len(pieces) == tokenizer.vocab_size
        if any(number in tokenizer._special_ids for number in ids):
            continue
        prefix = " " if backend.normalizer is not None and text else ""
        assert b"".join(pieces[each] for each in ids) == (prefix + text).encode()


def test_special_tokens_have_no_bytes_and_added_ones_their_text():
    pieces = Tokenizer(byte_level()).token_bytes()
    assert [pieces[number] for number in (258, 259, 260, 261, 262)] == [b"hell", b"", b"", b"", b"<tool>"]
    pieces = Tokenizer(sentencepiece()).token_bytes()
    assert pieces[3 + 0xE6] == b"\xe6"
    assert pieces[-1] == b" hello"
    assert pieces[0] == b""


def test_the_byte_tokenizer():
    tokenizer = Tokenizer.bytes()
    assert tokenizer.vocab_size == 257
    for text in TEXTS:
        assert tokenizer.encode(text) == list(text.encode())
        assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.encode("a<|end|>") == [ord("a"), 256]
    assert tokenizer.eos_ids == (256,)


def test_what_ends_an_answer(tmp_path):
    """generation_config.json has the say, then the tokenizer's own; config.json only where both are silent."""
    assert read(tmp_path).eos_ids == ()
    assert read(tmp_path, config={"eos_token_id": 260}).eos_ids == (260,)
    assert read(tmp_path, config={"eos_token_id": 1, "text_config": {"eos_token_id": [260, 261]}}).eos_ids == (260, 261)
    assert read(tmp_path, tokenizer_config={"eos_token": "<end>"}).eos_ids == (261,)
    assert read(tmp_path, tokenizer_config={"eos_token": {"content": "</s>"}}).eos_ids == (260,)
    both = read(tmp_path, generation_config={"eos_token_id": [261, 260]}, tokenizer_config={"eos_token": "</s>"})
    assert both.eos_ids == (261, 260)
    assert both.pad_id == 261
    with pytest.raises(UserError, match="end-of-sequence id 900 lies outside the tokenizer's 263 tokens"):
        read(tmp_path, generation_config={"eos_token_id": 900})


def test_special_tokens_by_name(tmp_path):
    tokenizer = read(
        tmp_path,
        special_tokens_map={"bos_token": "<end>", "pad_token": {"content": "<end>"}},
        tokenizer_config={"bos_token": "<s>", "eos_token": "</s>", "unk_token": None},
    )
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (259, (260,), 261)
    with pytest.raises(UserError, match=r"eos_token is '<eot>' in tokenizer_config.json but tokenizer.json does not"):
        read(tmp_path, tokenizer_config={"eos_token": "<eot>"})


def test_where_the_chat_template_stands(tmp_path):
    messages = [{"role": "user", "content": "he"}]
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    several = [{"name": "tools", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    for files in (
        {"tokenizer_config": names | {"chat_template": TEMPLATE}},
        {"tokenizer_config": names | {"chat_template": several}},
        {"tokenizer_config": names, "chat_template": {"chat_template": TEMPLATE}},
    ):
        tokenizer = read(tmp_path / "one", **files)
        assert tokenizer.render_chat(messages) == "<s>user: he</s>"
        assert tokenizer.apply_chat(messages) == tokenizer.encode("<s>user: he</s>")
        shutil.rmtree(tmp_path / "one")
    write_folder(tmp_path, tokenizer_config=names | {"chat_template": "old"})
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}é", encoding="utf-8")
    assert Tokenizer.from_folder(tmp_path).render_chat(messages) == "heé"
    base = read(tmp_path / "base", tokenizer_config=names)
    with pytest.raises(UserError, match=r"has no chat template \(a base model\); take an instruct model"):
        base.apply_chat(messages)


def test_settings_of_the_file_that_would_pad_or_cut_are_off(tmp_path):
    backend = byte_level()
    backend.enable_padding(length=10)
    backend.enable_truncation(2)
    assert Tokenizer.from_folder(write_folder(tmp_path, backend)).encode("hello!") == [258, ord("o"), ord("!")]


def test_what_is_saved_is_read_again(tmp_path):
    tokenizer = Tokenizer(byte_level(), eos_ids=[261, 260], pad_id=259, bos_id=259, chat_template=TEMPLATE)
    tokenizer.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert again.fingerprint() == tokenizer.fingerprint()
    assert (again.eos_ids, again.pad_id, again.bos_id) == ((261, 260), 259, 259)
    assert again.chat_template.source == TEMPLATE
    assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_transformers_reads_what_is_saved(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer(byte_level(), eos_ids=[261, 260], pad_id=260, bos_id=259, chat_template=TEMPLATE)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (261, 260, 259)
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False).input_ids == tokenizer.encode(text)
    messages = [{"role": "user", "content": "hello"}]
    assert theirs.apply_chat_template(messages, return_dict=True).input_ids == tokenizer.apply_chat(messages)


def test_the_fingerprint_tells_tokenizers_apart():
    variants = [
        Tokenizer(byte_level()),
        Tokenizer(sentencepiece()),
        Tokenizer(byte_level(), eos_ids=[260]),
        Tokenizer(byte_level(), bos_id=259),
        Tokenizer(byte_level(), pad_id=7),
        Tokenizer(byte_level(), chat_template=TEMPLATE),
    ]
    assert len({each.fingerprint() for each in variants}) == len(variants)
    assert Tokenizer(byte_level()).fingerprint() == variants[0].fingerprint()


def test_a_tokenizer_that_does_not_fit_the_embedding():
    tokenizer = Tokenizer(byte_level(), name="bytes")
    tokenizer.check_fits(263, "model")
    tokenizer.check_fits(263 + 1024, "a padded embedding")
    with pytest.raises(UserError, match="bytes has 263 tokens, but the embedding of other has 5000 rows"):
        tokenizer.check_fits(5000, "other")
    with pytest.raises(UserError, match="has 263 tokens, but the embedding of other has only 262 rows"):
        tokenizer.check_fits(262, "other")  # <tool> is an ordinary token


def test_a_special_token_beyond_the_embedding_is_refused_when_a_text_has_it():
    backend = byte_level()
    backend.add_special_tokens(["<image>"])
    tokenizer = Tokenizer(backend)
    tokenizer.check_fits(263, "model")
    assert tokenizer.encode("hello") == [258, ord("o")]
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["he", text])):
        with pytest.raises(UserError, match="the text contains '<image>', for which the model has no embedding"):
            encode("he <image>")


def test_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer.json is missing; a model folder needs it for text"):
        Tokenizer.from_folder(tmp_path)
    write_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config.json is not valid JSON"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(UserError, match=r"tokenizer.json is not a valid tokenizer.json"):
        Tokenizer.from_folder(tmp_path)


def test_from_file(tmp_path):
    write_folder(tmp_path)
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json", eos_ids=[260])
    assert tokenizer.encode("he</s>") == [256, 260]
    assert (tokenizer.eos_ids, tokenizer.name) == ((260,), str(tmp_path / "tokenizer.json"))


# --- vocabularies of GGUF files, as metadata ---


def gguf_metadata(kind="gpt2", **changes):
    """`byte_level` or `sentencepiece` as a GGUF file tells it."""
    backend = byte_level() if kind == "gpt2" else sentencepiece()
    tokens = [backend.id_to_token(number) for number in range(backend.get_vocab_size())]
    metadata = {"model": kind, "tokens": tokens, "eos_token_id": tokens.index("</s>")}
    if kind == "gpt2":
        metadata |= {"pre": "gpt-2", "merges": ["h e", "l l", "he ll"], "token_type": [1] * 259 + [3, 3, 3, 4]}
    else:
        # The better a token's score, the earlier it is merged.
        scores = [-float(len(tokens) - rank) for rank in range(len(tokens))]
        scores[tokens.index("hello")], scores[tokens.index("▁hello")] = -1.0, -2.0
        for score, token in enumerate(["he", "ll", "hell", "hello", "▁hello"]):
            scores[tokens.index(token)] = -float(score)
        metadata |= {"scores": scores, "token_type": [2, 3, 3] + [6] * 256 + [1] * 10, "unknown_token_id": 0}
    metadata |= changes
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_gguf_vocabulary_is_the_tokenizer_it_was_made_from(kind):
    tokenizer = Tokenizer.from_gguf(gguf_metadata(kind))
    reference = Tokenizer(byte_level() if kind == "gpt2" else sentencepiece())
    for text in TEXTS:
        assert tokenizer.encode(text) == reference.encode(text), text
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == reference.decode(ids)
    assert tokenizer.token_bytes() == reference.token_bytes()
    assert tokenizer.vocab_size == reference.vocab_size
    assert tokenizer.eos_ids == (reference.encode("</s>")[-1],)


def test_sentencepiece_joins_the_pair_with_the_best_score():
    """Not the first in the vocabulary: "hel" is h + el where "el" has the better score, he + l where "he" has."""
    tokens = ["<unk>", "h", "e", "l", "he", "el"]
    for scores, expected in ((-5.0, -1.0), [1, 5]), ((-1.0, -5.0), [4, 3]):
        changes = {"tokens": tokens, "scores": [0.0, -9.0, -9.0, -9.0, *scores], "token_type": [2, 1, 1, 1, 1, 1]}
        metadata = gguf_metadata("llama", **changes, eos_token_id=None, add_space_prefix=False)
        assert Tokenizer.from_gguf(metadata).encode("hel") == expected


def test_how_gguf_pre_tokenizers_cut():
    """Published rules: SmolLM2 and Qwen2 cut out every digit, Llama 3 runs of up to three, GPT-2 whole numbers."""

    def pieces(pre, text):
        metadata = gguf_metadata(pre=pre)
        metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "12", "123", "1234"]
        metadata["tokenizer.ggml.merges"] = [*metadata["tokenizer.ggml.merges"], "1 2", "12 3", "123 4"]
        metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1, 1, 1]
        tokenizer = Tokenizer.from_gguf(metadata)
        return [tokenizer.decode([each]) for each in tokenizer.encode(text)]

    assert pieces("gpt-2", "12345") == ["1234", "5"]
    assert pieces("smollm", "1234") == pieces("qwen2", "1234") == list("1234")
    assert pieces("llama-bpe", "1234") == ["123", "4"]
    decomposed = "e\u0301"
    assert "".join(pieces("llama-bpe", decomposed)).encode() != "é".encode()
    assert Tokenizer.from_gguf(gguf_metadata(pre="qwen2")).encode(decomposed) == list("é".encode()), "Qwen composes"


def test_begin_and_end_tokens_of_gguf_files():
    bos = Tokenizer.from_gguf(gguf_metadata(bos_token_id=259, add_bos_token=True))
    assert bos.encode("he", add_special_tokens=True) == [259, 256]
    assert bos.encode("he") == [256]
    assert Tokenizer.from_gguf(gguf_metadata(bos_token_id=259)).encode("he", add_special_tokens=True) == [256]
    assert Tokenizer.from_gguf(gguf_metadata("llama", bos_token_id=1)).encode("", add_special_tokens=True)[0] == 1
    assert Tokenizer.from_gguf(gguf_metadata(eot_token_id=261)).eos_ids == (260, 261)
    assert Tokenizer.from_gguf(gguf_metadata(padding_token_id=259)).pad_id == 259
    # Files older than eot_token_id: the template says what ends a turn.
    old = gguf_metadata()
    old["tokenizer.ggml.tokens"] = [t if t != "<end>" else "<|im_end|>" for t in old["tokenizer.ggml.tokens"]]
    old["tokenizer.chat_template"] = TEMPLATE + "<|im_end|>"
    tokenizer = Tokenizer.from_gguf(old)
    assert tokenizer.eos_ids == (260, 261)
    assert tokenizer.render_chat([{"role": "user", "content": "x"}]) == "user: x</s><|im_end|>"


def test_without_a_space_prefix():
    tokenizer = Tokenizer.from_gguf(gguf_metadata("llama", add_space_prefix=False))
    assert tokenizer.decode(tokenizer.encode(" hello")) == " hello"
    assert tokenizer.encode("hello") == [tokenizer.encode("hello hello")[0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "m.gguf: the metadata hold no tokenizer; give a model folder with tokenizer.json instead"),
        ({"model": None}, "hold no tokenizer"),
        ({"model": "bert"}, "tokenizer model 'bert' is not supported; supported are 'gpt2' .* and 'llama'"),
        ({"pre": "tekken"}, "pre-tokenizer 'tekken' is not supported; supported are gpt-2, smollm, qwen2"),
        ({"pre": None}, "pre-tokenizer None is not supported"),
        ({"merges": ["h zz"]}, "the vocabulary and merges do not fit together"),
        ({"model": "llama"}, "tokenizer.ggml.scores is missing or does not match the 263 tokens"),
        ({"model": "llama", "scores": [0.0]}, "does not match the 263 tokens"),
    ],
)
def test_gguf_vocabularies_that_cannot_be_read_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        Tokenizer.from_gguf(gguf_metadata(**changes), name="m.gguf")
