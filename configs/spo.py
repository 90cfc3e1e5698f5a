"""SPO (arXiv 2509.13232) with short arithmetic as the task.

  python -m experiments.run --config=configs/spo.py
  python -m experiments.run --config=configs/spo.py:tiny   0.8 M parameters from nothing

Model, task and what else may follow the colon are those of configs/grpo_qwen.py.

Against the paper: the same tracker, forgetting, advantage and prompt sampling; one completion of each of 128 prompts
a step (1,024 there). 8 completions of every question come before training; prompts are answered in one turn, without
tools.
"""

from configs import defaults, grpo_qwen


def get_config(argument=None):
    words = defaults.arguments(argument, grpo_qwen.WORDS)
    config = grpo_qwen.recipe("spo", "spo", words)
    config.rollout.group_size = 1
    config.rollout.prompts_per_step = 2 if "runlocal" in words else 128
    config.prompts.baseline = True
    config.prompts.sampling.enabled = True
    config.prompts.trials = 8
    return config
