"""The policy-gradient family on a language model of 0.8 M parameters: what each gains on held-out sums.

  python -m experiments.compare --config=configs/claims/policy_gradients.py

All arms of all seeds begin with one and the same model, which answers about 45 % of the held-out sums of two numbers
up to 50: 180 supervised steps from nothing. Then come 150 steps of 16 prompts x 8 completions with 2 epochs on each
batch. So all see the same number of completions and of updates: DAPO draws its batches once (`dapo`) instead of until
they are full, and PPO takes its batches whole. "start" is that model as it is; "sft" goes on with it for as many
supervised updates as the others make. The learning rate was chosen between two by GRPO alone with seed 100, the length
of the start by the start's own solve rate (docs/methods/grpo.md).
"""

from configs import defaults

STEPS, EPOCHS, START = 150, 2, 180
SUMS = "arithmetic?operations=+&template={question}=&max_operand=50&split="
TASK = (f"data.source={SUMS}train", f"data.held_out={SUMS}held_out")
METRIC = "held-out solve rate, greedy, 4 new tokens"
COMMON = (
    *TASK,
    "warm_start.steps=0",
    f"rl.epochs={EPOCHS}",
    "rl.batches_per_epoch=1",
    "rl.report_kl_prompts=0",
    "optimizer.learning_rate=1e-4",
)
ARMS = {
    "grpo": ("configs/grpo_qwen.py:tiny",),
    "dr_grpo": ("configs/grpo_qwen.py:tiny,dr_grpo",),
    "rloo": ("configs/grpo_qwen.py:tiny,rloo",),
    "reinforce": ("configs/grpo_qwen.py:tiny,reinforce",),
    "gspo": ("configs/grpo_qwen.py:tiny,gspo",),
    "dapo": ("configs/dapo.py:tiny", "rollout.max_draws=1"),
    "ppo": ("configs/ppo.py:tiny",),
    # Why REINFORCE loses: as many completions and updates, but none used twice; and twice, with a clipped ratio.
    "reinforce_once": (
        "configs/grpo_qwen.py:tiny,reinforce",
        "rl.epochs=1",
        f"train.steps={STEPS * EPOCHS}",
        "rollout.prompts_per_step=8",
    ),
    "reinforce_clipped": ("configs/grpo_qwen.py:tiny,reinforce", "rl.loss.ratio=token"),
}
STILL = ("train.steps=1", "optimizer.learning_rate=0.0")


def supervised_start(steps: int):
    """A model of 0.8 M parameters after so many supervised steps on the sums: what arms begin with."""
    return defaults.arm("configs/sft_arithmetic.py:tiny", *TASK, f"train.steps={steps}", "seed=100")


def get_config():
    claim = defaults.claim(
        "policy_gradients",
        "From one supervised start every method of the family raises the solve rate on held-out sums, and GRPO more "
        "than REINFORCE, where completions are used for two updates.",
    )
    claim.starts.half = supervised_start(START)
    still = (*COMMON, *STILL)
    claim.arms.start = defaults.arm("configs/grpo_qwen.py:tiny", *still, start="half")
    more = f"warm_start.steps={STEPS * EPOCHS}"
    claim.arms.sft = defaults.arm("configs/grpo_qwen.py:tiny", *still, more, start="half")
    for name, (spec, *own) in ARMS.items():
        claim.arms[name] = defaults.arm(spec, *COMMON, f"train.steps={STEPS}", *own, start="half")
        claim.expectations[f"{name}_learns"] = defaults.expectation(METRIC, name, "higher", "start", by=0.05)
    claim.expectations.grpo_required = defaults.expectation(METRIC, "grpo", "higher", "start", by=0.15)
    claim.expectations.over_reinforce = defaults.expectation(METRIC, "grpo", "higher", "reinforce")
    for arm in ("reinforce_once", "reinforce_clipped"):
        claim.expectations[f"{arm}_over_reinforce"] = defaults.expectation(METRIC, arm, "higher", "reinforce")
    return claim
