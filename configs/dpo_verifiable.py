"""DPO (arXiv 2305.18290) on the model's own samples of checkable questions, ranked by the verifier.

  python -m experiments.run --config=configs/dpo_verifiable.py                your model, else the embedded SmolLM2-135M
  python -m experiments.run --config=configs/dpo_verifiable.py:smollm2_360m   other weights
  python -m experiments.run --config=configs/dpo_verifiable.py:ipo            another loss
  python -m experiments.run --config=configs/dpo_verifiable.py:tiny           0.8 M parameters from nothing, in a minute
  python -m experiments.run --config=configs/dpo_verifiable.py:runlocal       two small steps of the real thing

The first policy answers every training question 16 times; a right and a wrong answer to the same question are a pair.
The questions are those of configs/grpo_qwen.py, and so is the measure: the greedy solve rate on held-out ones.

No paper has this recipe with these numbers; the loss is DPO's with beta = 0.1.
"""

from configs import defaults
from configs.dpo_smollm import PREFERENCE
from jaxalign.methods import METHODS


def get_config(argument=None):
    known = {
        **defaults.SIZES,
        **{name: METHODS[name].title for name in PREFERENCE},
        "tiny": "0.8 M parameters from nothing, with a supervised warm start",
        "runlocal": "two small steps",
    }
    words = defaults.arguments(argument, known)
    method = defaults.one_of(words, PREFERENCE, "dpo")
    config = defaults.preference(f"{method}_verifiable", method, steps=60)
    config.data.source = "arithmetic?split=train"
    config.data.held_out = "arithmetic?split=held_out"
    config.data.held_out_pairs = ""
    config.data.system_prompt = "Answer with one number."  # as in configs/grpo_qwen.py
    config.samples.per_question = 16
    config.preference.pairs_per_step = 16
    config.optimizer.learning_rate = 1e-5
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 5
    config.model.path = defaults.one_of(words, defaults.SIZES, "auto")
    if "tiny" in words:
        defaults.untrained(config)
        config.samples.per_question = 8
        config.samples.max_new_tokens = 4
        config.optimizer.learning_rate = 3e-4
        config.warm_start.steps = 150
    if "runlocal" in words:
        config.train.steps = 2
        config.samples.questions = 16
        config.preference.pairs_per_step = 2
        config.evaluation.max_questions = 8
    return config
