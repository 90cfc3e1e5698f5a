"""Preference losses written as formulas of propositional logic (arXiv 2412.17696), compiled and trained.

  python -m experiments.run --config=configs/symbolic_dpa.py                DPO's formula
  python -m experiments.run --config=configs/symbolic_dpa.py --config.loss.formula="rejected -> chosen"
  python -m experiments.run --config=configs/symbolic_dpa.py:tiny           0.8 M parameters from nothing, in a minute
  python -m experiments.run --config=configs/symbolic_dpa.py:runlocal       two small steps of the real thing

`python -m experiments.symbolic --name=orpo` prints the formula of a named loss, docs/symbolic.md explains the language.
A formula whose ratio holds a 1 - p wants --config.loss.log_prob=sequence-mean (the probability of a whole completion is
so small that 1 - p is 1). Data and model are those of configs/dpo_smollm.py.
"""

from configs import defaults, dpo_smollm


def get_config(argument=None):
    words = defaults.arguments(argument, dpo_smollm.WORDS)
    return dpo_smollm.recipe("symbolic_dpa", "symbolic_dpa", words)
