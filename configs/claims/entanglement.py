"""Gradient entanglement of pairs that share a suffix (arXiv 2410.13828), and DPO with normalised gradients.

  python -m experiments.compare --config=configs/claims/entanglement.py

Every arm starts from a small model trained on the same kind of completions; arms differ in how many tokens follow the
one that tells chosen from rejected, and in how DPO's gradient is made of its two halves.
"""

from configs import defaults
from experiments.studies.entanglement import LENGTHS, SETTINGS


def get_config():
    claim = defaults.claim(
        "entanglement",
        "The longer what chosen and rejected share, the closer their gradients; normalised gradients keep DPO from "
        "lowering the chosen log-prob as much.",
    )
    for setting in SETTINGS:
        claim.arms[setting] = defaults.study("experiments.studies.entanglement", setting)
    expect = defaults.expectation
    claim.expectations.short_closer = expect("cosine", "short", "higher", "none", by=0.5)
    claim.expectations.long_closer = expect("cosine", "long", "higher", "short")
    claim.expectations.longer_rejected_falls = expect("both_down", "longer_rejected", "higher", "long", by=0.08)
    for name in LENGTHS:
        claim.expectations[f"{name}_chosen"] = expect("chosen_change", f"{name}_normalised", "higher", name)
    return claim
