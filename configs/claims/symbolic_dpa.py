"""What the verdict on "neither is valid" does to the chosen completion (arXiv 2412.17696), on a table policy.

  python -m experiments.compare --config=configs/claims/symbolic_dpa.py

Where that row loses or counts on both sides the chosen completion is to end likelier than with CPO by 0.4 nats, where
it wins less likely by 0.5.
"""

from configs import defaults

STUDY = "experiments.studies.symbolic_losses"
# By the verdict on "neither is valid"; CPO, ORPO and two more exclude it.
LOSES_OR_BOTH = ("ce", "sce", "l3", "ceunl", "l20", "l5", "qfunl", "bcpo")
WINS = ("funl", "l14", "cfunl", "uncpo")
EXCLUDED = ("cunl", "cpo", "orpo", "ccpo")


def get_config():
    claim = defaults.claim(
        "symbolic_dpa",
        "Whether the chosen completion is pushed up at all hangs on the row in which neither is valid; a loss that was "
        "made by logic alone satisfies its formula.",
    )
    for name in (*LOSES_OR_BOTH, *EXCLUDED, *WINS):
        claim.arms[name] = defaults.study(STUDY, name)
    claim.arms.new = defaults.study(STUDY, "orpo with reference")
    expect = defaults.expectation
    for name in LOSES_OR_BOTH:
        claim.expectations[name] = expect("chosen", name, "higher", "cpo", by=0.4)
    for name in WINS:
        claim.expectations[name] = expect("chosen", name, "lower", "cpo", by=0.5)
    claim.expectations.orpo = expect("chosen", "orpo", "higher", "cpo")
    claim.expectations.new = expect("satisfied", "new", "higher", "cpo", by=-0.05)
    return claim
