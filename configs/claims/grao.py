"""GRAO against imitation and GRPO beside a reference answer (arXiv 2508.07750), on a table policy.

  python -m experiments.compare --config=configs/claims/grao.py

The reference has 4 of 6 symbols right, which is where imitation ends.
"""

from configs import defaults

STUDY = "experiments.studies.grao"
ARMS = {
    "sft": "sft",
    "grpo": "grpo",
    "grao": "grao",
    "unclamped": "unclamped",
    "literal": "literal",
    "no_imitation": "no imitation",
    "no_alignment": "no alignment",
    "easy_grpo": "easy grpo",
    "easy_grao": "easy grao",
}


def get_config():
    claim = defaults.claim(
        "grao",
        "GRAO learns where every completion loses against the reference answer, gets beyond it, and where GRPO learns "
        "too it is faster; with the paper's sign of the reference's weight it loses some of that again.",
        seeds=(0, 1, 2, 3),
    )
    for name, setting in ARMS.items():
        claim.arms[name] = defaults.study(STUDY, setting)
    expect = defaults.expectation
    claim.expectations.beyond = expect("final", "grao", "higher", "sft", by=0.15)
    claim.expectations.no_signal = expect("final", "grpo", "lower", "sft", by=0.46)
    claim.expectations.faster = expect("at_50", "easy_grao", "higher", "easy_grpo", by=0.3)
    claim.expectations.decay = expect("lost", "unclamped", "higher", "grao", by=0.05)
    claim.expectations.pushed_down = expect("negative", "unclamped", "higher", "grao", by=0.2)
    claim.expectations.literal = expect("final", "literal", "lower", "grao", by=0.15)
    return claim
