"""Metric writers: `metrics.jsonl`, TensorBoard and several at once, behind clu's writer interface.

The interface is the part of clu's `MetricWriter` that training uses: `write_scalars(step, scalars)`,
`write_texts(step, texts)`, `write_hparams(hparams)`, `flush()`, `close()`. clu's own classes need
TensorFlow to be imported at all, so they serve only where it is installed; else tensorboardX writes
the same event files.

Resuming: rows after the restored step are removed, so no step appears twice. One process writes
(process 0 of several); the caller sees to that.
"""

import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

METRICS_FILE = "metrics.jsonl"
COMPLETIONS_FILE = "completions.jsonl"


class Writer(Protocol):
    """What every writer offers. Several calls for one step may bring different names."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None: ...

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None: ...

    def write_hparams(self, hparams: Mapping[str, Any]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file that a writer here made; [] if there is none.

    A last line without its newline was cut off by a crash and is left out.
    """
    path = Path(path)
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines() if line]


def keep_rows(path: str | Path, last_step: int | None) -> None:
    """Prepares a JSONL file for a run that starts after `last_step`.

    Rows with a larger `step`, and a torn last line, are removed (through a temporary file, so a crash
    leaves the old file or the new one). `last_step=None` is a run from the start: an earlier file is
    moved aside to `<name>.previous`.
    """
    path = Path(path)
    if not path.exists():
        return
    if last_step is None:
        if path.stat().st_size:
            path.replace(path.with_name(path.name + ".previous"))
        return
    rows = [row for row in read_rows(path) if row["step"] <= last_step]
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text("".join(_line(row) for row in rows), encoding="utf-8")
    temporary.replace(path)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _number(value: Any) -> int | float | None:
    """A Python number of any scalar; None for NaN and infinities, for which JSON has no word."""
    if isinstance(value, bool | int):
        return int(value)
    if getattr(value, "ndim", 0):
        raise ValueError(f"a scalar metric has shape {value.shape}: reduce it to one number first")
    item = value.item() if hasattr(value, "item") else value
    if isinstance(item, int):
        return int(item)
    return float(item) if math.isfinite(item) else None


class JsonlWriter:
    """`metrics.jsonl`: one line per step, `{"step": 3, "loss": 0.7, ...}`, NaN written as null.

    A line is on its way to the disk when `write_scalars` returns: it is written by a single system
    call. Further calls for the same step write the line again in place, with the names of both.
    """

    def __init__(self, workdir: str | Path, last_step: int | None = None):
        self.path = Path(workdir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        keep_rows(self.path, last_step)
        rows = read_rows(self.path)
        self._row: dict[str, Any] = rows[-1] if rows else {"step": -1}
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._end = os.fstat(self._file).st_size
        self._start = self._end - len(_line(self._row).encode()) if rows else 0

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Adds scalars to the line of `step`. Steps may not go back; ValueError if they do."""
        step = int(step)
        if step < self._row["step"]:
            raise ValueError(f"{self.path}: step {step} comes after step {self._row['step']}; steps must not go back")
        if step > self._row["step"]:
            self._row = {"step": step}
            self._start = self._end
        self._row |= {name: _number(value) for name, value in scalars.items()}
        line = _line(self._row).encode()
        written = os.pwrite(self._file, line, self._start)
        if written < len(line):
            raise OSError(f"{self.path}: only a part of a line could be written; is the disk full?")
        self._end = self._start + len(line)
        os.ftruncate(self._file, self._end)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Texts go to `completions.jsonl` and TensorBoard; this file holds numbers only."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """The config is kept whole in `summary.json`; this file holds numbers only."""

    def flush(self) -> None:
        """Asks the system to put everything on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


class TensorBoardXWriter:
    """TensorBoard event files by tensorboardX. On resume, later events are marked as replaced."""

    def __init__(self, folder: str | Path, last_step: int | None = None):
        from tensorboardX import SummaryWriter

        purge = None if last_step is None else last_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            number = _number(value)
            # What is not finite stays out: TensorBoard has no point for it, metrics.jsonl has null.
            if number is not None:
                self._writer.add_scalar(name, number, int(step))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._writer.add_text(name, text, int(step))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        rows = "".join(f"| {name} | `{value}` |\n" for name, value in hparams.items())
        self._writer.add_text("config", f"| key | value |\n| --- | --- |\n{rows}", 0)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MultiWriter:
    """Passes every call to each of `writers`, in order."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for writer in self._writers:
            writer.write_texts(step, texts)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write_hparams(hparams)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class CompletionsWriter:
    """`completions.jsonl`: one line per shown completion, with at least `step`.

    The report reads `prompt`, `completion` and `reward` of a row; any other fields are kept as they
    are. The rows of one call are written by one system call.
    """

    def __init__(self, workdir: str | Path, last_step: int | None = None):
        self.path = Path(workdir) / COMPLETIONS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        keep_rows(self.path, last_step)
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        plain = [{"step": int(step)} | {k: _field(v) for k, v in row.items()} for row in rows]
        data = "".join(_line(row) for row in plain).encode()
        if os.write(self._file, data) < len(data):
            raise OSError(f"{self.path}: only a part of a line could be written; is the disk full?")

    def close(self) -> None:
        os.close(self._file)


def _field(value: Any) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    return _number(value)


def tensorboard_writer(folder: str | Path, last_step: int | None = None) -> Writer:
    """clu's TensorBoard writer where TensorFlow is installed, else tensorboardX.

    clu's has no way to mark events as replaced: after a resume TensorBoard may show the steps after
    the checkpoint twice there. `metrics.jsonl` never does.
    """
    if importlib.util.find_spec("tensorflow") is not None:
        from clu import metric_writers

        return metric_writers.SummaryWriter(str(folder))
    return TensorBoardXWriter(folder, last_step)


def make_writer(workdir: str | Path, *, last_step: int | None = None, tensorboard: bool = True) -> MultiWriter:
    """The writers of a run: `metrics.jsonl` and, unless switched off, `tensorboard/` in `workdir`.

    Args:
      workdir: the run's folder; made if it is missing.
      last_step: the restored step, whose row is the last to stay; None for a run from the start.
      tensorboard: whether to write TensorBoard event files too.
    """
    writers: list[Writer] = [JsonlWriter(workdir, last_step)]
    if tensorboard:
        writers.append(tensorboard_writer(Path(workdir) / "tensorboard", last_step))
    return MultiWriter(writers)
