"""GDRO (arXiv 2601.19280) with short arithmetic as the task.

  python -m experiments.run --config=configs/gdro.py
  python -m experiments.run --config=configs/gdro.py:tiny   0.8 M parameters from nothing
  python -m experiments.run --config=configs/gdro.py:rollout   Rollout-GDRO instead of Prompt-GDRO

Model, task and what else may follow the colon are those of configs/grpo_qwen.py.

Against the paper: ten equal classes of the mean success (the paper's pass@8 is --config.prompts.outcome=any), a
window of 50 outcomes, eta 0.65, gamma 0.01 and beta 0.12 as there. The adversary sees 1 - mean reward instead of the
surrogate loss, which is 0 on-policy. Completions are dealt out by the variance of rewards, with averaged arm scores
(the paper: minus the loss; its code: plus the loss, summed). No KL (0.001 there).
"""

from configs import defaults, grpo_qwen


def get_config(argument=None):
    words = defaults.arguments(argument, {**grpo_qwen.WORDS, "rollout": "completions dealt out instead of weights"})
    name = "rollout_gdro" if "rollout" in words else "prompt_gdro"
    config = grpo_qwen.recipe(name, name, words)
    config.rollout.group_size = 4
    config.prompts.window = 50
    config.prompts.weighting.enabled = name == "prompt_gdro"
    config.prompts.allocation.enabled = name == "rollout_gdro"
    return config
