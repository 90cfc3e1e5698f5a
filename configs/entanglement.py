"""Gradient entanglement of preference pairs (arXiv 2410.13828) under DPO, and two remedies.

  python -m experiments.run --config=configs/entanglement.py                 DPO, with reports on entanglement
  python -m experiments.run --config=configs/entanglement.py:normalised      chosen and rejected gradients of equal norm
  python -m experiments.run --config=configs/entanglement.py:gated           only tokens that tell the completions apart
  python -m experiments.run --config=configs/entanglement.py:tiny            0.8 M parameters from nothing, in a minute
  python -m experiments.run --config=configs/entanglement.py:runlocal        two small steps of the real thing

Any other preference run reports too with --config.diagnostics.entanglement=True. Data, model and the other settings are
those of configs/dpo_smollm.py. The paper trains 7 B and 8 B models by LoRA (rank 64, alpha 128, learning rate 5e-6, one
epoch of TL;DR comparisons, beta 0.1) and measures on 512 pairs; --config.adapter.kind=lora trains an adapter here.
"""

from configs import defaults, dpo_smollm

REMEDIES = {
    "normalised": "gradients of chosen and rejected log-probs at equal norms",
    "gated": "only tokens outside a longest common subsequence of the two completions",
}


def get_config(argument=None):
    words = defaults.arguments(argument, {**dpo_smollm.WORDS, **REMEDIES})
    remedy = defaults.one_of(words, REMEDIES, "")
    method = f"dpo_{remedy}" if remedy else "dpo"
    config = dpo_smollm.recipe(f"{method}_entanglement", method, words)
    config.diagnostics.entanglement = True
    config.diagnostics.every = 10
    if remedy == "normalised":
        config.preference.gradient = "normalised"
    if remedy == "gated":
        config.preference.gate = "diff"
    if "runlocal" in words:
        config.diagnostics.pairs = 2
        config.diagnostics.heat_maps = 1
    return config
