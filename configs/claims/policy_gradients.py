"""The policy-gradient family on a language model of 0.8 M parameters: what each gains on held-out sums.

  python -m experiments.compare --config=configs/claims/policy_gradients.py

Every arm makes the same supervised start, 200 steps on sums of two numbers up to 50, and then 150 steps of 16 prompts x
8 completions with 2 epochs on each batch. So all see the same number of completions and of updates: DAPO draws its
batches once (`dapo`) instead of until they are full, and PPO takes its batches whole. "start" is the supervised start
alone; "sft" goes on with it for as many updates as the others make. The settings were chosen by GRPO with seed 0
(docs/methods/grpo.md).
"""

from configs import defaults

STEPS, EPOCHS, START = 150, 2, 200
SUMS = "arithmetic?operations=+&template={question}=&max_operand=50&split="
METRIC = "held-out solve rate, greedy, 4 new tokens"
COMMON = (
    f"data.source={SUMS}train",
    f"data.held_out={SUMS}held_out",
    f"rl.epochs={EPOCHS}",
    "rl.batches_per_epoch=1",
    "rl.report_kl_prompts=0",
    "optimizer.learning_rate=2e-4",
)
ARMS = {
    "grpo": ("configs/grpo_qwen.py:tiny",),
    "dr_grpo": ("configs/grpo_qwen.py:tiny,dr_grpo",),
    "rloo": ("configs/grpo_qwen.py:tiny,rloo",),
    "reinforce": ("configs/grpo_qwen.py:tiny,reinforce",),
    "gspo": ("configs/grpo_qwen.py:tiny,gspo",),
    "dapo": ("configs/dapo.py:tiny", "rollout.max_draws=1"),
    "ppo": ("configs/ppo.py:tiny",),
}
STILL = ("train.steps=1", "optimizer.learning_rate=0.0")


def get_config():
    claim = defaults.claim(
        "policy_gradients",
        "From one supervised start every method of the family raises the solve rate on held-out sums, and GRPO more "
        "than REINFORCE, where completions are used for two updates.",
    )
    start = (*COMMON, *STILL)
    claim.arms.start = defaults.arm("configs/grpo_qwen.py:tiny", *start, f"warm_start.steps={START}")
    more = START + STEPS * EPOCHS
    claim.arms.sft = defaults.arm("configs/grpo_qwen.py:tiny", *start, f"warm_start.steps={more}")
    for name, (spec, *own) in ARMS.items():
        trained = (f"train.steps={STEPS}", f"warm_start.steps={START}")
        claim.arms[name] = defaults.arm(spec, *COMMON, *trained, *own)
        claim.expectations[f"{name}_learns"] = defaults.expectation(METRIC, name, "higher", "start", by=0.05)
    claim.expectations.grpo_required = defaults.expectation(METRIC, "grpo", "higher", "start", by=0.15)
    claim.expectations.over_reinforce = defaults.expectation(METRIC, "grpo", "higher", "reinforce")
    return claim
