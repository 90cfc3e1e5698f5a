"""GRPO on Qwen (DeepSeekMath, arXiv 2402.03300) with short arithmetic as the task.

  python -m experiments.run --config=configs/grpo_qwen.py              your Qwen if JAXALIGN_MODEL names one, else the
                                                                       embedded SmolLM2-135M-Instruct
  python -m experiments.run --config=configs/grpo_qwen.py:qwen3_0_6b   Qwen/Qwen3-0.6B from the hub or its cache
  python -m experiments.run --config=configs/grpo_qwen.py:tiny         0.8 M parameters from nothing, in a minute
  python -m experiments.run --config=configs/grpo_qwen.py:runlocal     two small steps of the real thing

After the colon, comma separated: a size (qwen3_0_6b ... qwen3_32b, qwen2_5_0_5b ...), `tiny`, `runlocal`, `pod`, a
method of `python -m experiments.methods` (dr_grpo, rloo, gspo, reinforce) in place of GRPO.

Against the paper: the same advantage, ratio and aggregation. The paper has beta = 0.04 (here 0, as most later work;
--config.rl.loss.kl_coefficient=0.04 brings it back), group size 64 of 1,024 tokens (here 8 of 12: sums are short) and
learning rate 1e-6 with a reward model (here 3e-5, falling to 0, and a verifier).
"""

from configs import defaults

METHODS = ("grpo", "dr_grpo", "rloo", "gspo", "reinforce")


WORDS = {
    **defaults.SIZES,
    "tiny": "0.8 M parameters from nothing, with a supervised warm start",
    "runlocal": "two small steps",
    "pod": "256 prompts of 8 completions of 512 tokens, parameters split over 16 devices",
}


def recipe(name: str, method: str, words: set[str]):
    """Short arithmetic with the settings of `method`, as the recipes of all group-relative methods have it."""
    config = defaults.rl(name, method, steps=40)
    if "kl_coefficient" in config.rl.loss:
        config.rl.loss.kl_coefficient = 0.0
    config.data.system_prompt = "Answer with one number."
    config.rollout.prompts_per_step = 16
    config.optimizer.learning_rate = 3e-5
    config.optimizer.schedule = "linear"
    config.model.path = defaults.one_of(words, defaults.SIZES, "auto")
    if "tiny" in words:
        defaults.untrained(config)
        config.train.steps = 100
        config.optimizer.learning_rate = 3e-4
        config.optimizer.schedule = "constant"
        config.rollout.max_new_tokens = 4
        config.warm_start.steps = 150
    if "pod" in words:
        config.mesh.fsdp = 16
        config.rollout.prompts_per_step = 256
        config.rollout.max_new_tokens = 512
        config.rl.share_prompt = False  # attention over a row grows with its square
    if "runlocal" in words:
        config.train.steps = 2
        config.rollout.prompts_per_step = 2
        config.rollout.group_size = 4
        config.evaluation.max_questions = 8
    return config


def get_config(argument=None):
    words = defaults.arguments(argument, {**WORDS, **{name: f"the settings of {name}" for name in METHODS}})
    method = defaults.one_of(words, METHODS, "grpo")
    return recipe("grpo_qwen" if method == "grpo" else f"{method}_qwen", method, words)
