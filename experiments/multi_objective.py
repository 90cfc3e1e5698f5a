"""Preference training under several objectives: who judges, what the loss makes of it, and one gradient out of several.

`config.preference.objectives` names the objectives with their weights. A row judges them by signs (`jaxalign.data.
preferences`); the loss is `jaxalign.losses.multi_objective`, the gradients are combined by `jaxalign.gradients.
conflict_averse` (`config.preference.conflict`), once for the whole batch.
"""

import itertools
import math
from collections.abc import Sequence
from typing import get_args

import jax.numpy as jnp
import numpy as np

from experiments.pairs import Sums, pair_log_probs
from jaxalign.data.preferences import BRIEF, Preferences, sign
from jaxalign.errors import UserError
from jaxalign.gradients.conflict_averse import Conflict, Correction, conflict_averse
from jaxalign.losses.multi_objective import multi_objective_loss
from jaxalign.objective import Metrics, Objective

WEIGHTED = "weighted"  # the gradient of the weighted loss: nothing is told apart, and one backward pass is enough
CONFLICTS = (*get_args(Conflict), WEIGHTED)


def takes_objectives(config) -> bool:
    """Whether the config's loss is one of several objectives."""
    return "difference" in config.loss


def check_objectives(config) -> None:
    """Refuses settings that cannot work together. Raises UserError."""
    preference = config.preference
    objectives = {name: preference.objectives[name] for name in preference.objectives}
    if not takes_objectives(config):
        if objectives:
            raise UserError(
                "config.preference.objectives wants a loss of several objectives, and config.loss is not one; start "
                "from configs/raco.py"
            )
        return
    if not objectives:
        raise UserError(
            "config.preference.objectives is empty, and this loss is of several objectives; give them weights, such as "
            "--config.preference.objectives.helpful=0.7 --config.preference.objectives.brief=0.3"
        )
    numbers = [value for value in objectives.values() if isinstance(value, int | float) and value >= 0]
    if len(numbers) < len(objectives) or not math.isclose(sum(numbers), 1, abs_tol=1e-5):
        shown = ", ".join(f"{name} {value}" for name, value in objectives.items())
        raise UserError(f"config.preference.objectives ({shown}) must be weights of at least 0 whose sum is 1")
    if not 0 <= preference.radius < 1:
        raise UserError(f"config.preference.radius={preference.radius} of the correction must be in [0, 1)")
    if preference.conflict not in CONFLICTS:
        raise UserError(
            f"config.preference.conflict={preference.conflict!r} is not known; use one of {', '.join(CONFLICTS)}"
        )
    about_chosen = {
        "config.preference.gradient": preference.gradient != "loss",
        "config.preference.shift.enabled": preference.shift.enabled,
        "config.preference.confidence.enabled": preference.confidence.enabled,
        "config.preference.density_ratio.enabled": preference.density_ratio.enabled,
        "config.diagnostics.entanglement": config.diagnostics.entanglement,
    }
    for name, used in about_chosen.items():
        if used:
            raise UserError(f"{name} is about one preference, and config.preference.objectives names several")


class Objectives:
    """What the config's loss makes of sums under several objectives: the counterpart of `experiments.pairs.Measure`.

    `side` is [P, m], the signs. Sums given m times over are told apart: objective i reads the i-th.

    Attributes:
      objectives: their names.
      combine: (gradient of each objective) -> (one gradient, metrics), or None where the loss is simply weighted.
    """

    labelled = tracked = doubts = symbolic = False

    def __init__(self, config):
        preference = config.preference
        self.objectives = tuple(preference.objectives)
        self._weights = tuple(preference.objectives[name] for name in self.objectives)
        self._options = dict(config.loss)
        self._radius, self._conflict = preference.radius, preference.conflict
        self.needs_reference = self._options["difference"] != "mean_log_prob"
        self.uses_means = self._options["difference"] != "log_ratio"
        self.batch_coupled = self._options["drop_ties"]
        self.combine = None if self._conflict == WEIGHTED else self._combine
        how = {WEIGHTED: "their losses weighted", "min_norm": "their gradients combined to the shortest mixture"}
        by = f"their gradients combined by {self._conflict}, radius {self._radius:g}"
        self.name = f"of {len(self.objectives)} objectives, {how.get(self._conflict, by)}"

    def __call__(
        self,
        sums: Sums | Sequence[Sums],
        reference,
        side,
        mask,
        *,
        state=None,
        annotator=None,
        weight=None,
        training=False,
    ) -> Objective:
        del state, annotator, weight, training
        if isinstance(sums, Sums):
            pairs = pair_log_probs(sums, reference, mask)
        else:
            pairs = [pair_log_probs(one, reference, mask) for one in sums]
        return multi_objective_loss(pairs, jnp.asarray(side).T, self._weights, self.objectives, **self._options)

    def _combine(self, *gradients):
        gradient, correction = conflict_averse(gradients, self._weights, self._radius, self._conflict)
        return gradient, self._metrics(correction)

    def _metrics(self, correction: Correction) -> Metrics:
        """The coefficient of each gradient, their cosines, `rho`, and `clipped`, the share of the mixture p cut off."""
        found = {f"coefficient_{name}": a for name, a in zip(self.objectives, correction.coefficients, strict=True)}
        for (i, one), (j, other) in itertools.combinations(enumerate(self.objectives), 2):
            found[f"cosine_{one}_{other}"] = correction.cosines[i, j]
        found |= {"rho": correction.rho, "clipped": (correction.p - correction.p_clipped).sum()}
        return {name: (value.astype(jnp.float32), jnp.ones(())) for name, value in found.items()}

    def check_judged(self, data: Preferences, spec: str) -> str:
        """How many pairs each objective judges, for people. Raises UserError: one of them judges none."""
        signs = np.array([[sign(row, name) for name in self.objectives] for row in data.rows])
        for name, found in zip(self.objectives, signs.T, strict=True):
            if not found.any():
                judged = [other for other in data.objectives if other != name] or ["none"]
                raise UserError(
                    f"no pair of {spec} is judged by the objective {name!r} of config.preference.objectives; judged "
                    f"are {', '.join(judged)} (in the field config.data.objectives_field), and {BRIEF!r} by itself "
                    "wherever lengths differ"
                )
        parts = [
            f"{name} {weight:g} ({(found > 0).sum()} for chosen, {(found < 0).sum()} for rejected)"
            for name, weight, found in zip(self.objectives, self._weights, signs.T, strict=True)
        ]
        disagree = ((signs > 0).any(1) & (signs < 0).any(1)).mean()
        return f"{'; '.join(parts)}; they disagree on {100 * disagree:.0f} % of the pairs"
