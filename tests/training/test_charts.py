"""Charts: round ticks, means that do not lag, gaps that stay gaps, SVG that parses."""

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.training.charts import HEIGHT, WIDTH, interval_plot, line_chart, short, smooth, thin, ticks

numbers = st.floats(-1e12, 1e12)


@given(numbers, st.floats(1e-6, 1e12))
def test_ticks_are_round_and_inside(low, span):
    high = low + span
    found = ticks(low, high)
    if span > 1e-9 * abs(low):  # else rounding eats the steps
        assert 2 <= len(found) <= 11
        step = found[1] - found[0]
        mantissa = step / 10.0 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-3
    slack = 1e-6 * max(abs(low), abs(high), span)
    assert all(low - slack <= tick <= high + slack for tick in found)


def test_ticks_of_nothing():
    assert ticks(3.0, 3.0) == [3.0]
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.725, "0.725"), (-3, "-3"), (1234.5, "1234"), (12_400, "12.4k"), (2.5e6, "2.5M"), (3e9, "3e+09"),
        (1e-5, "1e-05"),
    ],
)  # fmt: skip
def test_numbers_in_few_characters(value, text):
    assert short(value) == text


def test_smoothing_is_a_centred_mean():
    line = [2.0 * i + 1 for i in range(20)]
    assert smooth(line, 1.0)[5:15] == pytest.approx(line[5:15]), "a straight line stays where it is"
    assert smooth([3.0] * 5, 2.0) == pytest.approx([3.0] * 5), "at the ends too"
    gap = smooth([1.0, None, 1.0], 1.0)
    assert gap[1] is None
    assert gap[::2] == pytest.approx([1.0, 1.0])
    spike = smooth([0.0] * 10 + [1.0] + [0.0] * 10, 1.5)
    assert spike == pytest.approx(spike[::-1])
    assert max(spike) == spike[10] < 1


def test_thinning_averages_neighbours():
    steps, values = thin(range(1, 1001), [float(i) for i in range(1000)], most=100)
    assert len(steps) == len(values) == 100
    assert steps[:2] == [10, 20]
    assert steps[-1] == 1000
    assert values[:2] == [4.5, 14.5]
    assert thin([1, 2, 3, 4], [None, None, 1.0, None], most=2) == ([2, 4], [None, 1.0])
    assert thin([1, 2], [1.0, None]) == ([1, 2], [1.0, None])
    assert thin([], []) == ([], [])


def inside(svg):
    """Parses, and checks that every point lies on the sheet."""
    root = ET.fromstring(svg)
    for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", svg):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT
    return root


def paths(root):
    return {path.get("class"): path.get("d") for path in root.iter("path")}


def test_a_line_with_a_gap():
    values = [1.0, 2.0, None, 4.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    root = inside(line_chart(range(10), values, "loss"))
    drawn = paths(root)
    assert set(drawn) == {"raw", "line"}
    for path in drawn.values():
        assert path.count("M") == 2, "the pen is lifted at the gap"
        assert path.count("L") == 7
    assert sum(1 for _ in root.iter("title")) == 9
    assert "step 4: 5" in [title.text for title in root.iter("title")]


@pytest.mark.parametrize("values", [[0.5], [1.0, 1.0], [0.0, 0.0, 0.0], [-1e-9, 1e-9], [1e12, -1e12], [None, 3.0]])
def test_few_or_equal_values_have_a_chart_too(values):
    root = inside(line_chart(range(len(values)), values, "x"))
    real = sum(value is not None for value in values)
    assert sum(circle.get("class") == "dot" for circle in root.iter("circle")) == real


def test_nothing_to_draw_is_said():
    assert line_chart([1, 2], [None, None], "x") == line_chart([], [], "x") == '<p class="empty">no finite values</p>'


@given(st.lists(st.none() | numbers, min_size=1, max_size=30))
def test_any_values_make_a_sheet_that_parses(values):
    if any(value is not None for value in values):
        inside(line_chart(range(len(values)), values, 'a "label" <of> & signs'))


def test_long_runs_make_small_charts():
    chart = line_chart(range(100_000), [math.sin(i / 1000) for i in range(100_000)], "x")
    assert len(chart) < 150_000
    inside(chart)


def test_intervals_share_one_scale():
    root = ET.fromstring(interval_plot([("before", 0.2, 0.1, 0.3), ("after", 0.9, 0.5, 1.5)], 0.0, 1.0))
    groups = {group.get("class"): group for group in root.iter("g")}
    before, after = (groups[kind].find("circle") for kind in ("before", "after"))
    assert float(before.get("cx")) == pytest.approx(6 + 0.2 * 248, abs=0.1)
    assert float(after.get("cx")) == pytest.approx(6 + 0.9 * 248, abs=0.1)
    assert float(groups["after"].find("line").get("x2")) == pytest.approx(254), "what sticks out is cut"
    assert groups["after"].find("title").text == "after: 0.9 [0.5, 1.5]"
    assert len(set(itertools.chain(before.get("cy"), after.get("cy")))) > 1
    ET.fromstring(interval_plot([("after", 2.0, 2.0, 2.0)], 2.0, 2.0))
