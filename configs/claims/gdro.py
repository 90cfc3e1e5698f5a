"""Prompt-GDRO and Rollout-GDRO against GRPO (arXiv 2601.19280), on a table policy with prompts of four difficulties.

  python -m experiments.compare --config=configs/claims/gdro.py

Expected: the hardest tier is solved more often by 0.05, all prompts not less by more than 0.005, completions are 4 in
the mean at every step, and dealing them out takes 15 % of the variance proxy away. With the surrogate loss nothing is
expected: standardised advantages add up to 0.
"""

from configs import defaults

STUDY = "experiments.studies.difficulty_weighting"
ARMS = {
    "grpo": "grpo",
    "weights_2": "step 2",
    "weights_4": "step 4",
    "surrogate": "surrogate, step 2",
    "square_root": "square root",
    "arms": "arms",
}


def get_config():
    claim = defaults.claim(
        "gdro",
        "Weights by class and completions dealt out by class both lift the hardest prompts and do not cost the others; "
        "the adversary needs a signal that is not 0 on-policy.",
        seeds=(0, 1, 2, 3, 4),
    )
    for name, setting in ARMS.items():
        claim.arms[name] = defaults.study(STUDY, setting)
    expect, add = defaults.expectation, claim.expectations
    for arm in ("weights_2", "weights_4", "square_root", "arms"):
        add[f"hardest_{arm}"] = expect("hardest", arm, "higher", "grpo", by=0.05)
        add[f"all_{arm}"] = expect("all", arm, "higher", "grpo", by=-0.005)
    for arm in ("square_root", "arms"):
        add[f"variance_{arm}"] = expect("variance", arm, "lower", "grpo", by=0.15)
        add[f"budget_{arm}"] = expect("budget_error", arm, "lower", "grpo", by=-1e-9)
    add.surrogate = expect("hardest", "surrogate", "higher", "grpo")
    return claim
