"""Test-time matching against matching once (arXiv 2510.07632), where order matters little.

python -m experiments.compare --config=configs/claims/ttm.py
"""

from configs import defaults


def get_config():
    claim = defaults.claim(
        "ttm",
        "Learning from one's own matchings turns GroupMatch into GroupScore; falling thresholds go beyond it.",
        seeds=(0, 1, 2, 3),
    )
    for setting in ("raw", "simple", "decay", "constant", "rising"):
        claim.arms[setting] = defaults.study("experiments.studies.ttm", setting)
    expect = defaults.expectation
    claim.expectations.gap_closes = expect("match_minus_score", "simple", "lower", "raw", by=0.25)
    claim.expectations.simple_over_raw = expect("group_score", "simple", "higher", "raw", by=0.25)
    claim.expectations.decay_beats_simple = expect("group_match", "decay", "higher", "simple")
    claim.expectations.decay_over_simple = expect("group_match", "decay", "higher", "simple", by=0.06)
    claim.expectations.decay_score_over_simple = expect("group_score", "decay", "higher", "simple", by=0.06)
    claim.expectations.rising_gains_little = expect("group_match", "rising", "lower", "decay", by=0.05)
    return claim
