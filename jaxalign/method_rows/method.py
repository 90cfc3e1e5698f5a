"""What a row of the table of methods says."""

import dataclasses
from collections.abc import Mapping
from typing import Any

UNTRIED = "Formulas and contracts are tested; what it does to a language model has not been measured."


@dataclasses.dataclass(frozen=True)
class Method:
    name: str  # key of METHODS, in configs and metrics
    title: str
    paper: str  # arXiv id, or ""
    experiment: str  # the module experiments/<experiment>.py that runs it, such as "rl" or "studies/proclip"
    pieces: tuple[str, ...]  # "package.module:function", the loss first
    config: str  # FILE[:ARGUMENT] of `python -m experiments.run --config=...`; of a study, the claim that compares it
    claim: str  # what must be seen for the method to be called working
    status: str  # what has been seen so far, and what has not
    # Keyword options of the loss. "seq-mean-token-scale" without a scale_length means the generation budget
    # (max_new_tokens), which the experiment fills in: a row of this table knows no budget.
    loss: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # `kind` and keyword options of `jaxalign.rewards.advantages.advantages`; empty where nothing is rewarded.
    advantages: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # beta of the k1 penalty in the reward, in units of reward per nat. If it is not 0 the experiment adds
    # `jaxalign.rewards.gae.kl_penalty(old_log_probs, reference_log_probs, mask, kl_in_reward)` to the
    # combined rewards, before advantages are made of them.
    kl_in_reward: float = 0.0
    # Completions of each group that the update leaves out, those of the smallest |advantage|.
    leave_out: int = 0

    @property
    def launch(self) -> str:
        program = "compare" if self.config.startswith("configs/claims/") else "run"
        return f"python -m experiments.{program} --config={self.config}"
