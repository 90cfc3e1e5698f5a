"""`report.html`: what a run did, on one page that needs nothing else.

Made from the files of the run's folder, so it can be rebuilt at any time: `metrics.jsonl` (curves),
`completions.jsonl` (samples) and `summary.json` (everything else). All keys of the summary are
optional:

  title            headline
  status           "finished", "interrupted", ...
  facts            {label: text}: model, weights, mesh, data, ...
  wall_seconds     length of the run
  evaluations      [{"name": ..., "before": E, "after": E}] with E = {"value", "low", "high",
                   "count"}; values are rates between 0 and 1 unless "unit" says otherwise
  config           the plain config
  environment      {package or machine part: version}
  commands         {what it does: command line}, for example {"resume": "python -m ..."}
"""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from jaxalign.training import charts
from jaxalign.training.configuration import flatten
from jaxalign.training.progress import format_duration
from jaxalign.training.writers import COMPLETIONS_FILE, METRICS_FILE, read_rows

SUMMARY_FILE = "summary.json"
SCORES_FILE = "scores.json"
REPORT_FILE = "report.html"
HEAT_MAPS_FILE = "heat_maps.json"
ENTANGLEMENT_FILE = "entanglement.html"
# Metrics shown first, in this order; the others follow in a fold.
_FIRST = (
    "reward/mean",
    "loss",
    "kl",
    "entropy",
    "completion_length",
    "grad_norm",
    "entanglement/cosine",
    "entanglement/both_down",
    "entanglement/log_prob_chosen",
    "entanglement/log_prob_rejected",
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def environment() -> dict[str, str]:
    """Versions and machine, for the summary. Starts JAX's backend if nothing has yet.

    Cores are those that this process may use: sums on a CPU are split over them, and so a run may end elsewhere on
    another number.
    """
    import jax

    devices = jax.devices()
    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        found[package] = importlib.metadata.version(package)
    found["devices"] = f"{len(devices)} x {devices[0].device_kind}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found["machine"] = f"{platform.system()} {platform.machine()}, {cores} cores"
    if os.environ.get("XLA_FLAGS"):
        found["XLA_FLAGS"] = os.environ["XLA_FLAGS"]
    return found


def write_summary(workdir: str | Path, **entries: Any) -> None:
    """Adds `entries` to `summary.json`; an entry of the same name is replaced."""
    path = Path(workdir) / SUMMARY_FILE
    summary = read_summary(workdir) | entries
    _write(path, json.dumps(summary, indent=2))


def read_summary(workdir: str | Path) -> dict[str, Any]:
    """The entries of `summary.json`; {} where there is none."""
    path = Path(workdir) / SUMMARY_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_scores(workdir: str | Path, scores: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Writes `scores.json`: by evaluation and moment ("before", "after") one number per question."""
    _write(Path(workdir) / SCORES_FILE, json.dumps(scores))


def read_scores(workdir: str | Path) -> dict[str, dict[str, list[float]]]:
    """What `write_scores` wrote; {} where there is nothing."""
    path = Path(workdir) / SCORES_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_heat_maps(workdir: str | Path, maps: Sequence[Mapping[str, Any]]) -> None:
    """Writes `heat_maps.json`, and `entanglement.html` with them and the curves `entanglement/...`.

    maps: each with a "title", "rows" and "columns" (texts), and "values" in [-1, 1].
    """
    workdir = Path(workdir)
    _write(workdir / HEAT_MAPS_FILE, json.dumps(list(maps)))
    metrics = read_rows(workdir / METRICS_FILE)
    names = dict.fromkeys(name for row in metrics for name in row if name.startswith("entanglement/"))
    curves = f'<div class="charts">{"".join(_figure(name, metrics) for name in names)}</div>'
    title = "Gradient entanglement"
    _write(
        workdir / ENTANGLEMENT_FILE, page(title, [f"<header><h1>{title}</h1></header>", curves, _heat_maps(workdir)])
    )


def _heat_maps(workdir: Path) -> str:
    """What `write_heat_maps` wrote."""
    path = workdir / HEAT_MAPS_FILE
    maps = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    figures = "".join(
        f'<figure class="card"><figcaption>{escape(m["title"])}</figcaption>'
        f"{charts.heat_map(m['values'], m['rows'], m['columns'], m['title'])}</figure>"
        for m in maps
    )
    head = "<h2>Cosines of token gradients: chosen (rows) and rejected (columns)</h2>"
    return f'{head}<div class="charts">{figures}</div>' if maps else ""


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def page(title: str, sections: Sequence[str]) -> str:
    """An HTML page in the style of the reports; empty sections are left out."""
    style = resources.files("jaxalign.training").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def write_report(workdir: str | Path) -> Path:
    """Writes `report.html` from the files of `workdir` and returns its path.

    Raises:
      ValueError: `workdir` has neither metrics nor a summary, so it is no run's folder.
    """
    workdir = Path(workdir)
    metrics = read_rows(workdir / METRICS_FILE)
    summary = read_summary(workdir)
    if not metrics and not summary:
        raise ValueError(f"{workdir} has neither {METRICS_FILE} nor {SUMMARY_FILE}: name the folder of a run")
    completions = read_rows(workdir / COMPLETIONS_FILE)
    title = summary.get("title", workdir.name)
    sections = [
        _header(title, summary),
        _tiles(metrics, summary),
        _evaluations(summary.get("evaluations", [])),
        _curves(metrics),
        _heat_maps(workdir),
        _samples(completions),
        _commands(summary.get("commands", {})),
        _definitions("Run", summary.get("facts", {})),
        _definitions("Environment", summary.get("environment", {})),
        _config(summary.get("config", {})),
    ]
    path = workdir / REPORT_FILE
    _write(path, page(title, sections))
    return path


def _header(title: str, summary: Mapping[str, Any]) -> str:
    status = summary.get("status")
    badge = ""
    if status:
        kind = "finished" if status == "finished" else "other"
        badge = f'<span class="badge {kind}">{escape(status)}</span>'
    lead = summary.get("facts", {}).get("model")
    line = f'<p class="lead">{escape(str(lead))}</p>' if lead else ""
    return f"<header><h1>{escape(title)}{badge}</h1>{line}</header>"


def _tiles(metrics: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    tiles = []
    for evaluation in summary.get("evaluations", [])[:1]:
        after = evaluation.get("after")
        if after:
            shown = _value(after["value"], evaluation.get("unit"))
            tiles.append((shown, f"{evaluation['name']}, after"))
    if metrics:
        tiles.append((f"{metrics[-1]['step']:,}", "steps"))
    if "wall_seconds" in summary:
        tiles.append((format_duration(summary["wall_seconds"]), "wall time"))
    for name, label in (
        ("tokens_per_second", "tokens/s, median"),
        ("seconds", "s per step, median"),
    ):
        values = sorted(row[name] for row in metrics if row.get(name) is not None)
        if values:
            tiles.append((charts.short(values[len(values) // 2]), label))
    cards = (
        f'<div class="card tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in tiles
    )
    return f'<div class="tiles">{"".join(cards)}</div>' if tiles else ""


def _value(value: float | None, unit: str | None) -> str:
    if value is None:
        return "not finite"
    return f"{100 * value:.1f} %" if unit is None else f"{charts.short(value)} {unit}".strip()


def _evaluations(evaluations: Sequence[Mapping[str, Any]]) -> str:
    if not evaluations:
        return ""
    rows = []
    for evaluation in evaluations:
        unit = evaluation.get("unit")
        cells, drawn = [], []
        for kind in ("before", "after"):
            entry = evaluation.get(kind)
            if not entry or entry.get("value") is None:
                cells.append("<td>not measured</td>")
                continue
            low, high = entry.get("low"), entry.get("high")
            detail = []
            if low is not None and high is not None:
                bounds = [_value(bound, None if unit is None else "") for bound in (low, high)]
                detail.append(" to ".join(bounds))
                drawn.append((kind, entry["value"], low, high))
            if entry.get("count"):
                detail.append(f"n = {entry['count']:,}")
            small = f"<br><small>{escape(', '.join(detail))}</small>" if detail else ""
            cells.append(f"<td>{escape(_value(entry['value'], unit))}{small}</td>")
        low = 0.0 if unit is None else min((row[2] for row in drawn), default=0.0)
        high = 1.0 if unit is None else max((row[3] for row in drawn), default=1.0)
        plot = charts.interval_plot(drawn, low, high) if drawn else ""
        rows.append(
            f"<tr><td>{escape(evaluation['name'])}</td>{''.join(cells)}{_change(evaluation, unit)}<td>{plot}</td></tr>"
        )
    head = "<tr><th>evaluation</th><th>before</th><th>after</th><th>change</th><th>intervals</th></tr>"
    return f'<h2>Before and after</h2><div class="card wide"><table>{head}{"".join(rows)}</table></div>'


def _change(evaluation: Mapping[str, Any], unit: str | None) -> str:
    before, after = (evaluation.get(kind) or {} for kind in ("before", "after"))
    if before.get("value") is None or after.get("value") is None:
        return "<td></td>"
    gain = after["value"] - before["value"]
    text = f"{100 * gain:+.1f} points" if unit is None else f"{gain:+.4g} {unit}".strip()
    kind = "up" if gain > 0 else "down" if gain < 0 else ""
    # Colour says better or worse only for rates, of which more is better.
    return f'<td class="gain {kind if unit is None else ""}">{escape(text)}</td>'


def _curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in metrics for name in row if name != "step"))
    if not names:
        return ""
    first = [name for name in _FIRST if name in names]
    first += [name for name in names if name.startswith("eval/") and name not in first]
    first = first or names[:6]
    rest = sorted(name for name in names if name not in first)
    page = f'<h2>Curves</h2><div class="charts">{"".join(_figure(n, metrics) for n in first)}</div>'
    if rest:
        figures = "".join(_figure(name, metrics) for name in rest)
        page += (
            f"<details><summary>{len(rest)} more metrics</summary>"
            f'<div class="charts" style="margin-top:14px">{figures}</div></details>'
        )
    return page


def _figure(name: str, metrics: Sequence[Mapping[str, Any]]) -> str:
    points = [(row["step"], row[name]) for row in metrics if name in row]
    steps, values = [step for step, _ in points], [value for _, value in points]
    last = "null" if values[-1] is None else charts.short(values[-1])
    return (
        f'<figure class="card"><figcaption>{escape(name)}<span>last {escape(last)}</span>'
        f"</figcaption>{charts.line_chart(steps, values, name)}</figure>"
    )


def _samples(rows: Sequence[Mapping[str, Any]], per_step: int = 5) -> str:
    """Completions of an early, a middle and the last step."""
    if not rows:
        return ""
    steps = sorted({row["step"] for row in rows})
    chosen = dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1]))
    rewards = [row["reward"] for row in rows if row.get("reward") is not None]
    low, high = (min(rewards), max(rewards)) if rewards else (0.0, 0.0)
    cards = []
    for step in chosen:
        at_step = [row for row in rows if row["step"] == step]
        # Spread over the step's rows: neighbours answer the same prompt.
        stride = max(len(at_step) // per_step, 1)
        shown = "".join(_sample(row, low, high) for row in at_step[::stride][:per_step])
        cards.append(f'<div class="card"><h3>step {step}</h3>{shown}</div>')
    return f'<h2>Completions</h2><div class="samples">{"".join(cards)}</div>'


def _sample(row: Mapping[str, Any], low: float, high: float) -> str:
    reward = row.get("reward")
    tone = ""
    if reward is not None and high > low:
        share = round(100 * (reward - low) / (high - low))
        tone = f' style="--tone: color-mix(in oklab, var(--good) {share}%, var(--bad))"'
    told = "not scored" if reward is None else f"reward {charts.short(reward)}"
    return (
        f'<div class="sample"{tone}><p class="prompt">{escape(str(row.get("prompt", "")))}</p>'
        f"<p>{escape(str(row.get('completion', '')))}</p>"
        f'<span class="reward">{escape(told)}</span></div>'
    )


def _commands(commands: Mapping[str, str]) -> str:
    if not commands:
        return ""
    blocks = (f"{escape(name)}<pre>{escape(line)}</pre>" for name, line in commands.items())
    return f'<h2>Commands</h2><div class="card">{"".join(blocks)}</div>'


def _definitions(title: str, items: Mapping[str, Any]) -> str:
    if not items:
        return ""
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in items.items())
    return f'<h2>{escape(title)}</h2><div class="card"><dl>{"".join(rows)}</dl></div>'


def _config(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in flatten(config).items())
    return (
        "<h2>Config</h2><div class='card'><details open><summary>every key</summary>"
        f"<pre>{escape(lines)}</pre></details></div>"
    )
