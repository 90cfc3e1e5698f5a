"""RACO (arXiv 2602.02495): clipping keeps the correction with the user's weights, on two preferences that disagree.

  python -m experiments.compare --config=configs/claims/raco.py --record=docs/claims/raco.json

What is asked, with weights 0.8 and 0.2: clipping never lowers the cosine of mixture and weighted gradient. At radius
0.8 the weighted loss rises by less than half of what it rises by without clipping, and that of the first objective
stays within 0.05. At radius 0.4 ("small") the second objective's loss falls by 0.03 while the first's rises by less
than 0.05. With the gradients of all pairs the bound of convergence is kept. A `by` below 0 allows so much on the other
side.
"""

from configs import defaults

STUDY = "experiments.studies.raco"
ARMS = {
    "weighted": "weighted, 0.8",
    "cagrad": "cagrad, 0.8",
    "raco": "raco, 0.8",
    "cagrad_small": "cagrad, 0.4",
    "raco_small": "raco, 0.4",
    "midway": "midway, 0.8",
}


def get_config():
    claim = defaults.claim("raco", __doc__.splitlines()[0], seeds=(0, 1, 2, 3, 4))
    for name, setting in ARMS.items():
        claim.arms[name] = defaults.study(STUDY, setting)
    expect = defaults.expectation
    claim.expectations.cosine = expect("violations", "raco", "lower", "weighted", by=-1e-6)
    claim.expectations.cosine_small = expect("violations", "raco_small", "lower", "weighted", by=-1e-6)
    claim.expectations.drift = expect("weighted_loss", "raco", "lower", "midway")
    claim.expectations.first = expect("first_moved", "raco", "lower", "weighted", by=-0.05)
    claim.expectations.second_small = expect("second_loss", "raco_small", "lower", "weighted", by=0.03)
    claim.expectations.first_small = expect("first_loss", "raco_small", "lower", "weighted", by=-0.05)
    claim.expectations.bound = expect("over_bound", "raco", "lower", "weighted", by=-0.5)
    claim.expectations.bound_small = expect("over_bound", "raco_small", "lower", "weighted", by=-0.5)
    return claim
