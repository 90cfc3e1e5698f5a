"""SPO against GRPO and REINFORCE at equal numbers of completions (arXiv 2509.13232), on prompts that share features.

  python -m experiments.compare --config=configs/claims/spo.py

log_variance by 0.51 is a variance reduced by 40 %.
"""

from configs import defaults

STUDY = "experiments.studies.single_stream"


def get_config():
    claim = defaults.claim(
        "spo",
        "At equal completions SPO solves more than GRPO and REINFORCE; its baseline takes at least 40 % of the "
        "variance away, and tracks better when it forgets by drift.",
        seeds=tuple(range(8)),
    )
    for setting in ("grpo", "reinforce", "uniform", "spo", "constant"):
        claim.arms[setting] = defaults.study(STUDY, setting)
    expect = defaults.expectation
    claim.expectations.over_grpo = expect("success", "spo", "higher", "grpo", by=0.10)
    claim.expectations.over_reinforce = expect("success", "spo", "higher", "reinforce", by=0.06)
    claim.expectations.variance = expect("log_variance", "uniform", "lower", "reinforce", by=0.51)
    claim.expectations.tracker = expect("log_error", "spo", "lower", "constant")
    claim.expectations.sampling = expect("success", "spo", "higher", "uniform", by=-0.005)
    claim.expectations.silent_groups = expect("silent", "spo", "lower", "grpo", by=0.4)
    return claim
