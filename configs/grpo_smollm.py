"""GRPO (DeepSeekMath, arXiv 2402.03300) on SmolLM2, by default the 135M-Instruct that is embedded.

  python -m experiments.run --config=configs/grpo_smollm.py                the embedded weights, always
  python -m experiments.run --config=configs/grpo_smollm.py:smollm2_360m   HuggingFaceTB/SmolLM2-360M-Instruct

Everything else, also what may follow the colon and what differs from the paper, is as in configs/grpo_qwen.py.
"""

from configs import grpo_qwen


def get_config(argument=None):
    config = grpo_qwen.get_config(argument)
    config.name = config.name.replace("qwen", "smollm")
    if config.model.path == "auto":
        config.model.path = "smollm2-135m-instruct"
    return config
