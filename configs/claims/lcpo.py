"""LCPO (arXiv 2509.24159) on linear preferences: it finds how often annotators err, and the true preferences behind.

  python -m experiments.compare --config=configs/claims/lcpo.py --record=docs/claims/lcpo.json

What is asked: with annotators right at 0.95, 0.75 and 0.55 the KL to the true preferences falls to a third of plain
DPO's, accuracy rises by a point and reliabilities are within 0.06 (0.123 nearer than the start, 0.9, which is 0.183
off); with one annotator at 0.8 the reliability is within 0.05 (0.05 nearer than the start), and label smoothing is not
as good; over IPO and SimPO the KL falls too. With one annotator at 0.6 the KL still falls, but the start is too far off
to be corrected. Logarithms of the KL, so that a difference is a ratio.
"""

import math

from configs import defaults
from experiments.studies.lcpo import SETTINGS


def get_config():
    claim = defaults.claim("lcpo", __doc__.splitlines()[0], seeds=(0, 1, 2, 3, 4))
    for setting in SETTINGS:
        claim.arms[setting.replace(", ", "_").replace(" ", "_")] = defaults.study("experiments.studies.lcpo", setting)
    expect = defaults.expectation
    third = math.log(3)
    claim.expectations.kl = expect("log_kl", "dpo_lcpo_three", "lower", "dpo_three", by=third)
    claim.expectations.accuracy = expect("accuracy", "dpo_lcpo_three", "higher", "dpo_three", by=0.01)
    claim.expectations.reliability = expect("reliability_error", "dpo_lcpo_three", "lower", "dpo_three", by=0.123)
    claim.expectations.smoothing = expect("log_kl", "dpo_lcpo_three", "lower", "smoothed_three", by=third)
    claim.expectations.ipo = expect("log_kl", "ipo_lcpo_three", "lower", "ipo_three")
    claim.expectations.simpo = expect("log_kl", "simpo_lcpo_three", "lower", "simpo_three")
    claim.expectations.one_reliability = expect("reliability_error", "dpo_lcpo_one", "lower", "dpo_one", by=0.05)
    claim.expectations.one_smoothing = expect("log_kl", "dpo_lcpo_one", "lower", "smoothed_one", by=third)
    claim.expectations.bad = expect("log_kl", "dpo_lcpo_bad", "lower", "dpo_bad")
    return claim
