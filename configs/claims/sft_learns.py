"""Supervised fine-tuning lowers the loss of a small model: the same run with learning rate 0 does not.

  python -m experiments.compare --config=configs/claims/sft_learns.py

The smallest claim, to copy from: two arms, one expectation, a minute.
"""

from configs import defaults


def get_config():
    claim = defaults.claim("sft_learns", "Supervised fine-tuning lowers the training loss of a small model on sums.")
    claim.arms.trained = defaults.arm("configs/sft_arithmetic.py:tiny")
    claim.arms.untrained = defaults.arm("configs/sft_arithmetic.py:tiny", "optimizer.learning_rate=0.0")
    claim.expectations.lower = defaults.expectation("loss", "trained", "lower", "untrained")
    return claim
