"""Grouped contrastive pools (M2-Encoder, arXiv 2401.15896): rows meet within groups of devices, and over micro-batches.

  python -m experiments.run --config=configs/m2_encoder.py            64 rows a micro-batch, 4 of them, two passes
  python -m experiments.run --config=configs/m2_encoder.py:runlocal   a few small steps

On several devices a group is the devices of one `fsdp` axis: --config.mesh.fsdp=8 gathers among 8 and no further. The
rows of the 4 micro-batches of a group are one pool, so that negatives are not fewer than with one large batch.

Against the paper: the contrastive part of its objective alone, synthetic pairs, small towers. Its exact grouping
algorithm is not published; this one is what docs/methods/m2_encoder.md describes.
"""

from configs import defaults

WORDS = {"runlocal": "a few small steps"}


def get_config(argument=None):
    words = defaults.arguments(argument, WORDS)
    config = defaults.contrastive("m2_encoder", "m2_encoder", steps=400)
    config.contrastive.pool = "fsdp"
    config.train.micro_batches = 4
    if "runlocal" in words:
        config.train.steps = 4
        config.contrastive.batch_size = 16
    return config
