"""Group-InfoNCE (CPRet, arXiv 2505.12925): a query against groups of documents, with all of its own at one distance.

  python -m experiments.run --config=configs/group_infonce.py            synthetic groups of 2 to 8 vectors
  python -m experiments.run --config=configs/group_infonce.py:runlocal   a few small steps

Groups of your own: --config.data.source=groups.jsonl, where the second field is a list (docs/contrastive.md).

Against the paper: the same loss and temperature; small linear towers on vectors instead of a language model of two
billion parameters on programs, and groups of their own sizes under a mask (filled up by repeats to 16 there).
"""

from configs import defaults

WORDS = {"runlocal": "a few small steps"}


def get_config(argument=None):
    words = defaults.arguments(argument, WORDS)
    config = defaults.contrastive("group_infonce", "group_infonce", steps=400)
    config.data.source, config.data.held_out = "view_groups?split=train", "view_groups?split=held_out"
    config.contrastive.batch_size = 64
    if "runlocal" in words:
        config.train.steps = 4
        config.contrastive.batch_size = 16
    return config
