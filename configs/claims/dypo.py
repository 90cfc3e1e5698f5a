"""DYPO against GRPO, and what its parts do (arXiv 2604.08926), on a table policy.

  python -m experiments.compare --config=configs/claims/dypo.py

"half_grpo" is DYPO with a constant alignment loss, "whole_grpo" gives GRPO the weight of both: reported, and the
variation of the gradient's norm with it.
"""

from configs import defaults

STUDY = "experiments.studies.dypo"
ARMS = {
    "grpo": "grpo",
    "dypo": "dypo",
    "one_teacher": "one teacher",
    "half_grpo": "half grpo",
    "whole_grpo": "whole grpo",
}


def get_config():
    claim = defaults.claim(
        "dypo",
        "Routing learns from teachers what GRPO never solves, three teachers beat one, the alignment loss adds to half "
        "of GRPO, and gradients vary less with it.",
        seeds=(0, 1, 2, 3, 4),
    )
    for name, setting in ARMS.items():
        claim.arms[name] = defaults.study(STUDY, setting)
    expect = defaults.expectation
    claim.expectations.hard = expect("hard", "dypo", "higher", "grpo", by=0.58)
    claim.expectations.teachers = expect("hard", "dypo", "higher", "one_teacher", by=0.10)
    claim.expectations.alignment = expect("all", "dypo", "higher", "half_grpo", by=0.02)
    claim.expectations.routed = expect("routed_last", "dypo", "lower", "grpo", by=0.2)
    claim.expectations.whole = expect("all", "dypo", "higher", "whole_grpo")
    claim.expectations.variation = expect("variation", "dypo", "lower", "half_grpo")
    return claim
