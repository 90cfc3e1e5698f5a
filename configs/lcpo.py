"""LCPO, later RE-PO (arXiv 2509.24159): any preference loss under labels that may be wrong, on judgements of harm.

  python -m experiments.run --config=configs/lcpo.py              over DPO
  python -m experiments.run --config=configs/lcpo.py:simpo        over another row of `python -m experiments.methods`
  python -m experiments.run --config=configs/lcpo.py:ipo,weighted the other policy step: w L + (1 - w) L reversed
  python -m experiments.run --config=configs/lcpo.py:tiny         0.8 M parameters from nothing, in a minute
  python -m experiments.run --config=configs/lcpo.py:runlocal     two small steps of the real thing

The pairs are those of each annotator's own scores (harm_pairs?by_annotator=true): two files of the data were scored by
three people each, the others by one. Your own pairs: a field `annotator` names who judged (another field:
--config.data.annotator_field); without it all labels are of one annotator. At the end the run prints how reliable it
found each.

Against the paper: the same start 0.9 and rate 0.1. The paper does not print the settings of its base losses; here they
are those of their rows, and the optimizer's those of configs/dpo_smollm.py.
"""

from configs import defaults, dpo_smollm
from jaxalign.losses.preference_table import PREFERENCE_LOSSES
from jaxalign.methods import METHODS

BASES = tuple(
    name
    for name in dpo_smollm.PREFERENCE
    if METHODS[name].loss["loss"] in PREFERENCE_LOSSES and not PREFERENCE_LOSSES[METHODS[name].loss["loss"]].by_rank
)
WORDS = {"weighted": "the weighted loss instead of the cross-entropy of the implied preference"}


def get_config(argument=None):
    known = {**dpo_smollm.WORDS, **WORDS, **{name: METHODS[name].title for name in BASES}}
    words = defaults.arguments(argument, known)
    base = defaults.one_of(words, BASES, "dpo")
    config = dpo_smollm.recipe("lcpo" if base == "dpo" else f"lcpo_{base}", base, words)
    if "tiny" not in words:
        config.data.source += "&by_annotator=true"
        config.data.held_out_pairs += "&by_annotator=true"
    config.preference.confidence.enabled = True
    if "weighted" in words:
        config.preference.confidence.mode = "weighted-loss"
    return config
