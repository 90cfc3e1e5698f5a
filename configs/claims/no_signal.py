"""Reference answers where GRPO has next to no signal, on a language model of 0.8 M parameters: GRAO and DYPO.

  python -m experiments.compare --config=configs/claims/no_signal.py

Task, steps and completions are those of configs/claims/language_model.py; the start has made 60 supervised steps and
answers about 4 % of the held-out sums. All but GRPO see right answers. "sft" makes 150 supervised steps on as many
questions as the others have prompts (one row of 128 tokens, about 15 answers, learning rate 1e-3), "sft_then_grpo" 75
of each.
"""

from configs import defaults
from configs.claims.language_model import METRIC, STEPS, still, trained
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
    stages = (f"warm_start.steps={STEPS // 2}", f"train.steps={STEPS // 2}")
    claim.arms.sft_then_grpo = trained("configs/grpo_qwen.py:tiny", 8, *stages, start="weak")
    claim.arms.grpo = trained("configs/grpo_qwen.py:tiny", 8, start="weak")
    claim.arms.grao = trained("configs/grao.py:tiny", 8, start="weak")
    claim.arms.dypo = trained("configs/dypo.py:tiny", 8, start="weak")
    for arm in ("grao", "dypo"):
        for against, by in (("grpo", 0.1), ("sft", 0.0), ("sft_then_grpo", 0.0)):
            claim.expectations[f"{arm}_over_{against}"] = defaults.expectation(METRIC, arm, "higher", against, by=by)
    return claim
