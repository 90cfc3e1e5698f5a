"""Methods of the group-relative family on a language model of 0.8 M parameters, at equal numbers of completions.

  python -m experiments.compare --config=configs/claims/language_model.py

All arms of all seeds begin with one model that answers about 45 % of the held-out sums (that of
configs/claims/policy_gradients.py) and make 150 steps of 120 completions with one update each: 15 prompts x 8, 30 x 4,
40 x 3 of which 2 are trained on, 60 x 2 or 120 x 1. Adam with 1e-4; everything else is as in the config of each method.
The learning rate was chosen by GRPO alone with seed 100.

What is not equal: InfAlign's 32 completions of the reference for every question come on top, and its KL to the start
is measured, not held equal. SPO's trials before training, 8 of every question, are left out. GRAO, DYPO and "sft" see
right answers; "sft" makes 150 supervised steps on as many questions as GRPO has prompts (one row of 128 tokens, about
15 answers, learning rate 1e-3). "hard" below means the held-out sums that the start does not answer.
"""

from configs import defaults
from configs.claims.policy_gradients import METRIC, START, STILL, TASK, supervised_start

STEPS, COMPLETIONS = 150, 120
PASS_1, PASS_4 = (f"held-out pass@{k}, 8 samples" for k in (1, 4))
COMMON = (*TASK, "warm_start.steps=0", "warm_start.rows_per_step=1", "evaluation.samples=8")


def groups_of(size: int) -> tuple[str, str]:
    return f"rollout.group_size={size}", f"rollout.prompts_per_step={COMPLETIONS // size}"


def trained(spec: str, group_size: int, *own: str, start: str = "half"):
    """An arm of `STEPS` steps of `COMPLETIONS` completions in groups of that size."""
    common = (*COMMON, "optimizer.learning_rate=1e-4", f"train.steps={STEPS}", *groups_of(group_size))
    return defaults.arm(spec, *common, *own, start=start)


def still(steps: int = 0, start: str = "half"):
    """The start as it is, or after so many supervised steps more."""
    return defaults.arm("configs/grpo_qwen.py:tiny", *COMMON, *STILL, f"warm_start.steps={steps}", start=start)


ARMS = {
    "grpo": trained("configs/grpo_qwen.py:tiny", 8),
    "grpo_4": trained("configs/grpo_qwen.py:tiny", 4),
    "grpo_2": trained("configs/grpo_qwen.py:tiny", 2),
    "control_2": trained("configs/grpo_qwen.py:tiny", 3, "rl.leave_out=1"),
    "mc_grpo": trained("configs/mc_grpo.py:tiny", 3),
    "reinforce": trained("configs/grpo_qwen.py:tiny,reinforce", 8),
    "reinforce_1": trained("configs/grpo_qwen.py:tiny,reinforce", 1),
    "spo": trained("configs/spo.py:tiny", 1, "prompts.trials=0"),
    "prompt_gdro": trained("configs/gdro.py:tiny", 4),
    "rollout_gdro": trained("configs/gdro.py:tiny,rollout", 4),
    "calibrated": trained("configs/infalign.py:tiny", 8, "reward.transform.kind=identity"),
    "infalign": trained("configs/infalign.py:tiny", 8),
    "sft": still(STEPS),
    "grao": trained("configs/grao.py:tiny", 8),
    "dypo": trained("configs/dypo.py:tiny", 8),
}


def get_config():
    claim = defaults.claim(
        "language_model",
        "At equal completions, on sums of which the start answers about half: MC-GRPO gains on GRPO with groups of 2, "
        "SPO on GRPO and REINFORCE, GDRO and DYPO on the hard sums, GRAO and DYPO on GRPO and on imitation, and "
        "InfAlign's transform on the calibrated reward in pass@4.",
    )
    claim.starts.half = supervised_start(START)
    claim.arms.start = still()
    claim.arms.update(ARMS)
    expect, add = defaults.expectation, claim.expectations
    add.grpo_learns = expect(METRIC, "grpo", "higher", "start", by=0.15)
    add.mc_grpo_over_2 = expect(METRIC, "mc_grpo", "higher", "grpo_2", by=0.01)
    add.mc_grpo_over_control = expect(METRIC, "mc_grpo", "higher", "control_2")
    add.mc_grpo_near_8 = expect(METRIC, "mc_grpo", "higher", "grpo", by=-0.03)
    add.spo_over_grpo = expect(METRIC, "spo", "higher", "grpo")
    add.spo_over_reinforce = expect(METRIC, "spo", "higher", "reinforce")
    add.spo_over_reinforce_1 = expect(METRIC, "spo", "higher", "reinforce_1")
    for arm in ("prompt_gdro", "rollout_gdro"):
        add[f"{arm}_hard"] = expect(METRIC, arm, "higher", "grpo_4", unsolved_by="start")
        add[f"{arm}_all"] = expect(METRIC, arm, "higher", "grpo_4", by=-0.03)
        add[f"{arm}_pass_4"] = expect(PASS_4, arm, "higher", "grpo_4")
    for arm in ("grao", "dypo"):
        add[f"{arm}_over_grpo"] = expect(METRIC, arm, "higher", "grpo")
        add[f"{arm}_over_sft"] = expect(METRIC, arm, "higher", "sft")
    add.dypo_hard = expect(METRIC, "dypo", "higher", "grpo", unsolved_by="start")
    add.infalign_pass_4 = expect(PASS_4, "infalign", "higher", "calibrated")
    add.infalign_kl = expect("kl", "infalign", "lower", "calibrated", by=-0.05)
    add.infalign_pass_1 = expect(PASS_1, "infalign", "lower", "calibrated")
    return claim
