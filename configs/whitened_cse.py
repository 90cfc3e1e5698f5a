"""WhitenedCSE (arXiv 2305.17746): views by dropout, whitened in shuffled groups of channels, find each other.

  python -m experiments.run --config=configs/whitened_cse.py            vectors, linear maps with dropout
  python -m experiments.run --config=configs/whitened_cse.py:text       sentences of numbers, the embedded MiniLM
  python -m experiments.run --config=configs/whitened_cse.py:runlocal   a few small steps

Against the paper: the same loss with three views, temperature 0.05 and a head (linear map and tanh) that is dropped
after training; 8 groups of 32 channels (128 of 768 there), vectors or short sentences instead of Wikipedia.
"""

from configs import defaults

WORDS = {"text": "sentences of numbers under the embedded sentence encoder", "runlocal": "a few small steps"}


def get_config(argument=None):
    words = defaults.arguments(argument, WORDS)
    config = defaults.contrastive("whitened_cse", "whitened_cse", steps=400)
    config.loss.groups = 8
    config.contrastive.batch_size = 128
    config.encoders.first.dropout = config.encoders.first.input_dropout = 0.1
    if "text" in words:
        config.data.source, config.data.held_out = "number_words?split=train", "number_words?split=held_out"
        config.data.first_field = "second"
        config.encoders.first.path = "auto"
        config.loss.groups = 64
        config.contrastive.batch_size = 64
        config.optimizer.learning_rate = 1e-5
        config.train.steps = 60
    if "runlocal" in words:
        config.train.steps = 4
        config.contrastive.batch_size = 16
    return config
