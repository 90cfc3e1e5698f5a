"""The variance penalty of Group-InfoNCE finds the rare kind of solution (arXiv 2505.12925).

  python -m experiments.compare --config=configs/claims/group_infonce.py

The paper: NDCG@10 of 70.4 for text to code, and small margins over single and multiple positives. Here three synthetic
kinds of documents. NDCG@10 of all documents is expected to be lower: what the penalty costs.
"""

from configs import defaults

STUDY = "experiments.studies.group_infonce"


def get_config():
    claim = defaults.claim(
        "group_infonce",
        "The penalty makes the similarities of a query to its own documents more equal, and the rare kind is ranked "
        "higher for it; the majority is ranked lower.",
        seeds=(0, 1, 2, 3),
    )
    claim.arms.group = defaults.study(STUDY, "group")
    claim.arms.penalty_tenth = defaults.study(STUDY, "penalty 0.1")
    claim.arms.no_penalty = defaults.study(STUDY, "no penalty")
    claim.arms.multi_positive = defaults.study(STUDY, "multi-positive")
    claim.arms.single_positive = defaults.study(STUDY, "single positive")
    expect, rare = defaults.expectation, "reciprocal_rank/kind2"
    claim.expectations.rare_against_multi = expect(rare, "group", "higher", "multi_positive")
    claim.expectations.rare_against_none = expect(rare, "group", "higher", "no_penalty")
    claim.expectations.rare_falls_at_a_tenth = expect(rare, "group", "higher", "penalty_tenth")
    claim.expectations.rare_rises_from_none = expect(rare, "penalty_tenth", "higher", "no_penalty")
    claim.expectations.variance = expect("variance", "group", "lower", "no_penalty")
    claim.expectations.variance_falls_from_a_tenth = expect("variance", "group", "lower", "penalty_tenth")
    claim.expectations.variance_falls_from_none = expect("variance", "penalty_tenth", "lower", "no_penalty")
    claim.expectations.majority = expect("ndcg@10", "group", "lower", "no_penalty")
    return claim
