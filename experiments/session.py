"""What surrounds the steps of every experiment: its folder, resuming, what is printed and logged, stopping, the report.

with Session(config, workdir) as session:
    session.announce({"model": ..., "data": ...}, mesh)
    state, start = session.restore(abstract_state) or (fresh_state, 0)
    state, done = session.fit(state, advance, start=start, data_state=..., evaluate=...)
    session.finish(done)
"""

import contextlib
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.evaluation.intervals import bootstrap_ci
from jaxalign.training import configuration, report
from jaxalign.training.checkpoints import Checkpointer
from jaxalign.training.loop import Advance, fit
from jaxalign.training.mesh import check_agreement, initialize_distributed
from jaxalign.training.profiling import Profiler
from jaxalign.training.progress import Progress, format_duration, process_started_at, startup_summary
from jaxalign.training.signals import stop_on_signals
from jaxalign.training.writers import CompletionsWriter, make_writer


class Session(contextlib.AbstractContextManager):
    """One run in one folder. Raises UserError if the folder belongs to another config or another live process.

    Attributes:
      latest: number of steps in the newest checkpoint, None for a fresh run.
      is_main: whether this process prints and writes (the first of several).
    """

    def __init__(self, config, workdir: str | Path):
        self.config, self.workdir = config, Path(workdir)
        initialize_distributed(config.get("distributed"))
        self.is_main = jax.process_index() == 0
        shared = {
            key: value for key, value in configuration.flatten(config).items() if not key.startswith("distributed.")
        }
        check_agreement("config", shared)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._cleanup = contextlib.ExitStack()
        self.checkpointer = Checkpointer(
            self.workdir / "checkpoints",
            config=config,
            keep=config.train.keep,
            asynchronous=config.train.save_behind,
        )
        self._cleanup.callback(self.checkpointer.close)
        self.latest = max(self.checkpointer.steps(), default=None)
        self.checkpointer.check_config()
        self._evaluations: dict[str, dict] = {}
        self._scores: dict[str, dict[str, list[float]]] = {}  # what the evaluations are means of
        self._facts: dict[str, str] = {}
        self._progress: Progress | None = None
        self._done = 0
        self.stopped = False

    def __exit__(self, *exception) -> None:
        self._cleanup.close()

    def enter(self, context):
        """Enters a context that ends with the session."""
        return self._cleanup.enter_context(context)

    def note(self, text: str) -> None:
        """A line of its own while the progress line is running."""
        if self._progress is not None:
            self._progress.note(text)

    def print(self, text: str) -> None:
        if self.is_main:
            print(text, flush=True)

    def announce(self, facts: Mapping[str, Any], mesh: jax.sharding.Mesh) -> None:
        """Prints the start-up summary (the model has had its own line by then) and keeps it for the report."""
        devices = jax.devices()
        axes = " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items())
        self._facts = {
            **facts,
            "steps": f"{self.config.train.steps}",
            "devices": f"{len(devices)} x {devices[0].device_kind} (mesh {axes}), {jax.process_count()} process(es)",
            "written to": f"{self.workdir}/",
        }
        self.print(startup_summary({name: fact for name, fact in self._facts.items() if name != "model"}))

    def restore(self, abstract_state: Any, check_data: Callable[[dict], None]):
        """(state, steps done) of the newest whole checkpoint, or None. `check_data` may refuse its data position."""
        restored = self.checkpointer.restore_latest(abstract_state)
        if restored is None:
            return None
        check_data(restored.data_state)
        self.latest = restored.step
        summary = report.read_summary(self.workdir)
        self._scores = report.read_scores(self.workdir)
        self._evaluations = {entry["name"]: entry for entry in summary.get("evaluations", [])}
        self.print(f"  resumed after step {restored.step} from {self.checkpointer.directory / str(restored.step)}")
        return restored.state, restored.step

    def fit(
        self,
        state: Any,
        advance: Callable[[Any, int], Advance],
        *,
        start: int,
        data_state: Callable[[int], dict],
        evaluate: Callable[[Any, int], Mapping[str, float]] | None = None,
    ) -> tuple[Any, int]:
        """Runs `jaxalign.training.loop.fit`, logging each step. Returns (state, steps done); see `stopped`.

        `evaluate(state, done)` gives metrics, which are logged as `eval/<name>`.
        """
        check_agreement("data", data_state(start))
        last = start if start else None
        stop = self._cleanup.enter_context(stop_on_signals())
        writer = completions = None
        if self.is_main:
            self._progress = Progress(self.config.train.steps, start_step=start)
            writer = make_writer(self.workdir, last_step=last)
            completions = CompletionsWriter(self.workdir, last_step=last)
            for piece in (writer, completions):
                self._cleanup.callback(piece.close)
            self._cleanup.callback(self._progress.close)
            writer.write_hparams(configuration.flatten(self.config))

        def log(done: int, metrics: Mapping[str, float], rows: Sequence[Mapping]) -> None:
            if not self.is_main:
                return
            writer.write_scalars(done, metrics)
            if rows:
                completions.write(done, rows)
                writer.write_texts(done, {"completions": _as_markdown(rows[:8])})
            self._progress.update(done, metrics)

        def evaluate_and_log(state, done: int) -> None:
            metrics = {f"eval/{name}": value for name, value in evaluate(state, done).items()}
            if self.is_main:
                writer.write_scalars(done, metrics)
                shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
                self.note(f"  step {done}: {shown}")

        if start < self.config.train.steps:  # what was measured after an earlier end is not what this run ends with
            for entry in self._evaluations.values():
                entry.pop("after", None)
        profiler = Profiler(self.config.profile, self.workdir / "profile")
        self._cleanup.callback(profiler.close)

        def traced(state, step: int) -> Advance:
            with profiler.step(step + 1):
                return advance(state, step)

        self._save_summary("running", start)
        state, done, self.stopped = fit(
            state,
            traced,
            start=start,
            train=self.config.train,
            workdir=self.workdir,
            checkpointer=self.checkpointer,
            log=log,
            stop=stop,
            data_state=data_state,
            evaluate=None if evaluate is None else evaluate_and_log,
        )
        self._done = done
        self.checkpointer.wait()
        if self.is_main:
            self._progress.close()
            writer.flush()
        return state, done

    def record(self, name: str, when: str, values: Sequence[float], unit: str | None = None) -> None:
        """Keeps an evaluation, "before" or "after": `values` one per question, rates unless `unit` says otherwise."""
        values = np.asarray(values)
        interval = bootstrap_ci(jax.random.key(0), values)
        self._scores.setdefault(name, {})[when] = values.tolist()
        entry = self._evaluations.setdefault(name, {"name": name} | ({} if unit is None else {"unit": unit}))
        entry[when] = {"value": interval.mean, "count": len(values), "step": self._done if when == "after" else 0}
        if not interval.degenerate:
            entry[when] |= {"low": interval.low, "high": interval.high}

    def has(self, name: str, when: str) -> bool:
        return when in self._evaluations.get(name, {})

    def measured(self, when: str) -> bool:
        """Whether there are evaluations of "before" or of "after" already (after a resume)."""
        return any(when in entry for entry in self._evaluations.values())

    def finish(self, done: int) -> None:
        """Prints the final table, writes summary and report, and says how to go on."""
        status = f"stopped after step {done}" if self.stopped else "finished"
        self._save_summary(status, done)
        if not self.is_main:
            return
        page = report.write_report(self.workdir)
        self.print("")
        for line in evaluation_table(list(self._evaluations.values())):
            self.print(f"  {line}")
        elapsed = format_duration(time.time() - process_started_at())
        self.print(f"  {status}: {done} steps, {elapsed} since the command was given")
        self.print(f"  report: {page}")
        self.print(f"  curves: tensorboard --logdir {shlex.quote(str(self.workdir / 'tensorboard'))}")
        if (self.workdir / "profile").exists():
            self.print(f"  trace: tensorboard --logdir {shlex.quote(str(self.workdir / 'profile'))}")
        for what, command in self._commands(done).items():
            self.print(f"  {what}: {command}")

    def _commands(self, done: int) -> dict[str, str]:
        command = configuration.launch_command()
        if command is None:
            return {}
        if self.stopped:
            return {"resume": command}
        flag = "--config.train.steps="
        words = [word for word in shlex.split(command) if not word.startswith(flag)]
        return {"train longer": shlex.join([*words, f"{flag}{2 * done}"])}

    def _save_summary(self, status: str, done: int) -> None:
        if not self.is_main:
            return
        report.write_scores(self.workdir, self._scores)
        report.write_summary(
            self.workdir,
            title=self.config.name,
            status=status,
            facts=self._facts,
            wall_seconds=time.time() - process_started_at(),
            evaluations=list(self._evaluations.values()),
            config=configuration.to_plain(self.config),
            environment=report.environment(),
            commands=self._commands(done),
        )


