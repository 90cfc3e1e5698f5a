"""DPO, robust DPO and IPO on a table policy whose optimum is known (arXiv 2305.18290, 2403.00409, 2310.12036).

  python -m experiments.compare --config=configs/claims/preference.py

log_kl by 0.53 is a KL that is 1.7 times smaller; log_margin by 0.69 a margin that has doubled.
"""

from configs import defaults

STUDY = "experiments.studies.preference_tables"
ARMS = {
    "start": "start",
    "dpo": "dpo, clean, 600",
    "dpo_flipped": "dpo, flipped, 600",
    "robust_flipped": "robust_dpo, flipped, 600",
    "cdpo_flipped": "cdpo, flipped, 600",
    "dpo_300": "dpo, certain, 300",
    "dpo_1500": "dpo, certain, 1500",
    "ipo_300": "ipo, certain, 300",
    "ipo_1500": "ipo, certain, 1500",
}


def get_config():
    claim = defaults.claim(
        "preference",
        "DPO finds the optimum of Bradley-Terry data; under flipped labels robust DPO ends nearer to it; under certain "
        "labels DPO's margins go on growing and IPO's stand.",
    )
    for name, setting in ARMS.items():
        claim.arms[name] = defaults.study(STUDY, setting)
    expect = defaults.expectation
    claim.expectations.optimum = expect("log_kl", "dpo", "lower", "start", by=2.0)
    claim.expectations.robust = expect("log_kl", "robust_flipped", "lower", "dpo_flipped", by=0.53)
    claim.expectations.conservative = expect("log_kl", "cdpo_flipped", "higher", "dpo_flipped")
    claim.expectations.grows = expect("log_margin", "dpo_1500", "higher", "dpo_300", by=0.69)
    claim.expectations.stands = expect("log_margin", "ipo_1500", "lower", "ipo_300", by=-0.01)
    claim.expectations.does_not_fall = expect("log_margin", "ipo_1500", "higher", "ipo_300", by=-0.01)
    return claim
