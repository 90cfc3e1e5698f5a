"""DPO (arXiv 2305.18290) and its relatives on human judgements of harm, by default with the embedded SmolLM2-135M.

  python -m experiments.run --config=configs/dpo_smollm.py                DPO
  python -m experiments.run --config=configs/dpo_smollm.py:ipo            another row of `python -m experiments.methods`
  python -m experiments.run --config=configs/dpo_smollm.py:smollm2_360m   other weights
  python -m experiments.run --config=configs/dpo_smollm.py:tiny           0.8 M parameters from nothing, on right and
                                                                          wrong sums, in a minute
  python -m experiments.run --config=configs/dpo_smollm.py:runlocal       two small steps of the real thing

The pairs are answers of language models to the same request that people scored differently for harm; less harmful is
chosen. They come with the package pyrit, which setup.sh installs. Requests are split between training and
held-out pairs; at most 16 pairs of one request are trained on, because a few requests have hundreds.

Against the paper: the same loss and beta = 0.1. The paper has learning rate 1e-6 with RMSprop, a warm-up of 150 steps
and batches of 64 for models of billions of parameters; here it is 5e-6 with AdamW and a batch of 8. Settings of the
other losses are those of their rows, without a search for better ones.
"""

from configs import defaults
from jaxalign.methods import METHODS

PREFERENCE = tuple(name for name, row in METHODS.items() if row.config.startswith("configs/dpo_smollm.py"))


WORDS = {
    **defaults.SIZES,
    "tiny": "0.8 M parameters from nothing, with a supervised warm start",
    "runlocal": "two small steps",
}


def recipe(name: str, method: str, words: set[str]):
    """Human judgements of harm under the loss of `method`, as every recipe on them has it."""
    config = defaults.preference(name, method, steps=100)
    config.data.source = "harm_pairs?split=train&per_prompt=16"
    config.data.held_out_pairs = "harm_pairs?split=held_out&per_prompt=16"
    config.data.max_prompt_tokens = 192
    config.data.max_completion_tokens = 192
    config.data.bad = "skip"  # longer ones
    config.optimizer.learning_rate = 5e-6
    config.optimizer.warmup_steps = 10
    config.model.path = defaults.one_of(words, defaults.SIZES, "smollm2-135m-instruct")
    if "tiny" in words:
        defaults.untrained(config)
        config.data.source = "arithmetic_pairs?split=train&operations=+&template={question}="
        config.data.held_out_pairs = "arithmetic_pairs?split=held_out&operations=+&template={question}="
        config.data.bad = "error"
        config.optimizer.learning_rate = 3e-4
        config.preference.pairs_per_step = 16
        config.warm_start.steps = 150
    if "runlocal" in words:
        config.train.steps = 2
        config.preference.pairs_per_step = 2
        config.evaluation.max_pairs = 8
        config.evaluation.max_questions = 8
    return config


def get_config(argument=None):
    words = defaults.arguments(argument, {**WORDS, **{name: METHODS[name].title for name in PREFERENCE}})
    method = defaults.one_of(words, PREFERENCE, "dpo")
    return recipe(f"{method}_smollm", method, words)
