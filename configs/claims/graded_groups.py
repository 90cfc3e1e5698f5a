"""MC-GRPO with a graded reward, on a language model of 0.8 M parameters: groups of 2 out of 3.

  python -m experiments.compare --config=configs/claims/graded_groups.py

As configs/claims/language_model.py (start, task, steps, completions), but what is learned from is the share of right
digits (`matching_digits`), of which a group has a median deviation above 0; the right answer is what is evaluated.
`control_2` is plain GRPO that also samples 3 and leaves out the smallest advantage, `mc_grpo_none` does not divide.
"""

from configs import defaults
from configs.claims.language_model import METRIC, still, trained
from configs.claims.policy_gradients import START, supervised_start

GRADED = ("reward.names=('last_integer', 'matching_digits')", "reward.weights=(0.0, 1.0)")
ARMS = {
    "grpo": ("configs/grpo_qwen.py:tiny", 8),
    "grpo_2": ("configs/grpo_qwen.py:tiny", 2),
    "control_2": ("configs/grpo_qwen.py:tiny", 3, "rl.leave_out=1"),
    "mc_grpo": ("configs/mc_grpo.py:tiny", 3),
    "mc_grpo_none": ("configs/mc_grpo.py:tiny", 3, "rl.advantages.scale=none"),
}


def get_config():
    claim = defaults.claim(
        "graded_groups",
        "With a graded reward and 2 completions trained on, medians of 3 end higher than means of 2 and than means of "
        "3 of which one is left out, and near to groups of 8.",
    )
    claim.starts.half = supervised_start(START)
    claim.arms.start = still()
    for name, (spec, size, *own) in ARMS.items():
        claim.arms[name] = trained(spec, size, *GRADED, *own)
    for arm in ("mc_grpo", "mc_grpo_none"):
        for against, by in (("grpo_2", 0.01), ("control_2", 0.0), ("grpo", -0.03)):
            claim.expectations[f"{arm}_over_{against}"] = defaults.expectation(METRIC, arm, "higher", against, by=by)
    return claim
