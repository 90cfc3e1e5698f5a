"""Pools of rows: how much small ones cost, and that two passes give it back (M2-Encoder, arXiv 2401.15896).

  python -m experiments.compare --config=configs/claims/m2_encoder.py

The paper: training in groups of devices is 60 % faster, and pooling micro-batches keeps the quality. Here a batch of
256 rows is cut into pools, as groups of devices would cut it, and into 4 micro-batches of 64 rows: as pools of their
own (the pools of 64), or pooled in two passes.
"""

from configs import defaults

STUDY = "experiments.studies.contrastive_pairs"


def get_config():
    claim = defaults.claim(
        "m2_encoder",
        "The larger the pool the more unseen pairs are found, at equal batches; four micro-batches pooled in two "
        "passes do as well as the whole batch in one go, and better than with a pool each.",
        seeds=(0, 1, 2, 3, 4),
    )
    for pool in (4, 8, 32, 64):
        claim.arms[f"pool_{pool}"] = defaults.study(STUDY, f"pools of {pool}")
    claim.arms.pool_256 = defaults.study(STUDY, "clip, 256 rows")
    claim.arms.two_passes = defaults.study(STUDY, "pooled micro-batches")
    expect = defaults.expectation
    for small, large in ((4, 8), (8, 32), (32, 64), (64, 256)):
        claim.expectations[f"from_{small}_to_{large}"] = expect("recall", f"pool_{large}", "higher", f"pool_{small}")
    claim.expectations.size = expect("recall", "pool_256", "higher", "pool_32", by=0.05)
    claim.expectations.same_as_one_go = expect("recall", "two_passes", "higher", "pool_256", by=-0.01)
    claim.expectations.not_better_than_one_go = expect("recall", "two_passes", "lower", "pool_256", by=-0.01)
    claim.expectations.better_than_own_pools = expect("recall", "two_passes", "higher", "pool_64", by=0.02)
    return claim
