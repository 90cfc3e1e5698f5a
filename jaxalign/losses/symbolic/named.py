"""The losses that have names, as formulas.

The sixteen losses without a reference differ in their verdicts on two rows, "both completions are valid" and "neither
is" (`SINGLE_MODEL`). Their formulas are those of arXiv 2412.17696 where it prints them, and what decompilation gives
elsewhere.
"""

import difflib
from typing import Any, NamedTuple

from jaxalign.errors import UserError
from jaxalign.losses.symbolic.compilation import Link, LogProb
from jaxalign.losses.symbolic.structures import Preference, ordered, parse_structure, preference_of


class NamedLoss(NamedTuple):
    title: str
    formula: str
    link: Link = "logistic"
    beta: float = 1.0
    log_prob: LogProb = "sequence-sum"
    likelihood_weight: float = 0.0
    note: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword options of `symbolic_loss`."""
        return {key: value for key, value in self._asdict().items() if key not in ("title", "note")}

    @property
    def preference(self) -> Preference:
        """Its tables, over (chosen, rejected) and whatever else it names."""
        structure = parse_structure(self.formula)
        return preference_of(structure, ordered(("chosen", "rejected", *structure.variables)))


_IMPLIES = "rejected -> chosen"
_NEITHER_SIDE = "chosen & ~rejected"
_DPO = (
    "rejected & reference_chosen -> chosen & reference_rejected"
    " given chosen & reference_rejected | rejected & reference_chosen"
    " also chosen & rejected & reference_chosen & reference_rejected"
)
_CPO = f"{_IMPLIES} given chosen | rejected also chosen & rejected"


def _single(title: str, formula: str, **options: Any) -> NamedLoss:
    return NamedLoss(title, formula, log_prob="sequence-mean", **options)


# Rows: the verdict on "both are valid" (loses, both, excluded, wins); within a row that on "neither is".
SINGLE_MODEL: dict[str, NamedLoss] = {
    "ceunl": _single("Cross-entropy with unlikelihood", _NEITHER_SIDE),
    "l20": _single("l20", "~rejected also ~chosen & ~rejected"),
    "cunl": _single("cUNL", "~rejected given chosen | rejected"),
    "funl": _single("fUnl", "~rejected"),
    "sce": _single("sCE", "chosen also chosen & rejected"),
    "l5": _single("l5", f"{_IMPLIES} also chosen <-> rejected"),
    "cpo": NamedLoss("Contrastive preference optimization", _CPO, beta=0.1, likelihood_weight=1.0),
    "l14": _single("l14", f"{_IMPLIES} also chosen & rejected"),
    "l3": _single("l3", "chosen given ~(chosen & rejected)"),
    "qfunl": _single("qfUnl", f"{_IMPLIES} given ~(chosen & rejected) also ~chosen & ~rejected"),
    "orpo": _single(
        "Odds-ratio preference optimization",
        f"{_IMPLIES} given chosen ^ rejected",
        note="the ratio term alone: ORPO adds the likelihood of the chosen completion to lambda = 0.1 times this",
    ),
    "cfunl": _single("cfUnl", f"{_IMPLIES} given ~(chosen & rejected)"),
    "ce": _single("Cross-entropy", "chosen"),
    "bcpo": _single("bCPO", f"{_IMPLIES} also ~chosen & ~rejected"),
    "ccpo": _single("cCPO", f"{_IMPLIES} given chosen | rejected"),
    "uncpo": _single("unCPO", _IMPLIES),
}

NAMED_LOSSES: dict[str, NamedLoss] = SINGLE_MODEL | {
    "dpo": NamedLoss("Direct preference optimization", _DPO, beta=0.1),
    "ipo": NamedLoss("Identity preference optimization", _DPO, link="squared", beta=0.1),
    "simpo": NamedLoss(
        "SimPO",
        _DPO,
        beta=2.0,
        log_prob="sequence-mean",
        note="its reference is a constant: mean log-probs 0 of the chosen and -gamma / beta of the rejected completion",
    ),
    "slic": NamedLoss("SLiC", _CPO, link="hinge", beta=1.0, likelihood_weight=0.1),
    "rrhf": NamedLoss("RRHF", _CPO, link="perceptron", log_prob="sequence-mean", likelihood_weight=1.0),
    "dpop": NamedLoss(
        "DPO-positive",
        "rejected & reference_chosen & reference_chosen' -> chosen & chosen' & reference_rejected"
        " given chosen & chosen' & reference_rejected | rejected & reference_chosen & reference_chosen'"
        " also chosen & chosen' & rejected & reference_chosen & reference_chosen' & reference_rejected",
        beta=0.3,
        note="the branch with penalty 1 on a chosen completion that is less probable than under the reference",
    ),
}


def get_loss(name: str) -> NamedLoss:
    """The named loss. UserError, with the nearest names, if there is none."""
    if name in NAMED_LOSSES:
        return NAMED_LOSSES[name]
    near = difflib.get_close_matches(str(name).lower(), NAMED_LOSSES, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(NAMED_LOSSES)}"
    raise UserError(f"no loss is named {name!r}; {hint}")


def names_of(preference: Preference) -> list[str]:
    """The named losses with these tables; those with another link share them."""
    return [name for name, loss in NAMED_LOSSES.items() if loss.preference == preference]
