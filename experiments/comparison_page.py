"""What a comparison found, for people and for programs: lines, an HTML page, strict JSON."""

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np


def strict(value: Any) -> Any:
    """With None for numbers that are not finite, such as the interval of one seed: JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(record: dict[str, Any]) -> list[str]:
    """Lines for people: every arm's values, every expectation's difference and verdict."""
    lines = []
    for metric, arms in record["values"].items():
        lines.append(metric)
        width = max(map(len, arms))
        for name, values in arms.items():
            shown = "  ".join(f"{value:.4g}" for value in values)
            lines.append(f"  {name:<{width}}  mean {np.mean(values):.4g}   by seed  {shown}")
    for result in record["results"]:
        lines.append(f"{result['expected']} ({result['metric']}): {result['verdict']}")
        lines.append(
            f"  difference {result['difference']:+.4g} [{result['low']:+.4g}, {result['high']:+.4g}], "
            f"{result['interval']}, p = {result['p_value']:.3g}"
        )
    return lines


def write_page(record: dict[str, Any], path: Path) -> None:
    """The record as an HTML page with the intervals drawn."""
    from jaxalign.training import charts, report

    rows = []
    ends = [bound for r in record["results"] for bound in (r["low"], r["high"], 0.0) if np.isfinite(bound)]
    for result in record["results"]:
        drawn = [("after", result["difference"], result["low"], result["high"])] if np.isfinite(result["low"]) else []
        plot = charts.interval_plot(drawn, min(ends), max(ends)) if drawn else ""
        cells = [result["expected"], result["metric"], f"{result['difference']:+.4g}", result["verdict"]]
        rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells) + f"<td>{plot}</td>")
    head = "".join(f"<th>{name}</th>" for name in ("expected", "metric", "difference", "verdict", "95 % interval"))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    sections = [
        f"<header><h1>{escape(record['claim'])}</h1><p class='lead'>{escape(record['statement'])}</p></header>",
        f'<div class="card wide"><table><tr>{head}</tr>{body}</table></div>',
        f'<h2>Values</h2><div class="card"><pre>{escape(chr(10).join(table(record)))}</pre></div>',
        f'<h2>Command</h2><div class="card"><pre>{escape(record["command"])}</pre></div>',
    ]
    path.write_text(report.page(record["claim"], sections), encoding="utf-8")
