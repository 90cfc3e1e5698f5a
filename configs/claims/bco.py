"""BCO (arXiv 2404.04656) on a log-linear policy: the shift tightens the bound, matched prompts find the reward.

  python -m experiments.compare --config=configs/claims/bco.py --record=docs/claims/bco.json

What is asked: with a thumb up likelier by 2 logits the shift lowers the bound's error term by 40 % and raises the gain
of reward by 5 %; where one group of prompts is liked 4 logits more, density ratios raise the cosine with the reward's
direction by 0.03; KTO's anchor ends below 0.05 nats. Logarithms, so that a difference is a ratio.
"""

import math

from configs import defaults
from experiments.studies.bco import SETTINGS


def get_config():
    claim = defaults.claim("bco", __doc__.splitlines()[0], seeds=(0, 1, 2, 3, 4))
    for setting in SETTINGS:
        claim.arms[setting.replace(", ", "_")] = defaults.study("experiments.studies.bco", setting)
    expect = defaults.expectation
    claim.expectations.error = expect("log_error_term", "bco_shift", "lower", "bce_shift", by=-math.log(0.6))
    claim.expectations.gain = expect("log_gain", "bco_shift", "higher", "bce_shift", by=math.log(1.05))
    claim.expectations.matching = expect("cosine", "bco_udm_mismatch", "higher", "bco_mismatch", by=0.03)
    # z0 is never below 0, and exactly 0 in the arm without one
    claim.expectations.anchor = expect("anchor", "kto_shift", "lower", "bce_shift", by=-0.05)
    return claim
