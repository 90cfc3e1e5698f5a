"""Negatives from the batch's pairs help ArcFace where identities are few, and need a filter (arXiv 2203.11593).

  python -m experiments.compare --config=configs/claims/unpg.py

The paper, K-FACE (few identities): true accept rate at 1e-4 of 0.29 with ArcFace and 50.43 with UNPG; MS1MV2 (85,000
identities): 94.89 and 95.04 on IJB-B. Here 30 synthetic identities.
"""

from configs import defaults

STUDY = "experiments.studies.unpg"


def get_config():
    claim = defaults.claim(
        "unpg",
        "UNPG with whisker 1 verifies unseen identities better than ArcFace, and better than without its filter.",
    )
    claim.arms.arcface = defaults.study(STUDY, "arcface")
    claim.arms.unpg = defaults.study(STUDY, "whisker 1.0")
    claim.arms.wide = defaults.study(STUDY, "whisker 1.5")
    claim.arms.no_filter = defaults.study(STUDY, "no filter")
    claim.expectations.negatives = defaults.expectation("tar", "unpg", "higher", "arcface", by=0.012)
    claim.expectations.filter = defaults.expectation("tar", "unpg", "higher", "no_filter", by=0.02)
    claim.expectations.recall = defaults.expectation("recall", "unpg", "higher", "arcface")
    return claim
