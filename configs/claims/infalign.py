"""Rewards for best- and worst-of-4 (InfAlign, arXiv 2412.19792), learned by a table policy to the same KL.

  python -m experiments.compare --config=configs/claims/infalign.py

Exact tilts of such problems to a KL of 0.5 have these win rates (standard, best-of-4, worst-of-4): calibrated 0.774,
0.800, 0.886; exp 0.712, 0.872, 0.676; neg_exp 0.736, 0.686, 0.948.
"""

from configs import defaults

STUDY = "experiments.studies.inference_aware"


def get_config():
    claim = defaults.claim(
        "infalign",
        "At equal KL the calibrated reward wins more often than the raw one, its exponential more often after "
        "best-of-4, and the negative one more often after worst-of-4.",
    )
    for setting in ("raw", "standardised", "identity", "exp", "neg_exp"):
        claim.arms[setting] = defaults.study(STUDY, setting)
    expect = defaults.expectation
    claim.expectations.calibration = expect("standard", "identity", "higher", "raw", by=0.08)
    claim.expectations.best = expect("best", "exp", "higher", "identity", by=0.04)
    claim.expectations.worst = expect("worst", "neg_exp", "higher", "identity", by=0.04)
    claim.expectations.trade_off = expect("standard", "exp", "lower", "identity")
    claim.expectations.kl_not_above = expect("kl", "exp", "lower", "raw", by=-0.02)
    claim.expectations.kl_not_below = expect("kl", "exp", "higher", "raw", by=-0.02)
    return claim
