"""CAFA (arXiv 2206.00205): test-time adaptation of a small classifier of digits to three corruptions.

  python -m experiments.run --config=configs/cafa.py             84 batches of each corruption, the source from nothing
  python -m experiments.run --config=configs/cafa.py:entropy     a yardstick instead: entropy, global or intra
  python -m experiments.run --config=configs/cafa.py:scanned     real digits, those of scikit-learn
  python -m experiments.run --config=configs/cafa.py:runlocal    a few batches

A clean classifier (two convolutions, 32 features) meets noise, low contrast and blur; after each corruption it starts
again from its source weights. Only scales and shifts of the normalisations are adapted (Adam, 1e-2, batches of 64).

Against the paper: its networks and data sets (ResNet-50, CIFAR-C, ImageNet-C) are larger than what runs here; its
optimiser and learning rate are not known. Covariances are shrunk by 0.05 of their mean diagonal.
"""

from configs import defaults

OBJECTIVES = {
    "entropy": "minimises the entropy of predictions",
    "global": "aligns mean and covariance of all features",
    "intra": "only pulls features towards their class",
}
WORDS = {
    **OBJECTIVES,
    "scanned": "the 1,797 digits of scikit-learn, which must be installed",
    "runlocal": "a few batches",
}


def get_config(argument=None):
    words = defaults.arguments(argument, WORDS)
    objective = defaults.one_of(words, OBJECTIVES, "cafa")
    config = defaults.adapt(objective, "cafa", steps=252)
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.max_grad_norm = 0.0
    config.adapt.objective = "cafa" if objective == "intra" else objective
    if objective == "intra":
        config.loss.inter_weight = 0.0
    if "scanned" in words:
        config.data.source = "digits?split=train"
        config.data.held_out = "digits?split=held_out"
    if "runlocal" in words:
        config.data.source = "drawn_digits?split=train&size=200"
        config.data.held_out = "drawn_digits?split=held_out&size=64"
        config.source.steps = 30
        config.stream.batches = 2
        config.stream.batch_size = 16
        config.train.steps = 6
    return config
