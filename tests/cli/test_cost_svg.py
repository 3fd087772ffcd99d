"""Charts, held against geometry: nothing outside the picture, no label on another, lengths and
places that are the values'.
"""

from __future__ import annotations

import math
import re
from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cli.cost_svg import (
    COLOURS,
    EM,
    INKS,
    Box,
    Scale,
    Series,
    bars,
    curves,
    overlap,
    room,
    stacks,
)

SVG = "{http://www.w3.org/2000/svg}"


def read(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def label_boxes(root: ElementTree.Element) -> list[tuple[str, Box]]:
    """Where each text stands, at most `EM` of its size a character."""
    found = []
    for text in root.iter(f"{SVG}text"):
        words, size = text.text or "", float(text.get("font-size", 0))
        width, x, y = EM * size * len(words), float(text.get("x", 0)), float(text.get("y", 0))
        left = (
            x - {"start": 0.0, "middle": width / 2, "end": width}[text.get("text-anchor", "start")]
        )
        found.append((words, (left, y - 0.75 * size, left + width, y + 0.22 * size)))
    return found


def check_picture(svg: str) -> ElementTree.Element:
    """A whole, accessible picture: everything inside, no two labels on each other. The root, for
    more.
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
    """Left edge and width of the bar whose tip starts so."""
    for bar in root.iter(f"{SVG}rect"):
        if (bar.findtext(f"{SVG}title") or "").startswith(tip):
            return float(bar.get("x", 0)), float(bar.get("width", 0))
    raise AssertionError(tip)


def test_bars_are_as_long_as_their_logarithms() -> None:
    rows = [("one", 1.0, "a", "1"), ("ten", 10.0, "a", "10"), ("thousand", 1000.0, "b", "1,000")]
    root = check_picture(bars("T", "S", rows, Scale("x", 0.1, 1000)))
    lengths = [bar_of(root, f"{name}: ")[1] for name in ("one", "ten", "thousand")]
    assert lengths[1] == pytest.approx(2 * lengths[0], rel=0.01)
    assert lengths[2] == pytest.approx(4 * lengths[0], rel=0.01)
    classes = [
        bar.get("class")
        for bar in root.iter(f"{SVG}rect")
        if (bar.findtext(f"{SVG}title") or "") in ("one: 1", "ten: 10", "thousand: 1,000")
    ]
    assert classes == ["c0", "c0", "c1"], "a colour for each group"


def test_stacks_stand_end_to_end_and_the_limit_where_it_is() -> None:
    rows = [("first", {"a": 30.0, "b": 10.0}), ("second", {"a": 5.0, "b": 0.0})]
    root = check_picture(stacks("T", "S", rows, Scale("x", 0, 40, log=False), limit=(20.0, "half")))
    (left, width), (next_left, next_width) = bar_of(root, "first, a"), bar_of(root, "first, b")
    assert next_left == pytest.approx(left + width, abs=0.2)
    assert width == pytest.approx(3 * next_width, rel=0.01)
    assert not [
        bar
        for bar in root.iter(f"{SVG}rect")
        if (bar.findtext(f"{SVG}title") or "").startswith("second, b")
    ], "nothing to see"
    limit = next(path for path in root.iter(f"{SVG}path") if path.get("class") == "limit-line")
    x = float(re.findall(r"M(\S+)", limit.get("d", ""))[0])
    assert x == pytest.approx(left + 2 / 3 * width, abs=0.2)
    assert "half" in [words for words, _ in label_boxes(root)]


def test_points_stand_where_their_values_are() -> None:
    points = [(1.0, 1.0), (10.0, 10.0), (100.0, 100.0)]
    root = check_picture(
        curves(
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
def test_labels_never_touch(points: list[tuple[float, float]]) -> None:
    labels = [f"point number {number}" for number in range(len(points))]
    check_picture(
        curves("T", "S", [Series("s", points, labels)], Scale("x", 1, 1000), Scale("y", 1, 1000))
    )


def test_a_label_without_room_is_a_tip() -> None:
    crowd = [(10 + 0.01 * n, 10.0) for n in range(40)]
    root = check_picture(
        curves(
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


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale("", 0.5, 10_000), [1, 10, 100, 1000, 10_000]),
        (Scale("", 1.4, 5.9), [1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5]),
        (Scale("", 1, 100), [1, 2, 5, 10, 20, 50, 100]),
        (Scale("", 0, 81, log=False), [0, 20, 40, 60, 80]),
        (Scale("", 2017.5, 2024.9, log=False), [2018, 2019, 2020, 2021, 2022, 2023, 2024]),
    ],
    ids=["decades", "halves", "one-two-five", "tens", "years"],
)
def test_ticks_are_round(scale: Scale, ticks: list[float]) -> None:
    assert list(scale.ticks()) == pytest.approx(ticks)


@given(st.floats(1e-9, 1e9), st.floats(1.1, 1e12), st.booleans())
def test_ticks_are_few_and_on_the_axis(low: float, ratio: float, log: bool) -> None:
    scale = Scale("", low, low * ratio, log=log)
    ticks = list(scale.ticks())
    assert len(ticks) <= 16
    assert all(-1e-3 <= scale.share(tick) <= 1 + 1e-3 for tick in ticks)


def test_long_names_are_cut() -> None:
    names = ["a-very-long-name-" * 10, "another/long/path/" * 4]
    series = [Series(name, [(2.0, 2.0)]) for name in names]
    check_picture(
        curves("T" * 300, "S" * 300, series, Scale("x", 1, 10), Scale("y", 1, 10), ["note " * 60])
    )


def test_words_are_escaped() -> None:
    root = read(bars("<T> & co", "S", [("a<b", 2.0, "g", "2")], Scale("x", 1, 10)))
    assert root.findtext(f"{SVG}title") == "<T> & co"
    assert "a<b" in [words for words, _ in label_boxes(root)]


def luminance(colour: str) -> float:
    """WCAG's, of a colour such as #1f6fb4."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("shade", [0, 1], ids=["light", "dark"])
def test_everything_can_be_seen_on_its_page(shade: int) -> None:
    """Contrast of at least 3 for bars and lines, 4.5 for words (WCAG 2.2)."""
    paper = luminance(INKS["paper"][shade])
    for least, colours in (
        (3, [pair[shade] for pair in COLOURS]),
        (4.5, [INKS["ink"][shade], INKS["dim"][shade]]),
    ):
        for colour in colours:
            bright, dark = sorted((luminance(colour), paper), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= least, colour


def test_dark_pages_get_their_own_colours() -> None:
    svg = bars("T", "S", [("a", 2.0, "g", "2")], Scale("x", 1, 10))
    light, dark = svg.split("@media (prefers-color-scheme:dark)")
    assert INKS["paper"][0] in light
    assert INKS["paper"][1] in dark
    assert math.isclose(room("abcd", 10), 24)
