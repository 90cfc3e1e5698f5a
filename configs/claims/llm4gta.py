"""Keeping a gap between graph and text against closing it (after LLM4GTA, arXiv 2510.12087), on made graphs.

  python -m experiments.compare --config=configs/claims/llm4gta.py

zero_shot is the accuracy for meanings, through class texts, on a graph that was not aligned; probe is that for
communities, which no text tells, of five labels each.
"""

from configs import defaults


def get_config():
    claim = defaults.claim(
        "llm4gta", "Alignment erases what texts do not tell; a gap that is kept and a classifier save it together."
    )
    for setting in ("none", "clip", "closing", "compensation", "gap", "full"):
        claim.arms[setting] = defaults.study("experiments.studies.llm4gta", setting)
    expect = defaults.expectation
    claim.expectations.collapse = expect("probe", "clip", "lower", "none", by=0.3)
    claim.expectations.saved = expect("probe", "full", "higher", "clip", by=0.15)
    claim.expectations.band_needed = expect("probe", "full", "higher", "compensation", by=0.1)
    claim.expectations.classifier_needed = expect("probe", "full", "higher", "gap", by=0.1)
    claim.expectations.zero_shot_kept = expect("zero_shot", "full", "higher", "clip", by=-0.06)
    claim.expectations.closing_no_better = expect("zero_shot", "closing", "lower", "clip")
    return claim
