"""The table of all methods: which paper, which pieces with which settings, which config, what is claimed and shown.

The contract tests run over its rows, `python -m experiments.methods` prints it, and configs take their settings
from it. A method is a row here, not a trainer.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from jaxalign.errors import UserError


@dataclasses.dataclass(frozen=True)
class Method:
    name: str  # key of METHODS, in configs and metrics
    title: str
    paper: str  # arXiv id, or ""
    experiment: str  # the module experiments/<experiment>.py that runs it
    pieces: tuple[str, ...]  # "package.module:function", the loss first
    config: str  # FILE[:ARGUMENT] of `python -m experiments.run --config=...`
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

    @property
    def launch(self) -> str:
        return f"python -m experiments.run --config={self.config}"


_POLICY_LOSS = "jaxalign.losses.policy_gradient:policy_loss"
_GROUP = "jaxalign.rewards.advantages:group_advantages"
_UNTRIED = "Formulas and contracts are tested; what it does to a language model has not been measured."

_ROWS = (
    Method(
        name="sft",
        title="Supervised fine-tuning",
        paper="",
        experiment="sft",
        pieces=("jaxalign.losses.supervised:supervised_loss",),
        config="configs/sft_arithmetic.py",
        claim="The likelihood of held-out answers and the solve rate rise.",
        status="Seen: SmolLM2-135M on short arithmetic, held-out solve rate 17 % to 84 % in 40 steps (one seed).",
        loss={"aggregation": "token-mean"},
    ),
    Method(
        name="reinforce",
        title="REINFORCE with the batch mean as baseline",
        paper="",
        experiment="rl",
        pieces=(_POLICY_LOSS, "jaxalign.rewards.advantages:batch_mean_advantages"),
        config="configs/grpo_qwen.py:reinforce",
        claim="The reward rises; slower than with GRPO when completions are used for several updates.",
        status=_UNTRIED,
        loss={"ratio": "on-policy", "aggregation": "seq-mean-token-sum"},
        advantages={"kind": "batch_mean"},
    ),
    Method(
        name="rloo",
        title="REINFORCE leave-one-out",
        paper="2402.14740",
        experiment="rl",
        pieces=(
            _POLICY_LOSS,
            "jaxalign.rewards.advantages:leave_one_out_advantages",
            "jaxalign.rewards.gae:kl_penalty",
        ),
        config="configs/grpo_qwen.py:rloo",
        claim="The reward rises, and the gradient is unbiased whatever the group size.",
        status=_UNTRIED,
        loss={
            "ratio": "sequence-sum",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "aggregation": "seq-mean-token-mean",
        },
        advantages={"kind": "leave_one_out"},
        kl_in_reward=0.05,
    ),
    Method(
        name="grpo",
        title="Group relative policy optimization",
        paper="2402.03300",
        experiment="rl",
        pieces=(_POLICY_LOSS, _GROUP),
        config="configs/grpo_qwen.py",
        claim="The solve rate on held-out questions rises by more than its interval.",
        status="Seen: SmolLM2-135M on short arithmetic, held-out solve rate 17 % to 74-80 % in 40 steps, 3 seeds.",
        loss={
            "ratio": "token",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "kl": "k3",
            "kl_coefficient": 0.04,
            "aggregation": "seq-mean-token-mean",
        },
        advantages={"kind": "group", "scale": "group"},
    ),
    Method(
        name="dr_grpo",
        title="GRPO done right: no division by length or spread",
        paper="2503.20783",
        experiment="rl",
        pieces=(_POLICY_LOSS, _GROUP),
        config="configs/grpo_qwen.py:dr_grpo",
        claim="Wrong answers do not grow longer when the reward does not depend on length; with GRPO they do.",
        status="Seen on a table policy (tests/experiments/test_length_bias.py); not measured on a language model.",
        loss={"ratio": "token", "clip_low": 0.2, "clip_high": 0.2, "aggregation": "seq-mean-token-scale"},
        advantages={"kind": "group", "scale": "none"},
    ),
    Method(
        name="gspo",
        title="Group sequence policy optimization",
        paper="2507.18071",
        experiment="rl",
        pieces=(_POLICY_LOSS, _GROUP),
        config="configs/grpo_qwen.py:gspo",
        claim="Training is stable where token ratios are noisy (mixtures of experts), without replayed routing.",
        status="Formulas and contracts are tested; the claim is not (there is no mixture of experts here).",
        loss={"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "seq-mean-token-mean"},
        advantages={"kind": "group", "scale": "group"},
    ),
)

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}


def get_method(name: str) -> Method:
    """The row of that name. UserError, with the nearest names, if there is none."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(str(name).lower(), METHODS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(METHODS)}"
    raise UserError(f"method {name!r} is not known; {hint} (python -m experiments.methods lists all)")


def markdown_table() -> str:
    """All methods as a markdown table, with a line break at the end."""
    lines = ["| method | paper | settings | config | claim | status |", "|---|---|---|---|---|---|"]
    for row in METHODS.values():
        paper = f"[{row.paper}](https://arxiv.org/abs/{row.paper})" if row.paper else ""
        cells = (f"`{row.name}`: {row.title}", paper, settings_text(row), f"`{row.config}`", row.claim, row.status)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def settings_text(method: Method) -> str:
    """Options of advantages and loss in one line, for people."""
    options = {"advantages" if key == "kind" else key: value for key, value in method.advantages.items()}
    options |= method.loss
    if method.kl_in_reward:
        options["kl_in_reward"] = method.kl_in_reward
    return ", ".join(f"{key} {value}" for key, value in options.items())
