"""Line charts, interval plots and heat maps as inline SVG text, coloured by the page's style sheet."""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 520, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 30
_MOST_POINTS = 400


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that lie in [low, high]."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= 0.75 * rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def short(value: float) -> str:
    """A number in few characters: `0.725`, `12.4k`, `1e-05`."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e9 or size < 1e-3:
        return f"{value:.2g}"
    for limit, letter in ((1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e6 if letter == 'M' else 1e3):.3g}{letter}"
    return f"{value:.4g}" if size < 1000 else f"{value:.0f}"


def smooth(values: Sequence[float | None], width: float) -> list[float | None]:
    """Gaussian mean of standard deviation `width` points around each point; None stays None.

    Centred, so that the smooth line does not lag behind the raw one; at the ends only the points
    there are count.
    """
    reach = math.ceil(3 * width)
    kernel = [math.exp(-0.5 * (offset / width) ** 2) for offset in range(reach + 1)]
    result: list[float | None] = []
    for index, value in enumerate(values):
        total = weight = 0.0
        for other in range(max(index - reach, 0), min(index + reach + 1, len(values))):
            near = values[other]
            if near is not None:
                total += kernel[abs(other - index)] * near
                weight += kernel[abs(other - index)]
        result.append(None if value is None else total / weight)
    return result


def thin(
    steps: Sequence[float], values: Sequence[float | None], most: int = _MOST_POINTS
) -> tuple[list[float], list[float | None]]:
    """At most `most` points: neighbours are averaged (None only where a whole bucket is None)."""
    size = math.ceil(len(steps) / most) if steps else 1
    if size == 1:
        return list(steps), list(values)
    xs, ys = [], []
    for start in range(0, len(steps), size):
        bucket = [value for value in values[start : start + size] if value is not None]
        xs.append(steps[min(start + size, len(steps)) - 1])
        ys.append(sum(bucket) / len(bucket) if bucket else None)
    return xs, ys


def line_chart(steps: Sequence[float], values: Sequence[float | None], label: str) -> str:
    """A chart of `values` over `steps`: thin raw line, thick smoothed line, a title at each point.

    None values are gaps. With less than eight points there is nothing to smooth: points are marked.
    """
    xs, ys = thin(steps, values)
    real = [value for value in ys if value is not None]
    if not real:
        return '<p class="empty">no finite values</p>'
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    low, high = min(real), max(real)
    pad = 0.06 * (high - low) or max(abs(high) * 0.1, 1e-6)
    low, high = low - pad if low < 0 or low > pad else 0.0, high + pad

    def x_of(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y_of(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)} over steps">']
    for tick in ticks(low, high):
        y = y_of(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escape(short(tick))}</text>"
        )
    for tick in ticks(x_low, x_high, 6):
        if tick == round(tick):
            parts.append(
                f'<text class="tick" x="{x_of(tick):.1f}" y="{HEIGHT - 10}" '
                f'text-anchor="middle">{escape(short(tick))}</text>'
            )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    points = [(x_of(x), None if y is None else y_of(y)) for x, y in zip(xs, ys, strict=True)]
    few = len(real) < 8
    parts.append(f'<path class="{"line" if few else "raw"}" d="{_path(points)}"/>')
    if few:
        parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points if y]
    else:
        smoothed = smooth(ys, len(real) / 40 + 0.5)
        curve = [(x, None if y is None else y_of(y)) for (x, _), y in zip(points, smoothed, strict=True)]
        parts.append(f'<path class="line" d="{_path(curve)}"/>')
    half = (WIDTH - LEFT - RIGHT) / max(len(xs) - 1, 1) / 2
    for x, y, (px, py) in zip(xs, ys, points, strict=True):
        if y is not None and py is not None:
            parts.append(
                f'<g class="point"><rect x="{px - half:.1f}" y="{TOP}" width="{2 * half:.1f}" '
                f'height="{HEIGHT - TOP - BOTTOM}"/><circle cx="{px:.1f}" cy="{py:.1f}" r="4"/>'
                f"<title>step {short(x)}: {y:.5g}</title></g>"
            )
    return "".join(parts) + "</svg>"


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    commands, pen_down = [], False
    for x, y in points:
        if y is not None:
            commands.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = y is not None
    return "".join(commands)


def heat_map(values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], label: str) -> str:
    """Cells of `values` in [-1, 1] (below 0 in the colour of bad, above in that of lines); each tells its number."""
    cell, left, top = 24, 96, 84
    width, height = left + cell * len(columns) + 8, top + cell * len(rows) + 8
    parts = [
        f'<svg class="heat" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="{escape(label)}">'
    ]
    for j, name in enumerate(columns):
        x = left + cell * (j + 0.5) + 4
        parts.append(f'<text class="tick" transform="translate({x:.1f} {top - 8}) rotate(-60)">{escape(name)}</text>')
    for i, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = top + cell * i
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(name)}</text>')
        for j, value in enumerate(line):
            share = round(100 * min(abs(value), 1))
            colour = "var(--bad)" if value < 0 else "var(--line)"
            parts.append(
                f'<rect x="{left + cell * j}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'style="fill: color-mix(in oklab, {colour} {share}%, var(--code))">'
                f"<title>{escape(name)} / {escape(columns[j])}: {value:+.2f}</title></rect>"
            )
    return "".join(parts) + "</svg>"


def interval_plot(rows: Sequence[tuple[str, float, float, float]], low: float, high: float) -> str:
    """Dots with whiskers on a common scale from `low` to `high`.

    Args:
      rows: (class of the row for the style sheet, value, interval's low, interval's high).
    """
    width, row_height = 260, 16
    height = row_height * len(rows)
    span = (high - low) or 1.0

    def x_of(value: float) -> float:
        return 6 + (min(max(value, low), high) - low) / span * (width - 12)

    parts = [f'<svg class="intervals" viewBox="0 0 {width} {height}" role="img" aria-label="intervals">']
    parts.append(f'<line class="axis" x1="6" x2="{width - 6}" y1="{height / 2}" y2="{height / 2}"/>')
    for index, (kind, value, bottom, top) in enumerate(rows):
        y = row_height * (index + 0.5)
        parts.append(
            f'<g class="{kind}"><line x1="{x_of(bottom):.1f}" x2="{x_of(top):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle cx="{x_of(value):.1f}" cy="{y}" r="4.5"/>'
            f"<title>{kind}: {value:.4g} [{bottom:.4g}, {top:.4g}]</title></g>"
        )
    return "".join(parts) + "</svg>"
