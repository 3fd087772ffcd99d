"""Charts are held against geometry: nothing outside the picture, no label over another, and lengths
and places that are the values'.
"""

from __future__ import annotations

import re
from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.runs.charts import Series, bar_chart, line_chart, stacked_bar_chart
from gptcli.runs.svg import MAX_EM, Box, Scale, overlap

SVG = "{http://www.w3.org/2000/svg}"


def read(svg: str) -> ElementTree.Element:
    """Parse a figure."""
    return ElementTree.fromstring(svg)


def label_boxes(root: ElementTree.Element) -> list[tuple[str, Box]]:
    """Return each text with its box, at most `MAX_EM` of its size per character."""
    found = []
    for text in root.iter(f"{SVG}text"):
        words, size = text.text or "", float(text.get("font-size", 0))
        width, x, y = MAX_EM * size * len(words), float(text.get("x", 0)), float(text.get("y", 0))
        left = (
            x - {"start": 0.0, "middle": width / 2, "end": width}[text.get("text-anchor", "start")]
        )
        found.append((words, (left, y - 0.75 * size, left + width, y + 0.22 * size)))
    return found


def check_picture(svg: str) -> ElementTree.Element:
    """Assert that a figure is complete and accessible, with everything inside and no two labels over
    each other; return its root.
    """
    root = read(svg)
    _, _, width, height = map(float, root.get("viewBox", "").split())
    assert (
        root.get("role"),
        root.findtext(f"{SVG}title") != "",
        root.findtext(f"{SVG}desc") != "",
    ) == ("img", True, True)
    boxes = label_boxes(root)
    for words, (left, top, right, bottom) in boxes:
        assert left >= 0, words
        assert right <= width, words
        assert top >= 0, words
        assert bottom <= height, words
    for (words, box), (others, other) in combinations(boxes, 2):
        assert not overlap(box, other), (words, others)
    for bar in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(bar.get(name, 0)) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width + 0.1
        assert 0 <= y <= y + h <= height
    for dot in root.iter(f"{SVG}circle"):
        assert 0 <= float(dot.get("cx", -1)) <= width
        assert 0 <= float(dot.get("cy", -1)) <= height
    for path in root.iter(f"{SVG}path"):
        for x, y in re.findall(r"[ML](\S+) ([^LM]+)", path.get("d", "")):
            assert -0.1 <= float(x) <= width + 0.1
            assert -0.1 <= float(y) <= height + 0.1
    return root


def bar_of(root: ElementTree.Element, tip: str) -> tuple[float, float]:
    """Return the left edge and the width of the bar whose tooltip starts with `tip`."""
    for bar in root.iter(f"{SVG}rect"):
        if (bar.findtext(f"{SVG}title") or "").startswith(tip):
            return float(bar.get("x", 0)), float(bar.get("width", 0))
    raise AssertionError(tip)


def test_bars_are_as_long_as_the_logarithms_of_their_values() -> None:
    rows = [("one", 1.0, "a", "1"), ("ten", 10.0, "a", "10"), ("thousand", 1000.0, "b", "1,000")]
    root = check_picture(bar_chart("T", "S", rows, Scale("x", 0.1, 1000)))
    lengths = [bar_of(root, f"{name}: ")[1] for name in ("one", "ten", "thousand")]
    assert lengths[1] == pytest.approx(2 * lengths[0], rel=0.01)
    assert lengths[2] == pytest.approx(4 * lengths[0], rel=0.01)
    classes = [
        bar.get("class")
        for bar in root.iter(f"{SVG}rect")
        if (bar.findtext(f"{SVG}title") or "") in ("one: 1", "ten: 10", "thousand: 1,000")
    ]
    assert classes == ["c0", "c0", "c1"], "a colour for each group"


