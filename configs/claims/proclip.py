"""ProCLIP's two stages against direct contrastive tuning (arXiv 2510.18795), in a world of 200 concepts.

  python -m experiments.compare --config=configs/claims/proclip.py

zero_shot is the accuracy on 160 concepts that fine-tuning never shows, retrieval the recall at 1 on those it shows.
"""

from configs import defaults


def get_config():
    claim = defaults.claim(
        "proclip", "Distilling the old text encoder first, and holding on to the image encoder, keeps what was known."
    )
    for setting in ("original", "direct", "stage1", "stages", "full", "strong", "direct_strong"):
        claim.arms[setting] = defaults.study("experiments.studies.proclip", setting)
    higher = {
        "full_keeps_more": ("zero_shot", "full", "direct", 0.05),
        "full_finds_more": ("retrieval", "full", "direct", 0.02),
        "stage1_helps": ("zero_shot", "stages", "direct", 0.02),
        "regulariser_helps": ("zero_shot", "full", "stages", 0.02),
        "regulariser_costs": ("retrieval", "stages", "full", 0.0),
        "more_of_it_costs_more": ("retrieval", "full", "strong", 0.0),
    }
    for name, (metric, arm, against, by) in higher.items():
        claim.expectations[name] = defaults.expectation(metric, arm, "higher", against, by=by)
    return claim
