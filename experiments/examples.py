"""The examples of a run of encoders: read once, held in host memory, as encoders and losses take them."""

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.towers import Towers, column, integers
from jaxalign.data.sources import load_source
from jaxalign.errors import UserError

TWO_SIDED = ("pairs", "groups", "scored")


class Examples(NamedTuple):
    """All examples of a source: values of each side as they stand there, and the columns that losses read."""

    values: dict[str, tuple[list[Any], list[str]]]  # of each side, with the places they are from
    ids: np.ndarray  # [N] equal for what is the same thing
    labels: np.ndarray | None  # [N]
    scores: np.ndarray | None = None  # [N] similarities given by people
    mask: np.ndarray | None = None  # [N, m] of groups, which are filled up to one size

    def __len__(self) -> int:
        return len(self.ids)


def read_examples(spec: str, data, form: str) -> Examples:
    """Raises UserError: a missing field, a label or an id that is no integer."""
    source = load_source(spec)
    fields = {"first": data.first_field} | ({"second": data.second_field} if form in TWO_SIDED else {})
    values = {side: column(source, field) for side, field in fields.items()}
    mask = None
    if form == "groups":
        values["second"], mask = _filled_groups(*values["second"])

    has_ids = data.id_field and form != "scored"
    ids = integers(source, data.id_field) if has_ids else np.arange(len(source), dtype=np.int32)
    labels = integers(source, data.label_field) if form == "labels" else None
    scores = None
    if form == "scored":
        scores = np.asarray(column(source, data.score_field)[0], np.float64)
    return Examples(values, ids, labels, scores, mask)


def _filled_groups(groups: list[Any], places: list[str]):
    """Groups as one list, each filled up by its first member to the size of the largest; and which are real, [N, m]."""
    for group, place in zip(groups, places, strict=True):
        if isinstance(group, str) or not hasattr(group, "__len__") or not len(group):
            raise UserError(f"{place}: its partners must be a list with at least one entry, not {str(group)[:40]!r}")
    size = max(map(len, groups))
    mask = np.arange(size) < np.array([len(group) for group in groups])[:, None]
    members = [member for group in groups for member in [*group, *[group[0]] * (size - len(group))]]
    return (members, [place for place in places for _ in range(size)]), mask


def inputs_of(towers: Towers, examples: Examples) -> dict[str, dict[str, np.ndarray]]:
    """What the encoders read, with the examples in front (and then the members of a group)."""
    found = {side: towers[side].inputs(*values) for side, values in examples.values.items()}
    if examples.mask is not None:
        shape = examples.mask.shape
        found["second"] = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found["second"])
    return found


def take(arrays: Any, rows) -> Any:
    return jax.tree.map(lambda x: x[np.asarray(rows)], arrays)
