"""Charts: whatever the curve, well-formed, inside the picture, and with axes that a person can
read.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.trainer.report_chart import (
    COLUMNS,
    HEIGHT,
    LEFT,
    POINTS,
    WIDTH,
    chart,
    framed,
    nearest,
    smoothed,
    thinned,
    tick_step,
    tick_text,
    ticks,
)

finite = st.floats(-1e12, 1e12)
curves = st.lists(st.tuples(st.integers(0, 10**12), finite), min_size=1, max_size=50).map(sorted)


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def drawn(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    paths = root.findall("svg/svg/path")
    return [
        [tuple(map(float, pair.split())) for pair in path.get("d")[1:].split("L")] for path in paths
    ]


@given(curves, st.booleans(), st.booleans())
def test_any_curve_lies_inside_but_for_a_beginning_that_is_said(points, from_zero, mean):
    text = chart("x", {"training": points}, from_zero=from_zero, mean=mean, raw=mean)
    for curve in drawn(parsed(text)):
        for across, down in curve:
            assert LEFT - 0.1 <= across <= WIDTH
            assert down <= HEIGHT
            assert down >= 0 or "begins at" in text


@given(st.lists(st.tuples(st.floats(1e-9, 1), finite), min_size=1, max_size=50))
def test_over_rates_the_axis_is_logarithmic(points):
    for curve in drawn(parsed(chart("x", {"loss": sorted(points)}, over="lr", log_x=True))):
        assert all(LEFT - 0.1 <= across <= WIDTH for across, _ in curve)


def test_a_run_that_begins_far_above_is_cut_there_and_says_so():
    curve = [(float(n), 11.0 if n < 2 else 3 + 1 / n) for n in range(200)]
    frame, _, cut = framed([curve], log_x=False, from_zero=False)
    assert cut == 11.0
    assert frame.y_high < 5
    assert "nats, begins at 11" in chart("Loss", {"": curve}, unit="nats")
    assert framed([[(0.0, 1.0), (100.0, 2.0)]], log_x=False, from_zero=False)[2] is None


def test_pointed_at_it_tells_every_curve_s_value():
    root = parsed(
        chart(
            "Loss",
            {
                "a & b": [(n * 1000.0, 3.0 - n / 1000) for n in range(500)],
                "val": [(0.0, 2.5), (9e3, 2.25)],
            },
        )
    )
    strips = root.findall("svg/g[@class='at']")
    assert len(strips) == COLUMNS
    words = [[part.text for part in strip.iterfind("g/text/tspan")] for strip in strips]
    assert words[0] == ["0 tokens", "val 2.5"]
    # of two points the mean, and of another curve the nearest
    assert words[1] == ["6.5k tokens", "a & b 2.994", "val 2.25"]
    assert words[-1] == ["498.5k tokens", "a & b 2.502"]  # val has ended
    rects = [strip.find("rect") for strip in strips]
    ends = [float(rect.get("x")) + float(rect.get("width")) for rect in rects]
    assert [float(rect.get("x")) for rect in rects[1:]] == pytest.approx(ends[:-1], abs=0.11)


def test_a_curve_without_points_keeps_its_colour():
    root = parsed(chart("Loss", {"a": [], "b": [(0.0, 1.0), (4.0, 2.25)]}))
    assert [path.get("class") for path in root.findall("svg/svg/path")] == ["c1"]
    assert [path.get("class") for path in root.findall("p/span/svg/path")] == ["c1"]


def test_names_are_escaped_and_the_end_is_told_to_those_who_cannot_see_it():
    root = parsed(chart("<b>", {"<i>": [(0.0, 1.0), (4.0, 2.25)]}, unit="&"))
    assert root.find("h2").text == "<b> "
    assert root.find("svg").get("aria-label") == "<b>: in the end <i> 2.250"
    assert root.find("p/span").find("svg").tail == " <i>"


def test_long_curves_are_averaged():
    curve = [(float(n), float(n % 2)) for n in range(10 * POINTS)]
    assert len(thinned(curve)) == POINTS
    assert all(y == 0.5 for _, y in thinned(curve))


@given(st.lists(finite, min_size=1, max_size=400))
def test_a_running_mean_is_as_long_and_stays_between(values):
    curve = [(float(n), y) for n, y in enumerate(values)]
    means = smoothed(curve)
    assert [x for x, _ in means] == [x for x, _ in curve]
    assert means[0] == pytest.approx(curve[0])
    assert all(min(values) - 1e-3 <= y <= max(values) + 1e-3 for _, y in means)


@given(low=finite, high=finite)
def test_ticks_are_round_few_and_told_apart(low, high):
    low, high = min(low, high), max(low, high)
    if high - low <= 1e-6 * max(abs(low), abs(high), 1e-3):
        return
    step = tick_step(low, high)
    values = ticks(low, high, step)
    assert 1 <= len(values) <= 6
    assert (
        len({tick_text(value, step) for value in values}) == len(values)
        or step < 1e-6
        or abs(high) / step > 1e6
    )


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (2.25, 0.05, "2.25"),
        (2.605, 0.005, "2.605"),
        (500e3, 250e3, "500k"),
        (1.5e6, 5e5, "1.5M"),
        (2e-5, 1e-5, "2e-5"),
        (0, 0.001, "0"),
        (0.25, 0.25, "0.25"),
        (1e6, 2.5e5, "1.00M"),
        (0.0015, 0.0005, "0.0015"),
    ],
)
def test_tick_text(value, step, text):
    assert tick_text(value, step) == text


def test_the_nearest_point():
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
    return [part.text for part in parsed(text).findall("svg/text")]


def test_the_axis_ends_on_the_round_number_that_the_run_just_misses():
    curve = [(999_936 * n / 100, 5 - n / 50) for n in range(1, 101)]
    assert labels(chart("Loss", {"": curve}))[-6:] == ["0", "200k", "400k", "600k", "800k", "1.0M"]
    frame, _, _ = framed([[(0.0, 1.0), (900e3, 2.0)]], log_x=False, from_zero=False)
    assert frame.x_high == 900e3, "and a run that is on its way where it is"
    assert labels(chart("Loss", {"": curve}))[0] == "tokens", (
        "the unit stands apart from the numbers"
    )


@given(st.floats(8, 12), st.floats(1, 4), st.integers(40, 400))
def test_a_high_beginning_takes_no_more_than_half_of_the_height(first, last, count):
    """As a loss falls from ln(vocabulary): most within the first steps."""
    curve = [(float(n), last + (first - last) / (1 + 100 * n / count)) for n in range(count)]
    frame, _, cut = framed([curve], log_x=False, from_zero=False)
    later = [y for x, y in curve if x > count / 10]
    assert cut == pytest.approx(first)
    assert frame.y_high - frame.y_low < 0.5 * (first - last)
    assert frame.y_low <= min(later)
    assert max(later) <= frame.y_high


def test_a_running_mean_counts_points_by_how_far_they_reach():
    """The last batch of a run may be a hundredth of the others."""
    curve = [(100.0 * n, 3.0) for n in range(1, 101)] + [(10_001.0, 9.0)]
    assert smoothed(curve)[-1][1] == pytest.approx(3 + 6 * 1 / 201)
    assert thinned([*curve, *((10_001.0 + 100 * n, 3.0) for n in range(1, 700))])[50][
        1
    ] == pytest.approx(3 + 6 * 1 / 101)


def test_faint_points_behind_a_mean_are_inside_but_for_a_few():
    noisy = [(float(n), 3 + (0.5 if n % 2 else -0.5)) for n in range(1, 1000)] + [(1000.0, 9.0)]
    frame, _, _ = framed(
        [[(float(n), 3.0) for n in range(1, 1001)]], log_x=False, from_zero=False, behind=[noisy]
    )
    assert 2.25 < frame.y_low <= 2.5 < 3.5 <= frame.y_high < 3.75, "and not at 9"
