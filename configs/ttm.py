"""Test-time matching (arXiv 2510.07632): two towers learn from their own matchings of 300 small groups, without labels.

  python -m experiments.run --config=configs/ttm.py              thresholds fall from the 80 % quantile of margins to 0
  python -m experiments.run --config=configs/ttm.py:simple       one iteration over all groups (SimpleMatch)
  python -m experiments.run --config=configs/ttm.py:constant     the first threshold throughout; rising: from 0 upwards
  python -m experiments.run --config=configs/ttm.py:clip         the softmax loss in place of the sigmoid loss
  python -m experiments.run --config=configs/ttm.py:runlocal     two iterations of little

Groups of your own are an .npz file with images [G, m, D] and captions [G, k, D'] (config.data.groups), pairs to train
the towers on another one (config.data.pairs).

Against the paper: towers of 16 k parameters and a synthetic world, in which a caption says which of two objects comes
first, in place of SigLIP on Winoground. Its margin of 2.0 logits at the start is a quantile here, which knows no scale;
8 iterations of 10 epochs at 1e-3 in place of 10 of 20 to 30 at 1e-5.
"""

from configs import defaults

SCHEDULES = {
    "simple": "one iteration over all groups, 20 epochs",
    "constant": "the threshold stays at the first quantile",
    "rising": "the threshold rises from 0 to the quantile",
}
WORDS = {**SCHEDULES, "clip": "the softmax loss", "runlocal": "two iterations of little"}


def get_config(argument=None):
    words = defaults.arguments(argument, WORDS)
    schedule = defaults.one_of(words, SCHEDULES, "decay")
    config = defaults.matching(f"ttm_{schedule}", steps=8)
    if schedule == "simple":
        config.train.steps = config.matching.iterations = 1
        config.matching.epochs = 20
        config.matching.start_quantile = 0.0
    if schedule == "constant":
        config.matching.schedule = "constant"
    if schedule == "rising":
        config.matching.start_quantile, config.matching.end_quantile = 0.0, config.matching.start_quantile
    if "clip" in words:
        config.matching.loss = "clip"
    if "runlocal" in words:
        config.train.steps = config.matching.iterations = 2
        config.matching.epochs = 1
        config.data.groups_number = 40
        config.source.steps = 10
    return config
