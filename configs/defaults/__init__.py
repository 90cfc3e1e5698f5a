"""What every recipe starts from: one function per kind of experiment, groups by concern, a unit or range at each value.

A recipe calls one of these and changes what its paper changes. `arguments` parses the part after the colon of
`--config=configs/<name>.py:<words>`.
"""

from configs.defaults.claims import arm, claim, expectation, study
from configs.defaults.common import adapter, base, distributed, mesh, model, optimizer, options_of, train, untrained
from configs.defaults.embeddings import contrastive, graph_text, text_replacement
from configs.defaults.policy import LOSSES, evaluation, packing, prompts, questions, reward, rl, sft
from configs.defaults.preference import PREFERENCE_LOSSES, diagnostics, preference
from configs.defaults.test_time import adapt, matching
from configs.defaults.words import SIZES, arguments, one_of

__all__ = [
    "LOSSES",
    "PREFERENCE_LOSSES",
    "SIZES",
    "adapt",
    "adapter",
    "arguments",
    "arm",
    "base",
    "claim",
    "contrastive",
    "diagnostics",
    "distributed",
    "evaluation",
    "expectation",
    "graph_text",
    "matching",
    "mesh",
    "model",
    "one_of",
    "optimizer",
    "options_of",
    "packing",
    "preference",
    "prompts",
    "questions",
    "reward",
    "rl",
    "sft",
    "study",
    "text_replacement",
    "train",
    "untrained",
]
