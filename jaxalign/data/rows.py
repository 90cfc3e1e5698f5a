"""The base of sources whose examples are all in memory."""

from collections.abc import Iterable, Mapping
from typing import Any


class Rows:
    """A source of rows: `source[i]` is a dict of its own, so that whoever gets it may change it.

    Args:
      rows: the examples.
      name: of the source and its part, e.g. "boolq (train)"; `where` says it with `unit` and number of the row.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], name: str, unit: str = "row"):
        self._rows, self._name, self._unit = list(rows), name, unit

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        return dict(self._rows[index])

    def where(self, index: int) -> str:
        return f"{self._name} {self._unit} {index}"
