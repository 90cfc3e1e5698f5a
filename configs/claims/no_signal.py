"""Reference answers where GRPO has next to no signal, on a language model of 0.8 M parameters: GRAO and DYPO.

  python -m experiments.compare --config=configs/claims/no_signal.py

As configs/claims/language_model.py (tasks, steps, completions, what is equal and what is not), from a start after 60
supervised steps, which answers about 4 % of the held-out sums.
"""

from configs import defaults
from configs.claims.language_model import METRIC, STEPS, first_imitation, still, trained
from configs.claims.policy_gradients import supervised_start


def get_config():
    claim = defaults.claim(
        "no_signal",
        "Where nearly all completions are wrong, GRAO and DYPO learn from the reference answers what GRPO does not, "
        "and more than imitation alone.",
    )
    claim.starts.weak = supervised_start(60)
    claim.arms.start = still(start="weak")
    claim.arms.sft = still(STEPS, start="weak")
    claim.arms.sft_then_grpo = first_imitation(start="weak")
    claim.arms.grpo = trained("configs/grpo_qwen.py:tiny", 8, start="weak")
    claim.arms.grao = trained("configs/grao.py:tiny", 8, start="weak")
    claim.arms.dypo = trained("configs/dypo.py:tiny", 8, start="weak")
    for arm in ("grao", "dypo"):
        for against, by in (("grpo", 0.1), ("sft", 0.0), ("sft_then_grpo", 0.0)):
            claim.expectations[f"{arm}_over_{against}"] = defaults.expectation(METRIC, arm, "higher", against, by=by)
    return claim