def test_stacked_bars_are_end_to_end_and_the_limit_is_at_its_value() -> None:
    rows = [("first", {"a": 30.0, "b": 10.0}), ("second", {"a": 5.0, "b": 0.0})]
    root = check_picture(
        stacked_bar_chart("T", "S", rows, Scale("x", 0, 40, log=False), limit=(20.0, "half"))
    )
    (left, width), (next_left, next_width) = bar_of(root, "first, a"), bar_of(root, "first, b")
    assert next_left == pytest.approx(left + width, abs=0.2)
    assert width == pytest.approx(3 * next_width, rel=0.01)
    assert not [
        bar
        for bar in root.iter(f"{SVG}rect")
        if (bar.findtext(f"{SVG}title") or "").startswith("second, b")
    ], "nothing to see"
    limit = next(path for path in root.iter(f"{SVG}path") if path.get("class") == "limit")
    x = float(re.findall(r"M(\S+)", limit.get("d", ""))[0])
    assert x == pytest.approx(left + 2 / 3 * width, abs=0.2)
    assert "half" in [words for words, _ in label_boxes(root)]


def test_points_are_at_the_places_of_their_values() -> None:
    points = [(1.0, 1.0), (10.0, 10.0), (100.0, 100.0)]
    root = check_picture(
        line_chart(
            "T",
            "S",
            [Series("s", points, ["a", "b", "c"], line=True)],
            Scale("x", 0.1, 1000),
            Scale("y", 0.1, 1000),
        )
    )
    dots = [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in root.iter(f"{SVG}circle")]
    assert dots[1][0] - dots[0][0] == pytest.approx(dots[2][0] - dots[1][0], abs=0.2)
    assert dots[0][1] - dots[1][1] == pytest.approx(dots[1][1] - dots[2][1], abs=0.2)
    assert dots[0][1] > dots[1][1], "up is more"
    assert {"a", "b", "c"} <= {words for words, _ in label_boxes(root)}


@given(st.lists(st.tuples(st.floats(1, 1000), st.floats(1, 1000)), min_size=1, max_size=30))
def test_labels_never_overlap(points: list[tuple[float, float]]) -> None:
    labels = [f"point number {number}" for number in range(len(points))]
    check_picture(
        line_chart(
            "T", "S", [Series("s", points, labels)], Scale("x", 1, 1000), Scale("y", 1, 1000)
        )
    )


def test_a_label_is_off_the_lines_if_it_can_be() -> None:
    """The last point of a line has no space at its right, and its own line is at its left."""
    root = check_picture(
        line_chart(
            "T",
            "S",
            [
                Series("one", [(0, 2.0), (90, 1.1), (100, 1.05)], ["", "", "lowest"], line=True),
                Series("two", [(0, 2.1), (90, 1.3), (100, 1.15)], ["", "", "highest"], line=True),
            ],
            Scale("x", 0, 104, log=False),
            Scale("y", 0, 3, log=False),
        )
    )
    boxes = dict(label_boxes(root))
    [low, high] = [dot for dot in root.iter(f"{SVG}circle") if float(dot.get("cx", 0)) > 780]
    assert boxes["lowest"][1] > float(low.get("cy", 0)), "below both"
    assert boxes["highest"][3] < float(high.get("cy", 0)), "above both"


def test_a_label_without_space_is_a_tooltip_only() -> None:
    crowd = [(10 + 0.01 * n, 10.0) for n in range(40)]
    root = check_picture(
        line_chart(
            "T",
            "S",
            [Series("s", crowd, [f"point {n}" for n in range(40)])],
            Scale("x", 1, 100),
            Scale("y", 1, 100),
        )
    )
    assert len([words for words, _ in label_boxes(root) if words.startswith("point")]) < 40
    assert {dot.findtext(f"{SVG}title") for dot in root.iter(f"{SVG}circle")} == {
        f"point {n}" for n in range(40)
    }


def test_long_names_are_truncated() -> None:
    names = ["a-very-long-name-" * 10, "another/long/path/" * 4]
    series = [Series(name, [(2.0, 2.0)]) for name in names]
    check_picture(
        line_chart(
            "T" * 300, "S" * 300, series, Scale("x", 1, 10), Scale("y", 1, 10), ["note " * 60]
        )
    )


def test_text_is_escaped() -> None:
    root = read(bar_chart("<T> & co", "S", [("a<b", 2.0, "g", "2")], Scale("x", 1, 10)))
    assert root.findtext(f"{SVG}title") == "<T> & co"
    assert "a<b" in [words for words, _ in label_boxes(root)]
