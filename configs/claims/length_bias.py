"""What GRPO and Dr. GRPO do to lengths that no reward depends on (arXiv 2503.20783), on a table policy.

  python -m experiments.compare --config=configs/claims/length_bias.py

The start has 4.86 tokens. GRPO is to end above 8 on wrong and below 2 on right completions, Dr. GRPO within 4.3 to 5.4
on both; DAPO's mean over all tokens and GSPO are shown beside them.
"""

from configs import defaults

STUDY = "experiments.studies.length_bias"
START = 4.86


def get_config():
    claim = defaults.claim(
        "length_bias",
        "Where the reward does not depend on the length, GRPO makes wrong answers long and right ones short, and "
        "Dr. GRPO leaves both as they are.",
        seeds=(0, 1, 2, 3),
    )
    for setting in ("start", "grpo", "dr_grpo", "dapo", "gspo"):
        claim.arms[setting] = defaults.study(STUDY, setting)
    expect = defaults.expectation
    claim.expectations.grpo_wrong = expect("wrong", "grpo", "higher", "start", by=8 - START)
    claim.expectations.grpo_right = expect("right", "grpo", "lower", "start", by=START - 2)
    for kind in ("wrong", "right"):
        claim.expectations[f"not_shorter_{kind}"] = expect(kind, "dr_grpo", "higher", "start", by=4.3 - START)
        claim.expectations[f"not_longer_{kind}"] = expect(kind, "dr_grpo", "lower", "start", by=START - 5.4)
    return claim
