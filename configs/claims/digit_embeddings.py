"""The losses of the contrastive family on scanned digits, with one encoder (arXiv ids: docs/methods/contrastive.md).

  python -m experiments.compare --config=configs/claims/digit_embeddings.py

Needs scikit-learn's digits (pip install --no-deps scikit-learn==1.9.1). map@r and recall are of digits retrieved by
class among 897 pictures that were never learnt from; views is how often a view finds the other view of its picture.
The papers: on ImageNet SupCon reaches 78.7 % top-1, cross-entropy 77.1 %; margins make classes tighter than softmax;
alignment and uniformity learn together, and neither alone. Sizes of differences expected here are about half of those
seen on 300 pictures that are not among the tested ones.
"""

from configs import defaults

STUDY = "experiments.studies.digit_embeddings"
ARMS = {
    "pixels": "pixels",
    "untrained": "untrained",
    "softmax": "softmax",
    "normalised_softmax": "normalised softmax",
    "cosface": "cosface",
    "arcface": "arcface",
    "supcon": "supcon",
    "triplet": "triplet",
    "nt_xent": "nt_xent",
    "info_nce": "info_nce",
    "siglip": "siglip",
    "alignment_uniformity": "alignment and uniformity",
    "alignment_alone": "alignment alone",
}


def get_config():
    claim = defaults.claim(
        "digit_embeddings",
        "With labels, margins, SupCon and triplets gather held-out digits of a class better than softmax; without, two "
        "views are enough to gather them better than an untrained encoder or pixels.",
        seeds=(0, 1, 2, 3, 4),
    )
    for name, setting in ARMS.items():
        claim.arms[name] = defaults.study(STUDY, setting)
    expect, expectations = defaults.expectation, claim.expectations
    expectations.supcon = expect("map@r", "supcon", "higher", "softmax", by=0.05)
    expectations.triplet = expect("map@r", "triplet", "higher", "softmax", by=0.03)
    expectations.cosface = expect("map@r", "cosface", "higher", "softmax", by=0.03)
    expectations.arcface = expect("map@r", "arcface", "higher", "softmax", by=0.05)
    expectations.margin_of_cosine = expect("map@r", "cosface", "higher", "normalised_softmax", by=0.1)
    expectations.margin_of_angle = expect("map@r", "arcface", "higher", "normalised_softmax", by=0.1)
    expectations.nt_xent = expect("map@r", "nt_xent", "higher", "untrained", by=0.15)
    expectations.info_nce = expect("map@r", "info_nce", "higher", "untrained", by=0.15)
    expectations.siglip = expect("map@r", "siglip", "higher", "untrained", by=0.1)
    expectations.beyond_pixels = expect("map@r", "nt_xent", "higher", "pixels", by=0.05)
    expectations.views_nt_xent = expect("views", "nt_xent", "higher", "untrained", by=0.1)
    expectations.views_info_nce = expect("views", "info_nce", "higher", "untrained", by=0.1)
    expectations.views_siglip = expect("views", "siglip", "higher", "untrained", by=0.1)
    expectations.recall_with_labels = expect("recall", "supcon", "higher", "untrained", by=0.02)
    expectations.recall_without = expect("recall", "nt_xent", "higher", "untrained", by=0.01)
    expectations.both_needed = expect("map@r", "alignment_uniformity", "higher", "alignment_alone", by=0.15)
    expectations.direct = expect("map@r", "alignment_uniformity", "higher", "nt_xent", by=-0.02)
    return claim
