"""The arms of a comparison: each run once, in a process of its own, and what it gives."""

import importlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jaxalign.errors import UserError

STUDY_FILE = "study.json"


class Run(NamedTuple):
    """What one finished run gives a comparison."""

    value: float
    scores: list[float] | None  # by question, where the metric is an evaluation


def read_metric(workdir: Path, metric: str, last_steps: int) -> Run:
    """`metric` of a finished run: an evaluation after training, else the mean of its last logged values.

    Raises UserError, with what there is: no such metric.
    """
    from jaxalign.training import report
    from jaxalign.training.writers import METRICS_FILE, read_rows

    evaluations = {e["name"]: e for e in report.read_summary(workdir).get("evaluations", [])}
    if "after" in evaluations.get(metric, {}):
        return Run(evaluations[metric]["after"]["value"], report.read_scores(workdir).get(metric, {}).get("after"))
    rows = read_rows(workdir / METRICS_FILE)
    values = [row[metric] for row in rows if row.get(metric) is not None]
    if not values:
        there = [*evaluations, *dict.fromkeys(name for row in rows for name in row)]
        raise UserError(f"{workdir} has no metric {metric!r}; it has {', '.join(map(repr, there))}")
    return Run(float(np.mean(values[-last_steps:])), None)


def train(spec: str, overrides: Sequence[str], seed: int, workdir: Path, *, say: bool = True) -> None:
    """One run, unless it is finished already, which is told if `say`. Raises UserError if it fails."""
    from jaxalign.training import report

    def finished() -> bool:
        return report.read_summary(workdir).get("status") == "finished"

    changes = [f"--config.{text}" for text in (f"seed={seed}", *overrides)]
    if finished():
        _check_same(report.read_summary(workdir)["config"], spec, changes, workdir)
        if say:
            print(f"  {workdir}: finished before", flush=True)
        return
    in_process("experiments.run", [f"--config={spec}", f"--workdir={workdir}", *changes], workdir, finished)


def _check_same(stored: Mapping[str, Any], spec: str, changes: Sequence[str], workdir: Path) -> None:
    """Raises UserError: the finished run in `workdir` had another config. Keys that only one of them has may be new."""
    from jaxalign.training import configuration

    config = configuration.load_config(spec)
    configuration.apply_overrides(config, changes)
    pairs = configuration.differences(stored, config)
    different = {key: pair for key, pair in pairs.items() if key != "workdir" and "absent" not in pair}
    if different:
        text = "; ".join(f"{key}: {there!r} there, {now!r} now" for key, (there, now) in different.items())
        raise UserError(f"{workdir} holds a finished run of another config ({text}); give another --workdir")


def in_process(module: str, options: Sequence[str], workdir: Path, finished: Callable[[], bool]) -> None:
    """`python -m module options` with its output kept in `workdir`. Raises UserError unless it ends `finished`."""
    print(f"  {shlex.join(['python', '-m', module, *options])}", flush=True)
    workdir.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    command = [sys.executable, "-m", module, *options]
    with open(workdir / "output.txt", "a") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode or not finished():
        tail = " / ".join((workdir / "output.txt").read_text().splitlines()[-2:])
        raise UserError(f"the run in {workdir} ended with code {done.returncode}: {tail} (all of it: output.txt there)")
    print(f"    {time.perf_counter() - began:.0f} s", flush=True)


def start_model(start, workdir: Path) -> Path:
    """The folder of the model that one run in `workdir` trained; both are made unless they are there."""
    model = workdir / "model"
    train(start.config, start.overrides, 0, workdir, say=False)
    if not model.exists():
        in_process("experiments.export", [f"--checkpoint={workdir}", f"--to={model}"], workdir, model.exists)
    return model


def run_study(arm, seed: int, workdir: Path) -> dict[str, float]:
    """The metrics of one setting of a study and seed, unless they are there already."""
    place = workdir / STUDY_FILE
    if place.exists():
        print(f"  {workdir}: finished before", flush=True)
        return json.loads(place.read_text())
    print(f"  {arm.study}: {arm.setting}, seed {seed}", flush=True)
    began = time.perf_counter()
    metrics = {name: float(value) for name, value in study_of(arm).run(arm.setting, seed).items()}
    workdir.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_suffix(".part")
    unfinished.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(place)
    print(f"    {time.perf_counter() - began:.0f} s", flush=True)
    return metrics


def study_of(arm) -> ModuleType:
    """The module of a study. Raises UserError: there is none of that name, or it has no such setting."""
    try:
        module = importlib.import_module(arm.study)
    except ModuleNotFoundError as error:
        if error.name not in (arm.study, arm.study.rpartition(".")[0]):
            raise
        raise UserError(f"there is no study {arm.study!r}; studies are the modules of experiments/studies") from error
    if arm.setting not in module.SETTINGS:
        raise UserError(f"{arm.study} has no setting {arm.setting!r}; it has {', '.join(module.SETTINGS)}")
    return module


def results(claim, name: str, seed: int, workdir: Path, metrics: Iterable[str]) -> dict[str, Run]:
    """Each of `metrics` of one arm and seed, which is run unless it was. Raises UserError."""
    arm, place = claim.arms[name], workdir / name / f"seed{seed}"
    if "study" not in arm:
        overrides = list(arm.overrides)
        if arm.start:
            overrides.append(f"model.path={start_model(claim.starts[arm.start], workdir / 'starts' / arm.start)}")
        train(arm.config, overrides, seed, place)
        return {metric: read_metric(place, metric, claim.last_steps) for metric in metrics}
    found = run_study(arm, seed, place)
    for metric in metrics:
        if metric not in found:
            raise UserError(f"{arm.study} gives no metric {metric!r}; it gives {', '.join(map(repr, found))}")
    return {metric: Run(found[metric], None) for metric in metrics}