def evaluation_table(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of an aligned table: evaluation, before, after, change; rates in percent with their 95 % intervals."""

    def cell(entry, unit):
        if entry is None:
            return "-"
        scale, end = (100, " %") if unit is None else (1, f" {unit}")
        text = f"{scale * entry['value']:.4g}{end}"
        if "low" in entry:
            text += f" [{scale * entry['low']:.4g}, {scale * entry['high']:.4g}]"
        return text

    rows = [("evaluation", "before", "after", "change")]
    for evaluation in evaluations:
        unit, before, after = (evaluation.get(key) for key in ("unit", "before", "after"))
        change = "-"
        if before is not None and after is not None:
            gain = after["value"] - before["value"]
            change = f"{100 * gain:+.1f} points" if unit is None else f"{gain:+.4g} {unit}"
        count = (after or before)["count"]
        rows.append((f"{evaluation['name']} (n = {count})", cell(before, unit), cell(after, unit), change))
    if len(rows) == 1:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    def quoted(value: Any) -> str:
        return str(value).replace("|", "\\|").replace("\n", "<br>")

    head = "| prompt | completion | reward |\n| --- | --- | --- |\n"
    return head + "".join(
        f"| {quoted(row.get('prompt', ''))} | {quoted(row.get('completion', ''))} | {row.get('reward')} |\n"
        for row in rows
    )
