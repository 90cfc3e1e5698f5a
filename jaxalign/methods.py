"""The table of all methods: which paper, which pieces with which settings, which config, what is claimed and shown.

The contract tests run over its rows, `python -m experiments.methods` prints it, and configs take their settings
from it. A method is a row here, not a trainer.
"""

import difflib

from jaxalign.errors import UserError
from jaxalign.method_rows import adaptation, embeddings, policy, preference
from jaxalign.method_rows.method import Method

METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        *policy.ROWS,
        *preference.ROWS,
        *adaptation.ROWS,
        *embeddings.CONTRASTIVE_ROWS,
        *embeddings.METRIC_ROWS,
    )
}


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
