"""Batch size and the start of SigLIP's bias, on synthetic pairs (CLIP arXiv 2103.00020, SigLIP arXiv 2303.15343).

  python -m experiments.compare --config=configs/claims/contrastive.py

The paper: the sigmoid loss is better than softmax below batches of about 16,000, and both saturate at about 32,000.
Here the small batch has 32 rows and the large one 256.
"""

from configs import defaults

STUDY = "experiments.studies.contrastive_pairs"
ARMS = {
    "clip_small": "clip, 32 rows",
    "clip_large": "clip, 256 rows",
    "siglip_small": "siglip, 32 rows",
    "siglip_large": "siglip, 256 rows",
    "siglip_bias_0": "siglip, 256 rows, bias 0",
}


def get_config():
    claim = defaults.claim(
        "contrastive",
        "Larger batches find more unseen pairs; SigLIP is ahead of CLIP in small batches and not far from it in large "
        "ones, and collapses in large batches if its bias begins at 0.",
        seeds=(0, 1, 2, 3, 4),
    )
    for name, setting in ARMS.items():
        claim.arms[name] = defaults.study(STUDY, setting)
    expect = defaults.expectation
    claim.expectations.batch = expect("recall", "clip_large", "higher", "clip_small", by=0.15)
    claim.expectations.small = expect("recall", "siglip_small", "higher", "clip_small", by=0.02)
    claim.expectations.large = expect("recall", "siglip_large", "higher", "clip_large", by=-0.03)
    claim.expectations.bias = expect("recall", "siglip_large", "higher", "siglip_bias_0", by=0.5)
    return claim
