"""A trace of a few steps, that TensorBoard (its profile plugin) and Perfetto open."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxalign.errors import UserError


class Profiler:
    """Traces the steps named by `steps`: "3" or "3-5" (counted from 1, both ends included); "" traces nothing.

    The first step after a start compiles, so it is rarely the one to look at. One trace is written to `folder` (the
    newest `plugins/profile/*/` below it), when the last of the steps is done, or at `close()` if the run ends before.

    Raises UserError: `steps` is of another form.
    """

    def __init__(self, steps: str, folder: str | Path):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", steps)
        if steps and (not found or int(found[2] or found[1]) < int(found[1]) or int(found[1]) < 1):
            raise UserError(f"config.profile={steps!r} is no range of steps; give e.g. '3' or '3-5'")
        self.folder = Path(folder)
        self._first, self._last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        self._running = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the step `number`, counted from 1."""
        if self._first <= number <= self._last and not self._running:
            jax.profiler.start_trace(str(self.folder))
            self._running = True
        with jax.profiler.StepTraceAnnotation("step", step_num=number) if self._running else contextlib.nullcontext():
            yield
        if number >= self._last:
            self.close()

    def close(self) -> None:
        """Ends and writes a trace that is under way."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
