"""MC-GRPO (arXiv 2601.22582) with short arithmetic as the task.

  python -m experiments.run --config=configs/mc_grpo.py
  python -m experiments.run --config=configs/mc_grpo.py:tiny   0.8 M parameters from nothing

Model, task and what else may follow the colon are those of configs/grpo_qwen.py.

Against the paper: the same advantage and G + 1 completions, here for G = 2. The reward of this task is 0 or 1, where
the MAD is always 0 and the advantages are +-1 / epsilon: they are limited to 5 (not in the paper). No KL (0.04
there). The control of equal cost is configs/grpo_qwen.py with --config.rollout.group_size=3 --config.rl.leave_out=1.
"""

from configs import defaults, grpo_qwen


def get_config(argument=None):
    words = defaults.arguments(argument, grpo_qwen.WORDS)
    config = grpo_qwen.recipe("mc_grpo", "mc_grpo", words)
    config.rollout.group_size = 3
    config.rl.advantages.limit = 5.0
    return config
