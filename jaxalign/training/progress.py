"""What a run prints: a summary when it starts, then one line that tells how it is going.

On a terminal the line is rewritten in place; in a log file there is one line per step.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

# metric name -> (shown as, format); in this order, and only those that a step has.
FIELDS = {
    "reward/mean": ("reward", "{:.3f}"),
    "loss": ("loss", "{:.4f}"),
    "kl": ("kl", "{:.4f}"),
    "completion_length": ("length", "{:.1f}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "tokens_per_second": ("tok/s", "{:,.0f}"),
    "rows_per_second": ("rows/s", "{:,.0f}"),
    "seconds": ("step", "{:.2f} s"),
}
_IMPORTED_AT = time.time()


def process_started_at() -> float:
    """Unix time at which this process was started (where /proc tells; else of this import)."""
    try:
        with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
            ticks = int(stat.read().rpartition(")")[2].split()[19])
            age = float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - age
    except (OSError, ValueError, IndexError):
        return _IMPORTED_AT


def format_duration(seconds: float) -> str:
    """`7 s`, `2 min 05 s`, `3 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def startup_summary(items: Mapping[str, Any]) -> str:
    """An aligned block `name   value` of what a run is made of; None values are left out."""
    shown = {name: str(value) for name, value in items.items() if value is not None}
    width = max((len(name) for name in shown), default=0)
    pad = "\n" + " " * (width + 4)
    return "\n".join(f"  {name:<{width}}  {text}".replace("\n", pad) for name, text in shown.items())


class Progress:
    """The line that tells where a run is.

    Args:
      total_steps: the step at which the run ends.
      start_step: the step it starts from (not 0 after a resume).
      stream: where to print; stderr by default, so that stdout can be piped.
      clock: seconds, for tests.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total = total_steps
        self._step = start_step
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._last = clock()
        self._seconds_per_step: float | None = None
        self._updates = 0
        self._tty = self._stream.isatty()
        self._line = ""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the state after `step` steps. The first step after a start says how long it took."""
        now = self._clock()
        took = (now - self._last) / max(step - self._step, 1)
        self._last, self._step = now, step
        self._updates += 1
        if self._updates == 1:
            since = format_duration(time.time() - process_started_at())
            self.note(f"  first step done {since} after the command was given")
        elif self._seconds_per_step is None:
            # The first step compiles; it says nothing about the others and is not counted.
            self._seconds_per_step = took
        else:
            self._seconds_per_step += 0.2 * (took - self._seconds_per_step)
        self._line = self._compose(metrics)
        if self._tty:
            columns = shutil.get_terminal_size().columns
            self._write("\r\x1b[2K" + self._line[: columns - 1])
        else:
            self._write(self._line + "\n")

    def _compose(self, metrics: Mapping[str, float]) -> str:
        width = len(str(self._total))
        parts = [f"{self._step:>{width}}/{self._total}"]
        if self._tty:
            done = round(16 * self._step / max(self._total, 1))
            parts[0] += " " + "━" * done + "─" * (16 - done)
        for name, (label, form) in FIELDS.items():
            if name in metrics:
                parts.append(f"{label} {form.format(float(metrics[name]))}")
        if self._step < self._total and self._seconds_per_step is not None:
            left = format_duration(self._seconds_per_step * (self._total - self._step))
            parts.append(f"{left} left")
        return "  ".join(parts)

    def note(self, text: str) -> None:
        """Prints a line of its own; on a terminal the progress line stays below it."""
        if self._tty:
            self._write(f"\r\x1b[2K{text}\n{self._line}")
        else:
            self._write(f"{text}\n")

    def close(self) -> None:
        """Ends the line on a terminal, so that what is printed next starts on a new one."""
        if self._tty and self._line:
            self._write("\n")
        self._line = ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
