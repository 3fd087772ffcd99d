"""Charts of any curve are well-formed, keep inside the picture and have readable axes."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.runs.curves import (
    HEIGHT,
    LEFT,
    MAX_HOVER_STRIPS,
    MAX_POINTS,
    MAX_TABLE_ROWS,
    START_SHARE,
    WIDTH,
    chart_data,
    choose_axes,
    inline_chart,
    nearest,
    running_mean,
    thin,
)

finite = st.floats(-1e12, 1e12)
curves = st.lists(st.tuples(st.integers(0, 10**12), finite), min_size=1, max_size=50).map(sorted)


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def drawn(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    paths = root.findall("svg/svg/path")
    return [
        [
            (float(across), float(down))
            for across, down in (pair.split() for pair in path.get("d", "")[1:].split("L"))
        ]
        for path in paths
    ]


@given(curves, st.booleans(), st.booleans())
def test_every_curve_lies_inside_the_chart_except_for_an_announced_start(points, from_zero, mean):
    text = inline_chart("x", {"training": points}, from_zero=from_zero, mean=mean, raw=mean)
    for curve in drawn(parsed(text)):
        for across, down in curve:
            assert LEFT - 0.1 <= across <= WIDTH
            assert down <= HEIGHT
            assert down >= 0 or "begins at" in text


@given(st.lists(st.tuples(st.floats(1e-9, 1), finite), min_size=1, max_size=50))
def test_curves_over_a_logarithmic_axis_lie_inside_the_chart(points):
    for curve in drawn(parsed(inline_chart("x", {"loss": sorted(points)}, over="lr", log_x=True))):
        assert all(LEFT - 0.1 <= across <= WIDTH for across, _ in curve)


def test_a_start_far_above_the_rest_is_left_out_and_announced():
    curve = [(float(n), 11.0 if n < 2 else 3 + 1 / n) for n in range(200)]
    axes = choose_axes([curve])
    assert axes.peak == 11.0
    assert axes.y.high < 5
    heading = parsed(inline_chart("Loss", {"": curve}, unit="nats")).find("h2/small")
    assert heading is not None
    assert "".join(heading.itertext()) == "nats, begins at 11"
    assert choose_axes([[(0.0, 1.0), (100.0, 2.0)]]).peak is None


@given(curves, st.booleans())
def test_single_values_outside_of_the_axis_are_told(points, from_zero):
    mean = [(x, y / 2) for x, y in points]
    axes = choose_axes([mean], from_zero=from_zero, faint=[points])
    later = [y for x, y in points if axes.peak is None or axes.x.fraction(x) > START_SHARE]
    slack = (axes.y.step or 0) * 1e-6
    above, below = max(later) > axes.y.high + slack, min(later) < axes.y.low - slack
    assert ("up to" in axes.left_out, "down to" in axes.left_out) == (above, below)
    assert ("begins at" in axes.left_out) == (axes.peak is not None)


@given(curves, st.booleans())
def test_a_logarithmic_axis_leaves_nothing_out(points, mean):
    """Such as the gradient norm, whose first values are far above the rest."""
    positive = [(x, abs(y) + 1e-3) for x, y in points]
    axes = choose_axes([positive], log_y=True, faint=[positive])
    assert axes.peak is None
    if axes.y.log:
        assert all(axes.y.low <= y <= axes.y.high for _, y in positive)
        assert len(axes.y.ticks()) >= 1
    assert choose_axes([[*positive, (2e12, -1.0)]], log_y=True).y.log is False


def test_a_table_below_a_chart_has_some_of_its_values():
    curve = [(n * 1000.0, 4.0 - n / 1000) for n in range(500)]
    root = parsed(inline_chart("Loss", {"a & b": curve, "val": [(0.0, 2.5), (9e3, 2.25)]}))
    rows = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    assert rows[0] == ["tokens", "a & b", "val"]
    assert len(rows) == 1 + MAX_TABLE_ROWS
    assert rows[1] == ["0", "–", "2.5"]
    assert rows[-1] == ["498.5k", "3.502", "–"]


def test_data_of_charts_share_the_places_of_their_values():
    xs: list[list[float]] = []
    curve = [(float(n), n / 3) for n in range(4, 9)]
    first = chart_data("a", {"x": curve, "none": [], "y": curve[1:]}, xs, [0, 0, 0], mean=True)
    second = chart_data("b", {"z": curve}, xs, [0], tall=True)
    assert xs == [[4, 5, 6, 7, 8], [5, 6, 7, 8]]
    assert [(one["name"], one["x"], one["color"]) for one in first["curves"]] == [
        ("x", 0, 0),
        ("y", 1, 2),
    ]
    assert second["curves"][0]["x"] == 0
    assert first["curves"][0]["y"][0] == pytest.approx(4 / 3, rel=1e-5)
    assert (first["mean"], second["mean"], "tall" in second) == (True, False, False)


def test_hover_strips_show_the_value_of_every_curve():
    root = parsed(
        inline_chart(
            "Loss",
            {
                "a & b": [(n * 1000.0, 3.0 - n / 1000) for n in range(500)],
                "val": [(0.0, 2.5), (9e3, 2.25)],
            },
        )
    )
    strips = root.findall("svg/g[@class='at']")
    assert len(strips) == MAX_HOVER_STRIPS
    words = [[part.text for part in strip.iterfind("g/text/tspan")] for strip in strips]
    assert words[0] == ["0 tokens", "val 2.5"]
    # of two points the mean, and of another curve the nearest
    assert words[1] == ["6500 tokens", "a & b 2.994", "val 2.25"]
    assert words[-1] == ["498.5k tokens", "a & b 2.502"]  # val has ended
    rects = [rect for strip in strips if (rect := strip.find("rect")) is not None]
    assert len(rects) == len(strips)
    starts = [float(rect.get("x", "")) for rect in rects]
    ends = [start + float(rect.get("width", "")) for start, rect in zip(starts, rects, strict=True)]
    assert starts[1:] == pytest.approx(ends[:-1], abs=0.11)


def test_a_curve_without_points_keeps_its_color():
    root = parsed(inline_chart("Loss", {"a": [], "b": [(0.0, 1.0), (4.0, 2.25)]}))
    assert [path.get("class") for path in root.findall("svg/svg/path")] == ["c1"]
    assert [path.get("class") for path in root.findall("p/span/svg/path")] == ["c1"]


def test_names_are_escaped_and_the_label_gives_the_last_values():
    root = parsed(inline_chart("<b>", {"<i>": [(0.0, 1.0), (4.0, 2.25)]}, unit="&"))
    chart, key = root.find("svg"), root.find("p/span/svg")
    assert chart is not None
    assert key is not None
    assert root.findtext("h2") == "<b> "
    assert chart.get("aria-label") == "<b>: in the end <i> 2.250"
    assert key.tail == " <i>"


def test_long_curves_are_averaged():
    curve = [(float(n), float(n % 2)) for n in range(10 * MAX_POINTS)]
    assert len(thin(curve)) == MAX_POINTS
    assert all(y == 0.5 for _, y in thin(curve))


@given(st.lists(finite, min_size=1, max_size=400))
def test_a_running_mean_is_as_long_as_its_curve_and_within_its_range(values):
    curve = [(float(n), y) for n, y in enumerate(values)]
    means = running_mean(curve)
    assert [x for x, _ in means] == [x for x, _ in curve]
    assert means[0] == pytest.approx(curve[0])
    assert all(min(values) - 1e-3 <= y <= max(values) + 1e-3 for _, y in means)


def test_nearest_returns_the_closest_point_and_none_beyond_the_ends():
    curve = [(0.0, 1.0), (10.0, 2.0), (20.0, 3.0)]
    assert [nearest(curve, x) for x in (-1.0, 0.0, 4.0, 6.0, 20.0, 21.0)] == [
        None,
        curve[0],
        curve[0],
        curve[1],
        curve[2],
        None,
    ]


def labels(text: str) -> list[str]:
    return [part.text or "" for part in parsed(text).findall("svg/text")]


def test_the_x_axis_ends_on_a_round_number_that_the_run_just_misses():
    curve = [(999_936 * n / 100, 5 - n / 50) for n in range(1, 101)]
    assert labels(inline_chart("Loss", {"": curve}))[-6:] == [
        "0",
        "200k",
        "400k",
        "600k",
        "800k",
        "1.0M",
    ]
    axes = choose_axes([[(0.0, 1.0), (900e3, 2.0)]])
    assert axes.x.high == 900e3, "a run that is still going on ends where it is"
    assert labels(inline_chart("Loss", {"": curve}))[0] == "tokens", (
        "the unit stands apart from the numbers"
    )


@given(st.floats(8, 12), st.floats(1, 4), st.integers(40, 400))
def test_a_high_start_takes_at_most_half_of_the_height(first, last, count):
    """As a loss falls from ln(vocabulary): most within the first steps."""
    curve = [(float(n), last + (first - last) / (1 + 100 * n / count)) for n in range(count)]
    axes = choose_axes([curve])
    later = [y for x, y in curve if x > count / 10]
    assert axes.peak == pytest.approx(first)
    assert axes.y.high - axes.y.low < 0.5 * (first - last)
    assert axes.y.low <= min(later)
    assert max(later) <= axes.y.high


def test_means_weight_points_by_their_distance_from_the_one_before():
    """The last batch of a run may be a hundredth of the others."""
    curve = [(100.0 * n, 3.0) for n in range(1, 101)] + [(10_001.0, 9.0)]
    assert running_mean(curve)[-1][1] == pytest.approx(3 + 6 * 1 / 201)
    assert thin([*curve, *((10_001.0 + 100 * n, 3.0) for n in range(1, 700))])[50][
        1
    ] == pytest.approx(3 + 6 * 1 / 101)


def test_the_y_axis_contains_most_faint_points_but_no_outliers():
    noisy = [(float(n), 3 + (0.5 if n % 2 else -0.5)) for n in range(1, 1000)] + [(1000.0, 9.0)]
    mean = [(float(n), 3.0) for n in range(1, 1001)]
    axes = choose_axes([mean], faint=[noisy])
    assert 2.25 < axes.y.low <= 2.5 < 3.5 <= axes.y.high < 3.75, "and not at 9"
