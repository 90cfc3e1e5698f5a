"""Batches of so many classes and so many examples of each, as metric learning wants them."""

from collections.abc import Sequence

import numpy as np

from jaxalign.errors import UserError


class ClassBatches:
    """`indices(position)` are the rows of that batch, classes x samples of them; a function of (seed, position).

    Classes are drawn anew for each batch, and of each class different examples (all of them, and some twice, if it has
    too few). Every process gets its contiguous part, as in `jaxalign.data.order.Batches`, whose state it shares.

    Args:
        labels: of all examples; negative: unknown, in no batch.
        classes, samples: of a batch.

    Raises UserError: fewer classes than a batch wants, or a batch that the processes cannot share equally.
    """

    def __init__(
        self,
        labels: Sequence[int],
        classes: int,
        samples: int,
        *,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        labels = np.asarray(labels)
        known = np.unique(labels[labels >= 0])
        self._rows = [np.flatnonzero(labels == label) for label in known]
        if classes < 1 or samples < 1 or len(known) < classes:
            raise UserError(
                f"batches of {classes} classes with {samples} examples each cannot be drawn from {len(known)} classes"
            )
        if classes * samples % process_count:
            raise UserError(
                f"batches of {classes} x {samples} examples cannot be shared by {process_count} processes equally"
            )
        self._classes, self._samples = classes, samples
        part = classes * samples // process_count
        self._part = slice(process_index * part, (process_index + 1) * part)
        self._identity = {"seed": seed, "classes": classes, "samples": samples, "source_length": len(labels)}

    def __len__(self) -> int:
        return 2**62

    def indices(self, position: int) -> list[int]:
        random = np.random.default_rng((self._identity["seed"], position))
        chosen = random.choice(len(self._rows), self._classes, replace=False)
        found = []
        for number in chosen:
            rows = self._rows[number]
            found.append(random.choice(rows, self._samples, replace=len(rows) < self._samples))
        return np.concatenate(found)[self._part].tolist()
