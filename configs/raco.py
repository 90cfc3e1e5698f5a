"""RACO (arXiv 2602.02495): preferences that conflict, their gradients combined and clipped by the user's weights.

  python -m experiments.run --config=configs/raco.py                less harm against brevity, on judgements of harm
  python -m experiments.run --config=configs/raco.py:weighted       the weighted sum of the losses (DPO-LW) instead
  python -m experiments.run --config=configs/raco.py:cagrad         the correction without clipping
  python -m experiments.run --config=configs/raco.py:min_norm       the shortest mixture of gradients (MGDA)
  python -m experiments.run --config=configs/raco.py:amopo          weighted, on mean log-probs without a reference
  python -m experiments.run --config=configs/raco.py:smollm2_360m   other weights
  python -m experiments.run --config=configs/raco.py:tiny           0.8 M parameters from nothing, on its own samples of
                                                                    sums: right against brief, in a minute
  python -m experiments.run --config=configs/raco.py:runlocal       two small steps of the real thing

Your own pairs: rows {"prompt", "chosen", "rejected", "objectives": {"helpful": 1, "brief": -1}} (1: chosen is better,
-1: rejected is, 0: neither), and the word "own", with which the objectives are named by flags:

  python -m experiments.run --config=configs/raco.py:own \\
    --config.data.source=pairs.jsonl --config.data.held_out_pairs=held_out.jsonl \\
    --config.preference.objectives.helpful=0.7 --config.preference.objectives.brief=0.3

"brief" needs no judgement: it prefers the shorter completion where a row does not say.

Against the paper: the same beta = 0.1, radius 0.4 and weights 0.65 and 0.35 (it has 0.8 and 0.2, and 0.35 and 0.65 as
well, and thirds for three objectives). The paper trains Qwen 3, Llama 3 and Gemma 3 on summaries and on safety, with
learning rate 1e-5, batches of 64, a warm-up of a tenth and a cosine schedule; here the optimizer's settings are those
of configs/dpo_smollm.py, and of configs/dpo_verifiable.py for the tiny form.
"""

from configs import defaults, dpo_smollm
from jaxalign.methods import METHODS

WAYS = ("raco", "cagrad", "min_norm", "weighted", "amopo")
METHOD_OF = {"weighted": "dpo_lw", "amopo": "amopo"}
WORDS = {
    **dpo_smollm.WORDS,
    "raco": METHODS["raco"].title,
    "cagrad": "the correction without clipping",
    "min_norm": "the shortest mixture of gradients",
    "weighted": METHODS["dpo_lw"].title,
    "amopo": METHODS["amopo"].title,
    "own": "objectives that flags name",
}


def get_config(argument=None):
    words = defaults.arguments(argument, WORDS)
    way = defaults.one_of(words, WAYS, "raco")
    method = METHOD_OF.get(way, "raco")
    config = dpo_smollm.recipe(way if way == "raco" else f"raco_{way}", method, words)
    config.preference.conflict = "weighted" if way == "amopo" else way
    config.preference.objectives = {"harmless": 0.65, "brief": 0.35}
    if "tiny" in words:
        # Own samples, as in configs/dpo_verifiable.py:tiny.
        config.data.source = "arithmetic?split=train&operations=+&template={question}="
        config.data.held_out = "arithmetic?split=held_out&operations=+&template={question}="
        config.train.steps = 60
        config.optimizer.schedule = "linear"
        config.optimizer.warmup_steps = 5
        config.samples.per_question = 8
        config.samples.max_new_tokens = 4
        config.preference.objectives = {"correct": 0.65, "brief": 0.35}
    if "own" in words:
        config.preference.objectives = {}
    return config
