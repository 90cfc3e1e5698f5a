"""DAPO (arXiv 2503.14476) with short arithmetic as the task.

  python -m experiments.run --config=configs/dapo.py
  python -m experiments.run --config=configs/dapo.py:tiny   0.8 M parameters from nothing

Model, task and what else may follow the colon are those of configs/grpo_qwen.py.

Against the paper: clip 0.2 / 0.28, no KL, the mean over all tokens, dynamic sampling and the overlong penalty as
there. Batches are drawn at most 4 times a step (the paper sets no limit); the penalty acts on the last 2 of 12 tokens
(4,096 of 20,480 there); 16 prompts of 8 completions (512 of 16 there).
"""

from configs import defaults, grpo_qwen


def get_config(argument=None):
    words = defaults.arguments(argument, grpo_qwen.WORDS)
    config = grpo_qwen.recipe("dapo", "dapo", words)
    config.rollout.max_draws = 4
    config.reward.overlong_buffer = 2 if config.rollout.max_new_tokens > 4 else 1
    return config
