"""A lattice as a picture: its Hasse diagram as SVG text."""

from collections.abc import Sequence
from html import escape

BOX_WIDTH, BOX_HEIGHT, GAP, LEVEL = 190, 52, 18, 128
MARGIN, TITLE, LEGEND = 28, 34, 56
COLOURS = ("#f3c6c1", "#f4e2b8", "#dfe3e8", "#c4e3cb")


def hasse_diagram(
    labels: Sequence[tuple[str, str]],
    levels: Sequence[int],
    edges: Sequence[tuple[int, int]],
    groups: Sequence[int],
    legend: Sequence[str],
    title: str,
) -> str:
    """An order drawn upwards: a line leads from each element up to what covers it.

    Args:
      labels: of each element a name and a line under it.
      levels: its height, 0 at the bottom.
      edges: (lower, upper) covers.
      groups: of each element the index of its colour in `legend` (at most 4).
      legend: what the colours say.
      title: one line above.

    Returns:
      The text of an SVG file.
    """
    by_level = [[i for i, level in enumerate(levels) if level == wanted] for wanted in range(max(levels) + 1)]
    _untangle(by_level, edges)
    widest = max(map(len, by_level))
    width = 2 * MARGIN + widest * BOX_WIDTH + (widest - 1) * GAP
    height = 2 * MARGIN + TITLE + LEGEND + (len(by_level) - 1) * LEVEL + BOX_HEIGHT
    centre: dict[int, tuple[float, float]] = {}
    for level, members in enumerate(by_level):
        start = width / 2 - (len(members) - 1) * (BOX_WIDTH + GAP) / 2
        for place, member in enumerate(members):
            y = height - MARGIN - LEGEND - BOX_HEIGHT / 2 - level * LEVEL
            centre[member] = (start + place * (BOX_WIDTH + GAP), y)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" text-anchor="middle" role="img"><title>{escape(title)}</title>'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="{width / 2:.0f}" y="{MARGIN + 8}" font-size="14" fill="#30363d">{escape(title)}</text>'
    ]
    for lower, upper in edges:
        (x1, y1), (x2, y2) = centre[lower], centre[upper]
        parts.append(
            f'<line class="edge" x1="{x1:.0f}" y1="{y1 - BOX_HEIGHT / 2:.0f}" x2="{x2:.0f}" '
            f'y2="{y2 + BOX_HEIGHT / 2:.0f}" stroke="#8a929c" stroke-width="1.3"/>'
        )
    for index, (name, formula) in enumerate(labels):
        x, y = centre[index]
        parts.append(
            f'<g class="element"><rect x="{x - BOX_WIDTH / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" width="{BOX_WIDTH}" '
            f'height="{BOX_HEIGHT}" rx="7" fill="{COLOURS[groups[index]]}" stroke="#59616b"/>'
            f'<text x="{x:.0f}" y="{y - 5:.0f}" font-size="15" font-weight="bold">{escape(name)}</text>'
            f'<text x="{x:.0f}" y="{y + 15:.0f}" font-size="12.5" fill="#30363d">{escape(formula)}</text></g>'
        )
    step = width / len(legend)
    for index, text in enumerate(legend):
        x, y = (index + 0.5) * step, height - MARGIN
        half = 3.4 * len(text)
        parts.append(
            f'<rect x="{x - half - 22:.0f}" y="{y - 12:.0f}" width="16" height="14" rx="3" fill="{COLOURS[index]}" '
            f'stroke="#59616b"/><text x="{x:.0f}" y="{y:.0f}" font-size="13">{escape(text)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _untangle(by_level: list[list[int]], edges: Sequence[tuple[int, int]], sweeps: int = 8) -> None:
    """Orders each level by the mean place of its neighbours, up and down by turns, so that fewer lines cross."""
    neighbours: dict[int, list[int]] = {i: [] for level in by_level for i in level}
    for lower, upper in edges:
        neighbours[lower].append(upper)
        neighbours[upper].append(lower)
    for sweep in range(sweeps):
        place = {i: k - (len(level) - 1) / 2 for level in by_level for k, i in enumerate(level)}
        order = range(len(by_level)) if sweep % 2 else range(len(by_level) - 1, -1, -1)
        for number in order:
            level = by_level[number]
            means = {
                i: sum(place[other] for other in neighbours[i]) / max(len(neighbours[i]), 1) if neighbours[i] else 0.0
                for i in level
            }
            level.sort(key=lambda i: (means[i], place[i]))
            place |= {i: k - (len(level) - 1) / 2 for k, i in enumerate(level)}
