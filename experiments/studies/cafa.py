"""Test-time adaptation of a small classifier of digits (configs/cafa.py), one setting against another.

Settings: batch_statistics (nothing is learned), global (mean and covariance of all features), intra (only the pull
towards a class), cafa, cafa_tied (one covariance for all classes), entropy. Those of one seed start from the same
source classifier and see the same stream.
"""

import functools

import jax
import numpy as np

from configs import cafa
from experiments import adapt
from jaxalign.training.mesh import make_mesh

SETTINGS = ("batch_statistics", "global", "intra", "cafa", "cafa_tied", "entropy")


@functools.lru_cache(maxsize=1)
def _start(seed: int, training: int):
    """(training pictures, held-out pictures, source classifier, moments of its features)."""
    config = cafa.get_config()
    config.source.steps = training
    train, held_out = (
        adapt.load_pictures(f"{spec}&seed={seed}", config.data) for spec in (config.data.source, config.data.held_out)
    )
    network = adapt.ResNet(train.images.shape[1:], classes=10, **config.network)
    source = adapt.train_source(network, train, config.source, seed)
    moments, _ = adapt.source_features(network, source, train)
    return train, held_out, source, moments


def run(setting: str, seed: int, *, steps: int | None = None, training: int = 500) -> dict[str, float]:
    """Accuracies over the stream, and how well classes are apart in the last ten batches of each corruption.

    steps: batches of each corruption; None: those of the config. training: steps of the source classifier.
    """
    config = cafa.get_config(setting if setting in cafa.OBJECTIVES else None)
    config.seed = seed
    config.stream.batches = steps or config.stream.batches
    config.adapt.tied = {"cafa": False, "cafa_tied": True}.get(setting)
    if setting == "batch_statistics":
        config.optimizer.learning_rate = 0.0
    train, held_out, source, moments = _start(seed, training)
    adaptation = adapt.Adaptation(config, train, held_out, make_mesh(devices=jax.devices()[:1]))
    state, ends = adaptation.begin(source, moments), []
    for position in range(config.stream.batches * len(config.stream.corruptions)):
        state, metrics, _ = adaptation.advance(state, position)
        if position % config.stream.batches >= config.stream.batches - 10:
            ends.append(metrics)
    score = jax.device_get(state.extra["score"])
    rates = {kind: score[kind].sum(1) / score["seen"].sum(1) for kind in ("adapted", "source")}
    return {
        "accuracy": float(rates["adapted"].mean()),
        "source_accuracy": float(rates["source"].mean()),
        **{f"accuracy_{name}": float(x) for name, x in zip(config.stream.corruptions, rates["adapted"], strict=True)},
        **{name: float(np.mean([m[name] for m in ends])) for name in adapt.DISTANCES},
    }
