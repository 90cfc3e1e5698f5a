"""What the benchmarks share: sides in worker processes, calls in turns, tables.

A side of a comparison is a class whose methods take and return JSON. It lives in a worker process of its own, with its
own interpreter, warm, and idle while the other side runs, so that libraries that cannot be installed next to JAX can be
compared with it. Arrays go from side to side as .npz files in a temporary folder.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent


class Call(NamedTuple):
    value: Any
    seconds: float  # wall
    cpu_seconds: float  # of the worker's threads
    others: float  # share of the machine's cores that other processes used meanwhile; NaN where not known


class Worker:
    """A side in its own process. Raises RuntimeError with the side's traceback if a call fails."""

    def __init__(
        self, target: str, *, python: str = sys.executable, environment: Mapping[str, str] | None = None, **options
    ):
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", target, json.dumps(options)],
            cwd=ROOT,
            # On a GPU the sides share its memory, so none takes more than it needs.
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | dict(environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._answer()

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a benchmark worker ended with code {self._process.wait()} and without an answer")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"a benchmark worker failed:\n{answer['error']}")
        return answer

    def timed(self, method: str, **arguments) -> Call:
        before = _busy_seconds()
        self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        others = (_busy_seconds() - before - answer["cpu_seconds"]) / (answer["seconds"] * os.cpu_count())
        return Call(answer["value"], answer["seconds"], answer["cpu_seconds"], max(others, 0.0))

    def call(self, method: str, **arguments) -> Any:
        return self.timed(method, **arguments).value


def torch_device() -> str:
    """Where the torch sides compute: on the GPU if there is one, as JAX does."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _busy_seconds() -> float:
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return float("nan")
    user, nice, system, _idle, _wait, interrupts, soft, *_ = map(int, fields)
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def in_turns(sides: Mapping[str, Callable[[], Call]], rounds: int) -> dict[str, list[Call]]:
    """Each side once per round, one after the other: A B A B. The sides must be warm."""
    calls: dict[str, list[Call]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            calls[name].append(run())
    return calls


class Summary(NamedTuple):
    seconds: float  # medians
    cpu_seconds: float
    others: float
    count: int


def summarise(calls: Sequence[Call]) -> Summary:
    return Summary(*(statistics.median(values) for values in list(zip(*calls, strict=True))[1:]), len(calls))


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    texts = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    for row in texts:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def timing_row(name: str, summary: Summary, *extra: str) -> list[str]:
    return [name, f"{summary.seconds:.3f} s", f"{summary.cpu_seconds:.2f}", f"{summary.others:.0%}", *extra]


TIMING = ("", "wall", "cpu-s", "others")


def print_target(what: str, measured: float, limit: float, unit: str, *, at_most: bool = True) -> None:
    met = measured <= limit if at_most else measured >= limit
    relation = "at most" if at_most else "at least"
    print(f"  {'met   ' if met else 'MISSED'} {what}: {measured:.3g} {unit} (target: {relation} {limit:g} {unit})")


def parser(description: str, rounds: int) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--peer-python", default=sys.executable, help="interpreter that has torch, transformers and trl")
    made.add_argument(
        "--rounds", type=int, default=rounds, help="timed calls of each side, in turns (default %(default)s)"
    )
    made.add_argument(
        "--priority", action="store_true", help="run the workers before other processes (needs the right to)"
    )
    return made


def has_peer(python: str, *packages: str) -> bool:
    """Whether the other interpreter has the packages; says so if it has not."""
    code = f"import importlib.util as u, sys; sys.exit(any(u.find_spec(p) is None for p in {packages!r}))"
    if subprocess.run([python, "-c", code], check=False).returncode == 0:
        return True
    print(f"  {python} lacks one of {', '.join(packages)}: our side only (see --peer-python)")
    return False


def print_machine() -> None:
    """CPU, cores, GPU and the versions of what runs here, for the record."""
    from importlib import metadata

    import jax

    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
        flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
        model += "".join(f", {flag}" for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags)
    if jax.default_backend() != "cpu":
        model += f"; {jax.device_count()} x {jax.devices()[0].device_kind}"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "optax"))
    print(f"  {model}; {os.cpu_count()} cores; Python {platform.python_version()}; {versions}")


def export_model(folder: str) -> None:
    """The embedded SmolLM2-135M-Instruct as a Hugging Face folder in float32: the same numbers for the other side."""
    from jaxalign.models.loading import EMBEDDED, load
    from jaxalign.models.safetensors_io import save_folder

    model = load(EMBEDDED)
    eos = model.tokenizer.eos_ids[0]
    extra = dict(bos_token_id=model.tokenizer.bos_id, eos_token_id=eos, pad_token_id=eos)
    save_folder(folder, model.config, model.params, dtype="float32", extra=extra)
    model.tokenizer.save(folder)
