"""GRPO (DeepSeekMath, arXiv 2402.03300) on Gemma 3, by default google/gemma-3-270m-it from the hub or its cache.

  python -m experiments.run --config=configs/grpo_gemma.py
  python -m experiments.run --config=configs/grpo_gemma.py:gemma3_1b
  python -m experiments.run --config=configs/grpo_gemma.py --config.model.path=/path/to/folder-or-file.gguf

Gemma's licence must be accepted on the hub first. Everything else, also what may follow the colon and what differs from
the paper, is as in configs/grpo_qwen.py.
"""

from configs import grpo_qwen


def get_config(argument=None):
    config = grpo_qwen.get_config(argument)
    config.name = config.name.replace("qwen", "gemma")
    if config.model.path == "auto":
        config.model.path = "gemma3_270m"
    return config
