"""GRAO (arXiv 2508.07750) with short arithmetic as the task.

  python -m experiments.run --config=configs/grao.py
  python -m experiments.run --config=configs/grao.py:tiny   0.8 M parameters from nothing

Model, task and what else may follow the colon are those of configs/grpo_qwen.py.

Against the paper: the same objective with beta 0.5, lambda 0.6 and 8 completions; the reference answer is the right
one, and what judges is the verifier (a preference model there): a right completion ties with it. The weight of the
reference is never negative (--config.rl.loss.clamp_reference=False is the paper).
"""

from configs import defaults, grpo_qwen


def get_config(argument=None):
    words = defaults.arguments(argument, grpo_qwen.WORDS)
    config = grpo_qwen.recipe("grao", "grao", words)
    config.data.answer_fields = ("answer",)
    return config
