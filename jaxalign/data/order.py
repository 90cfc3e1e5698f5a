"""The order of examples is a pure function of (seed, position): the data position is one integer.

Nothing is consumed and nothing has to be replayed: resuming is a seek. The shuffle is grain's index
shuffle, a keyed bijection of the indices; each epoch has its own. The content of batch number
`position` does not depend on the number of processes, so a run may go on with another number of
them.
"""

import sys

import grain

from jaxalign.data.sources import Source
from jaxalign.errors import UserError


class Batches:
    """`batches[position]` is this process's part of that global batch, a list of examples.

    The examples of all epochs stand in one line; batch `position` is the examples `position *
    batch_size` and following of it, and process p of n gets the p-th of n equal contiguous parts
    (the layout of `jax.make_array_from_process_local_data` on a data-sharded batch axis). Each
    example comes exactly once an epoch, whatever the batch size; a batch may span two epochs. With
    a finite number of epochs, what is left over after the last whole batch is not used.

    Args:
        source: index-addressable examples (`jaxalign.data.sources`).
        batch_size: examples of the global batch.
        seed: 0 <= seed < 2**32.
        shuffle: False keeps the order of the source, e.g. for evaluation.
        epochs: None is without end.
        process_index, process_count: as of `jax.process_index()`, `jax.process_count()`.

    Raises UserError: empty source, seed out of range, a batch that the processes cannot share
    equally, fewer examples in all epochs than one batch.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if not len(source):
            raise UserError("the data source has no examples")
        if not 0 <= seed < 2**32:
            raise UserError(f"the data seed {seed} must be in [0, 2**32)")
        if batch_size < 1 or batch_size % process_count:
            raise UserError(
                f"batch size {batch_size} cannot be shared by {process_count} process(es) equally; "
                "use a positive multiple"
            )
        if not 0 <= process_index < process_count:
            raise UserError(f"process index {process_index} is not below the process count {process_count}")
        self.batch_size = batch_size
        self._local_size = batch_size // process_count
        self._part = process_index
        self._identity = {
            "seed": seed,
            "shuffle": shuffle,
            "batch_size": batch_size,
            "source_length": len(source),
        }

        total = sys.maxsize if epochs is None else len(source) * epochs
        self._length = total // batch_size
        if not self._length:
            raise UserError(
                f"{len(source)} examples and {epochs} epoch(s) do not fill one batch of "
                f"{batch_size}; lower the batch size"
            )

        def ordered(examples):
            line = grain.MapDataset.source(examples)
            if shuffle:
                line = line.shuffle(seed=seed)
            return line.repeat(epochs)

        def own_part(line):
            parts = line.batch(self._local_size, drop_remainder=True, batch_fn=list)
            # The slice ends with the last whole batch: every process sees the same number of
            # batches.
            return parts[process_index : self._length * process_count : process_count]

        self._examples = own_part(ordered(source))
        self._indices = ordered(range(len(source)))

    def __len__(self) -> int:
        """Number of batches; `sys.maxsize // batch_size` without an end."""
        return self._length

    def __getitem__(self, position: int) -> list:
        self._check(position)
        return self._examples[position]

    def indices(self, position: int) -> list[int]:
        """Source indices of the examples of `batches[position]`."""
        self._check(position)
        start = position * self.batch_size + self._part * self._local_size
        return [int(self._indices[start + offset]) for offset in range(self._local_size)]

    def _check(self, position: int) -> None:
        # grain itself would wrap around silently
        if not 0 <= position < self._length:
            raise IndexError(f"batch {position} of {self._length}")

    def __iter__(self):
        return BatchIterator(self)


class BatchIterator:
    """Goes through `Batches` from a position that can be read, saved and set.

    `get_state()` is a dict of plain numbers for the checkpoint's JSON; `set_state` takes it back.
    """

    def __init__(self, batches: Batches, position: int = 0):
        self._batches = batches
        self.position = position

    def __iter__(self):
        return self

    def __next__(self) -> list:
        if self.position >= len(self._batches):
            raise StopIteration
        batch = self._batches[self.position]
        self.position += 1
        return batch

    def get_state(self) -> dict:
        """The number of batches handed out, and the settings under which it means the same."""
        return {"position": self.position} | self._batches._identity

    def set_state(self, state: dict) -> None:
        """Continues where `get_state` was taken.

        Raises UserError if seed, shuffling, batch size or number of examples differ: the order
        would be another one, some examples would come twice and others never.
        """
        for key, value in self._batches._identity.items():
            if state.get(key) != value:
                raise UserError(
                    f"the saved data position belongs to data with {key}={state.get(key)!r}, "
                    f"now {key}={value!r}; restore the old setting or start a new run directory"
                )
        self.position = int(state["position"])
