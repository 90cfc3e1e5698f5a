"""Graph-text alignment that keeps a gap (after LLM4GTA, arXiv 2510.12087; docs/methods/llm4gta.md).

  python -m experiments.run --config=configs/llm4gta.py            made graphs of 800 nodes, seconds
  python -m experiments.run --config=configs/llm4gta.py:clip       plain contrast; or gap (no classifier), compensation
                                                                   (contrast and the classifier)
  python -m experiments.run --config=configs/llm4gta.py:tiny       graphs of 400 nodes, fewer steps
  python -m experiments.run --config=configs/llm4gta.py:runlocal   a few small steps

A graph of your own: --config.data.source=nodes.jsonl, a node in each line, with the fields that config.data names.

Against the paper, of which only the abstract was at hand: all formulas are this project's own; a small network of means
of neighbours and vectors in place of texts, on made graphs.
"""

from configs import defaults

ARMS = {
    "clip": "contrast alone",
    "gap": "the gap is kept, without the classifier",
    "compensation": "contrast and the classifier, the gap is not kept",
}
WORDS = {**ARMS, "tiny": "graphs of 400 nodes, fewer steps", "runlocal": "a few small steps"}


def get_config(argument=None):
    words = defaults.arguments(argument, WORDS)
    arm = defaults.one_of(words, ARMS, "llm4gta")
    config = defaults.graph_text(arm, "llm4gta", steps=300)
    if arm in ("clip", "compensation"):
        config.gap.enabled = False
        config.loss.gap_weight = 0.0
    if arm in ("clip", "gap"):
        config.loss.compensation_weight = 0.0
    if words & {"tiny", "runlocal"}:
        for name in ("source", "held_out", "classes"):
            config.data[name] += f"&nodes={160 if 'runlocal' in words else 400}"
        config.batch_size = 128
        config.train.steps = 150
        config.pretraining.steps = 150
    if "runlocal" in words:
        config.batch_size = 64
        config.train.steps = 4
        config.pretraining.steps = 4
        config.gap.warmup = 2
    return config
