"""Comparisons of one piece of work between sides: that they compute the same, then their times in turns, and memory.

A side is (class, options): `Jax` is ours and runs here, any other class runs in the interpreter with the peer.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import common

Sides = Mapping[str, tuple[str, dict]]


@contextlib.contextmanager
def started(module: str, sides: Sides, arguments) -> Iterator[dict[str, common.Worker]]:
    """A worker for every side, closed at the end."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(
                common.Worker(
                    f"{module}:{kind}",
                    python=sys.executable if kind == "Jax" else arguments.peer_python,
                    priority=arguments.priority,
                    **options,
                )
            )
            for name, (kind, options) in sides.items()
        }


def timed_in_turns(workers: Mapping[str, common.Worker], rounds: int) -> dict[str, common.Summary]:
    sides = {name: (lambda worker=worker: worker.timed("run")) for name, worker in workers.items()}
    return {name: common.summarise(calls) for name, calls in common.in_turns(sides, rounds).items()}


class Measured(NamedTuple):
    """By side: times; bytes of the compiler's temporaries (ours alone); growth of the process's peak memory."""

    times: dict[str, common.Summary]
    temporary: dict[str, int]
    growth: dict[str, int]


def compare_values(title: str, module: str, sides: Sides, truth: Mapping[str, np.ndarray], arguments) -> Measured:
    """Prints how far each side is from `truth`, then its time and memory.

    A side has `save(path)`, which writes the arrays of `truth` as .npz, and `run()`; ours also `temporary_bytes()`.
    """
    with started(module, sides, arguments) as workers:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for name, worker in workers.items():
                path = str(Path(folder) / "values.npz")
                worker.call("save", path=path)
                with np.load(path) as found:
                    errors = [np.abs(found[key] - truth[key]).max() / np.abs(truth[key]).max() for key in truth]
                rows.append([name, *(f"{error:.1e}" for error in errors)])
        print(f"{title}: largest error against float64, in units of the largest value")
        common.print_table(("", *truth), rows)
        growth = {}
        for name, worker in workers.items():
            worker.call("memory_start")
            worker.call("run")
            growth[name] = worker.call("memory_growth")
        times = timed_in_turns(workers, arguments.rounds)
        temporary = {name: workers[name].call("temporary_bytes") for name in sides if sides[name][0] == "Jax"}
    print(f"{title}: time (medians of {arguments.rounds}) and memory")
    rows = []
    for name, summary in times.items():
        stated = f"{temporary[name] / 1e6:.0f} MB" if name in temporary else "-"
        rows.append(common.timing_row(name, summary, f"{growth[name] / 1e6:.0f} MB", stated))
    common.print_table((*common.TIMING, "peak growth", "compiler's temporaries"), rows)
    return Measured(times, temporary, growth)


def compare_steps(module: str, sides: Mapping[str, tuple[str, dict]], arguments, tokens: int) -> None:
    """Losses, times and memory of a train step of several sides; ours is "jaxalign", of class `Jax`, and comes first.

    A side has `run() -> loss`, ours also `temporary_bytes()`. Targets: 1.5x the speed of each other side in 40 % of its
    memory beyond what it holds between steps.
    """
    with started(module, sides, arguments) as workers:
        losses, memory = {}, {}
        for name, worker in workers.items():
            losses[name] = [worker.call("run")]
            worker.call("memory_start")  # the moments of the optimizer exist by now
            losses[name].append(worker.call("run"))
            memory[name] = worker.call("memory_growth")
        common.print_table(
            ("loss", "first step", "second step"),
            [[name, *(f"{loss:.4f}" for loss in some)] for name, some in losses.items()],
        )
        found = timed_in_turns(workers, arguments.rounds)
        temporary = workers["jaxalign"].call("temporary_bytes")
        rows = []
        for name, summary in found.items():
            stated = f"{temporary / 1e6:.0f} MB" if name == "jaxalign" else "-"
            rate = f"{tokens / summary.seconds:.0f}"
            rows.append(common.timing_row(name, summary, rate, f"{memory[name] / 1e6:.0f} MB", stated))
        common.print_table((*common.TIMING, "tokens/s", "peak growth", "compiler's temporaries"), rows)
        for name in list(sides)[1:]:
            ratio = found[name].seconds / found["jaxalign"].seconds
            common.print_target(f"speed against {name}", ratio, 1.5, "x", at_most=False)
            common.print_target(f"temporary memory against {name}", 100 * temporary / memory[name], 40, "%")
