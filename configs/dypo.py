"""DYPO (arXiv 2604.08926) with short arithmetic as the task.

  python -m experiments.run --config=configs/dypo.py
  python -m experiments.run --config=configs/dypo.py:tiny   0.8 M parameters from nothing

Model, task and what else may follow the colon are those of configs/grpo_qwen.py.

Against the paper: routing, group alignment loss, alpha 0.5, beta 1 and gamma 1 as there. The only teacher is the
right answer (two models there; --config.data.answer_fields takes several fields, of which one is drawn at each
visit); its likelihood is a mean over tokens (a sum there).
"""

from configs import defaults, grpo_qwen


def get_config(argument=None):
    words = defaults.arguments(argument, grpo_qwen.WORDS)
    config = grpo_qwen.recipe("dypo", "dypo", words)
    config.data.answer_fields = ("answer",)
    return config
