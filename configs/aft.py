"""AFT (arXiv 2309.02144) with short arithmetic as the task: own chains beside the given one, right against wrong.

  python -m experiments.run --config=configs/aft.py             wrong chains are compared with and not moved
  python -m experiments.run --config=configs/aft.py:boundary    they are moved towards a boundary
  python -m experiments.run --config=configs/aft.py:none        they are pushed down without end
  python -m experiments.run --config=configs/aft.py:rrhf        RRHF (arXiv 2304.05302) over the same groups
  python -m experiments.run --config=configs/aft.py:pro         PRO (arXiv 2306.17492) over the same groups
  python -m experiments.run --config=configs/aft.py:tiny        0.8 M parameters from nothing

Model, task and what else may follow the colon are those of configs/grpo_qwen.py. AFT's constraint for RRHF and PRO is
--config.rl.loss.detach_worse=True.

Against the paper: the same three losses beside the likelihood of the given chain. Chains are sampled anew in every step
by the model as it is then, and used once, where the paper samples a handful per question beforehand
(--config.rl.epochs uses those of a step several times). A chain is a number here, as the task asks for no steps; beta
0.15 nats per token is our own choice.
"""

from configs import defaults, grpo_qwen

CONSTRAINTS = {
    "detached": "wrong chains get no gradient",
    "boundary": "wrong chains are moved towards a boundary below the least likely right one",
    "none": "wrong chains are pushed down without end",
}
RANKED = {"rrhf": "RRHF in place of AFT", "pro": "PRO in place of AFT"}


def get_config(argument=None):
    words = defaults.arguments(argument, {**grpo_qwen.WORDS, **CONSTRAINTS, **RANKED})
    variant = defaults.one_of(words, (*CONSTRAINTS, *RANKED), "detached")
    method = {"rrhf": "rrhf_lists", "pro": "pro"}.get(variant, "aft")
    config = grpo_qwen.recipe("aft" if variant == "detached" else f"aft_{variant}", method, words)
    config.data.answer_fields = ("answer",)
    if method == "aft":
        config.rl.loss.constraint = variant
    return config
