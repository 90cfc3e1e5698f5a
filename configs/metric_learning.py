"""Metric learning on labelled pictures of digits: supervised contrastive (arXiv 2004.11362) and its relatives.

  python -m experiments.run --config=configs/metric_learning.py            supervised contrastive
  python -m experiments.run --config=configs/metric_learning.py:triplet    or cosface, arcface, multi_similarity,
                                                                           unpg
  python -m experiments.run --config=configs/metric_learning.py:runlocal   a few small steps

Labelled examples of your own: --config.data.source=examples.jsonl with the fields that config.data names.

Against the papers: small linear towers on 8 x 8 pictures drawn here, in batches of 10 classes with 8 pictures each.
"""

from configs import defaults

METHODS = ("supcon", "triplet", "cosface", "arcface", "multi_similarity", "unpg")
WORDS = {**{name: f"the loss of {name}" for name in METHODS}, "runlocal": "a few small steps"}


def get_config(argument=None):
    words = defaults.arguments(argument, WORDS)
    method = defaults.one_of(words, METHODS, "supcon")
    config = defaults.contrastive(f"metric_learning_{method}", method, steps=300)
    config.data.source = "drawn_digits?split=train&size=900"
    config.data.held_out = "drawn_digits?split=held_out&size=500"
    config.data.first_field = "image"
    config.contrastive.batch_size = 80
    config.contrastive.classes_per_batch = 10
    if "runlocal" in words:
        config.train.steps = 4
        config.data.source = "drawn_digits?split=train&size=100"
        config.data.held_out = "drawn_digits?split=held_out&size=60"
        config.contrastive.batch_size = 20
    return config
