"""Another text encoder for trained towers, in two stages (ProCLIP, arXiv 2510.18795; docs/methods/proclip.md).

  python -m experiments.run --config=configs/proclip.py            a made world of 200 concepts
  python -m experiments.run --config=configs/proclip.py:direct     without stage 1 and without holding on
  python -m experiments.run --config=configs/proclip.py:stages     stage 1, then contrast without holding on
  python -m experiments.run --config=configs/proclip.py:tiny       a tenth of the steps
  python -m experiments.run --config=configs/proclip.py:runlocal   a few small steps

Stage 1 (600 steps) distils the old text encoder into an adapter, from texts alone; stage 2 (400 steps) tunes image
encoder and adapter by contrast, near a moving average of the image encoder (regularisation 4e-4, as in the paper).

Against the paper: linear maps on vectors instead of CLIP and embeddings of a language model of 8 billion parameters;
Adam 1e-3 and 5e-4 instead of AdamW 1e-5; the rate of the average is not stated there, 0.999 here.
"""

from configs import defaults

ARMS = {"direct": "contrast alone, from a fresh adapter", "stages": "stage 1, then contrast alone"}
WORDS = {**ARMS, "tiny": "a tenth of the steps", "runlocal": "a few small steps"}


def get_config(argument=None):
    words = defaults.arguments(argument, WORDS)
    arm = defaults.one_of(words, ARMS, "proclip")
    config = defaults.text_replacement(arm, "proclip", steps=1000)
    if arm in ARMS:
        config.loss.regularisation = 0.0
    if words & {"tiny", "runlocal"}:
        config.pretraining.steps, config.distillation.steps, config.train.steps = 80, 60, 100
    if "runlocal" in words:
        config.pretraining.steps, config.distillation.steps, config.train.steps = 4, 2, 4
        config.distillation.batch_size = config.batch_size = 32
    if arm == "direct":
        config.train.steps -= config.distillation.steps
        config.distillation.steps = 0
    return config
