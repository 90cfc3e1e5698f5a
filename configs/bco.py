"""BCO (arXiv 2404.04656): alignment from thumbs up and down by a binary classifier, on human judgements of harm.

  python -m experiments.run --config=configs/bco.py               the shift as a moving average (the paper)
  python -m experiments.run --config=configs/bco.py:trl           as TRL's trainer had it
  python -m experiments.run --config=configs/bco.py:bce           without a shift: the plain cross-entropy
  python -m experiments.run --config=configs/bco.py:udm           and the prompts of both classes matched
  python -m experiments.run --config=configs/bco.py:pairs         pairs as they are, chosen against rejected
  python -m experiments.run --config=configs/bco.py:tiny          0.8 M parameters from nothing, in a minute
  python -m experiments.run --config=configs/bco.py:runlocal      two small steps of the real thing

Every pair of the data (see configs/dpo_smollm.py) makes a desirable and an undesirable row. Your own rows with labels,
and any number of each: --config.data.source=FILE.jsonl with prompt, completion and label.

Against the paper: the same loss; beta = 0.1 is TRL's. TRL has learning rate 5e-7 with a warm-up of a tenth for models
of billions of parameters; here both are those of configs/dpo_smollm.py. The decay of the moving average is not printed
(here 0.9). The later version of the paper has no matching of prompts, but a weight for the undesirable class:
--config.loss.undesirable_weight. As both rows of a pair have one prompt, matching finds ratios near 1 on this data.
"""

from configs import defaults, dpo_smollm

WORDS = {
    "trl": "the shift is the mean of all rewards seen, the loss a mean over rows",
    "bce": "no shift",
    "pairs": "both completions of a pair in one row",
    "udm": "undesirable rows weigh by the density ratio of their prompts",
}


def get_config(argument=None):
    words = defaults.arguments(argument, {**dpo_smollm.WORDS, **WORDS})
    kind = defaults.one_of(words, ("trl", "bce"), "bco")
    method = "bco_pair" if "pairs" in words else "bco"
    config = dpo_smollm.recipe(method if kind == "bco" else f"{method}_{kind}", method, words)
    config.preference.shift.enabled = kind != "bce"
    if kind == "trl":
        config.preference.shift.mode = "cumulative"
        if method == "bco":
            config.loss.reduction = "mean"
    config.preference.density_ratio.enabled = "udm" in words
    return config
