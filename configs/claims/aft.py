"""AFT's constraints against none, and against fine-tuning on right chains (arXiv 2309.02144), on made chains.

python -m experiments.compare --config=configs/claims/aft.py
"""

from configs import defaults

STUDY = "experiments.studies.aft"
ARMS = {
    "start": "start",
    "vft": "vft",
    "rft": "rft",
    "none": "none",
    "detached": "detached",
    "boundary": "boundary",
    "rrhf": "rrhf",
    "rrhf_detached": "rrhf detached",
}


def get_config():
    claim = defaults.claim(
        "aft",
        "Every contrast makes right chains likelier than wrong ones; without a constraint right chains lose "
        "probability and answers get worse, with one they do not.",
        seeds=(0, 1, 2, 3, 4),
    )
    for name, setting in ARMS.items():
        claim.arms[name] = defaults.study(STUDY, setting)
    add, expect = claim.expectations, defaults.expectation
    add.right_kept = expect("score_better", "detached", "higher", "none", by=0.1)
    add.answers_kept = expect("accuracy", "detached", "higher", "none", by=0.02)
    add.no_worse_than_vft = expect("accuracy", "detached", "higher", "vft", by=-0.02)
    add.wrong_pushed_down = expect("score_worse", "none", "lower", "detached")
    add.wrong_at_boundary = expect("score_worse", "detached", "lower", "boundary", by=-0.05)
    for arm in ("none", "detached", "boundary"):
        add[f"assessment_{arm}"] = expect("assessment_accuracy", arm, "higher", "start", by=0.1)
    add.rrhf_right_kept = expect("score_better", "rrhf_detached", "higher", "rrhf")
    add.rrhf_answers_kept = expect("accuracy", "rrhf_detached", "higher", "rrhf")
    return claim
