"""CAFA against other ways of adapting a classifier at test time (arXiv 2206.00205), on drawn digits.

  python -m experiments.compare --config=configs/claims/cafa.py

Every arm adapts scales and shifts of the normalisations of the same source classifier on the same stream: 84 batches of
64 pictures of each of three corruptions. log_distance_ratio is the mean of log(inter / intra) at the end of each.
"""

from configs import defaults


def get_config():
    claim = defaults.claim(
        "cafa", "Class-aware alignment is right more often than aligning all features together, and parts the classes."
    )
    for setting in ("batch_statistics", "global", "intra", "cafa", "cafa_tied", "entropy"):
        claim.arms[setting] = defaults.study("experiments.studies.cafa", setting)
    higher = {
        "over_batch_statistics": ("accuracy", "batch_statistics", 0.015),
        "over_global": ("accuracy", "global", 0.008),
        "over_intra": ("accuracy", "intra", 0.0),
        "apart": ("log_distance_ratio", "global", 0.0),
        "over_entropy": ("accuracy", "entropy", 0.0),
    }
    for name, (metric, against, by) in higher.items():
        claim.expectations[name] = defaults.expectation(metric, "cafa", "higher", against, by=by)
    return claim
