"""Multi-similarity weights retrieve unseen classes better than weights by a pair's own similarity (arXiv 1904.06627).

  python -m experiments.compare --config=configs/claims/multi_similarity.py

The paper: Recall@1 of 65.7 on CUB-200 (512 dimensions), 60.6 for the best before. Here small synthetic classes.
Contrastive pairs and multi-similarity without mining are shown beside it; nothing is expected of them.
"""

from configs import defaults

STUDY = "experiments.studies.multi_similarity"


def get_config():
    claim = defaults.claim(
        "multi_similarity",
        "Multi-similarity retrieves unseen classes better than binomial deviance with the same scales and threshold, "
        "and better than the mean over all triplets.",
        seeds=(0, 1, 2, 3),
    )
    claim.arms.multi_similarity = defaults.study(STUDY, "multi-similarity")
    claim.arms.binomial_deviance = defaults.study(STUDY, "binomial deviance")
    claim.arms.triplet = defaults.study(STUDY, "triplet")
    claim.arms.contrastive = defaults.study(STUDY, "contrastive")
    claim.arms.without_mining = defaults.study(STUDY, "multi-similarity without mining")
    claim.arms.features = defaults.study(STUDY, "features")
    expect = defaults.expectation
    claim.expectations.relative_weights = expect("recall", "multi_similarity", "higher", "binomial_deviance", by=0.05)
    claim.expectations.triplets = expect("recall", "multi_similarity", "higher", "triplet", by=0.01)
    claim.expectations.learned = expect("recall", "multi_similarity", "higher", "features")
    return claim
