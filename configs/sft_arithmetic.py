"""Supervised fine-tuning on the answers of short arithmetic questions: the sibling that GRPO is compared with.

  python -m experiments.run --config=configs/sft_arithmetic.py
  python -m experiments.run --config=configs/sft_arithmetic.py:tiny       0.8 M parameters from nothing, in a minute
  python -m experiments.run --config=configs/sft_arithmetic.py:runlocal   two small steps of the real thing

No paper: maximum likelihood of the completion tokens, examples packed into rows, the mean over all of a batch's tokens.
"""

from configs import defaults


def get_config(argument=None):
    known = {
        **defaults.SIZES,
        "tiny": "0.8 M parameters from nothing",
        "runlocal": "two small steps",
    }
    words = defaults.arguments(argument, known)
    config = defaults.sft("sft_arithmetic", steps=40)
    config.data.system_prompt = "Answer with one number."  # as in configs/grpo_qwen.py
    config.optimizer.learning_rate = 3e-5
    config.model.path = defaults.one_of(words, defaults.SIZES, "auto")
    if "tiny" in words:
        defaults.untrained(config)
        config.train.steps = 300
        config.optimizer.learning_rate = 1e-3
        config.optimizer.warmup_steps = 20
    if "runlocal" in words:
        config.train.steps = 2
        config.packing.rows_per_step = 2
        config.evaluation.max_questions = 8
    return config
