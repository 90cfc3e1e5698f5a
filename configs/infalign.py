"""InfAlign-CTRL (arXiv 2412.19792) with short arithmetic as the task.

  python -m experiments.run --config=configs/infalign.py
  python -m experiments.run --config=configs/infalign.py:tiny   0.8 M parameters from nothing

Model, task and what else may follow the colon are those of configs/grpo_qwen.py.

Against the paper: calibration and the transform exp(10 u) for best-of-N as there (for worst-of-N:
--config.reward.transform.kind=neg_exp), but with groups (PPO there), 32 reference completions of each question (100
there), and a reward of 0 or 1, of which calibration keeps two values a prompt. Advantages are not divided by the
spread of their group: of two values that leaves nothing but the order, and every transform would be plain GRPO. What
the transform then changes is the weight of prompts, larger for those that the reference seldom solves.
"""

from configs import defaults, grpo_qwen


def get_config(argument=None):
    words = defaults.arguments(argument, grpo_qwen.WORDS)
    config = grpo_qwen.recipe("infalign", "infalign", words)
    config.reward.reference_completions = 32
    config.reward.transform.kind = "exp"
    return config
