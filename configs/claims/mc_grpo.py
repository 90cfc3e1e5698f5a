"""Medians in small groups (arXiv 2601.22582): a table policy with noisy rewards, and how often a sign is wrong.

  python -m experiments.compare --config=configs/claims/mc_grpo.py

Wrong signs against the median of the law: 1/4 with the mean of two and 1/8 with the median of three in theory. The
control "mean, 3 - 1" samples as much as MC-GRPO and leaves out the smallest advantage of the mean.
"""

from configs import defaults

STUDY = "experiments.studies.small_groups"
ARMS = {
    "grpo_2": "grpo, 2",
    "dr_grpo_2": "mean, 2",
    "control_2": "mean, 3 - 1",
    "median_2": "median, 3 - 1",
    "median_mad_2": "median mad, 3 - 1",
    "dr_grpo_4": "mean, 4",
    "control_4": "mean, 5 - 1",
    "median_4": "median, 5 - 1",
    "dr_grpo_8": "mean, 8",
    "median_8": "median, 9 - 1",
}


def get_config():
    claim = defaults.claim(
        "mc_grpo",
        "Training on 2 completions of 3 around their median has fewer wrong signs and ends higher than on 2 around "
        "their mean, near to groups of 8; dividing by the MAD does not help.",
        seeds=tuple(range(24)),
    )
    for name, setting in ARMS.items():
        claim.arms[name] = defaults.study(STUDY, setting)
    expect = defaults.expectation
    claim.expectations.over_mean = expect("reward", "median_2", "higher", "dr_grpo_2", by=0.008)
    claim.expectations.near_8 = expect("reward", "median_2", "higher", "median_8", by=-0.015)
    claim.expectations.over_mad = expect("reward", "median_2", "higher", "median_mad_2")
    claim.expectations.over_control = expect("reward", "median_2", "higher", "control_2")
    claim.expectations.flips_2 = expect("flips", "median_2", "lower", "dr_grpo_2", by=0.115)
    claim.expectations.flips_4 = expect("flips", "median_4", "lower", "dr_grpo_4", by=0.05)
    claim.expectations.flips_heavy_control = expect("flips_heavy", "median_4", "lower", "control_4", by=0.02)
    claim.expectations.flips_skewed = expect("flips_skewed", "median_4", "lower", "dr_grpo_4")
    return claim
