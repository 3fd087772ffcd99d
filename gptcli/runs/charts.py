"""Chart types of standalone SVG figures: bars, stacked bars, and lines with labeled points."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from gptcli.runs.svg import (
    FONT_SIZE,
    GREY,
    LEFT,
    PALETTE,
    RIGHT,
    SMALL_FONT_SIZE,
    TOP,
    WIDTH,
    Box,
    Canvas,
    PlotArea,
    Points,
    Scale,
    overlap,
    text_width,
)

ROW_HEIGHT, BAR_HEIGHT = 26, 16  # px
PLOT_HEIGHT = 400  # of a line chart, px
AXIS_HEIGHT = 62  # labels and title below a plot, px
Point = tuple[float, float]
NO_AXIS = Scale("", 0, 1, log=False)


@dataclass(frozen=True, slots=True)
class Series:
    """Points with one color and one name, joined by a line or not."""

    name: str
    points: Points
    labels: Sequence[str] = ()
    """Text next to each point; empty for none."""
    line: bool = False
    dots: bool = True
    dashed: bool = False
    quiet: bool = False
    """Drawn thin and grey, and left out of the legend."""


def bar_chart(
    title: str,
    subtitle: str,
    rows: Sequence[tuple[str, float, str, str]],
    scale: Scale,
    notes: Sequence[str] = (),
) -> str:
    """Return a horizontal bar chart; each row is (label, value, group, text at the bar's end).

    Each group has a color and an entry in the legend.
    """
    groups = list(dict.fromkeys(group for _, _, group, _ in rows))
    top = TOP + 12
    bottom = top + ROW_HEIGHT * len(rows)
    canvas = Canvas(title, subtitle, bottom - 2 + AXIS_HEIGHT, notes)
    canvas.legend(groups)
    area = _bar_area(scale, [label for label, *_ in rows], [text for *_, text in rows], top, bottom)
    canvas.x_axis(area)
    for number, (label, value, group, text) in enumerate(rows):
        y, end = top + ROW_HEIGHT * number, area.x_of(value)
        canvas.text(area.left - 8, y + 18, label, anchor="end")
        tip = f"{label}: {text}"
        canvas.bar(area.left, y + 5, end - area.left, BAR_HEIGHT, groups.index(group), tip)
        canvas.text(end + 6, y + 17.5, text, size=SMALL_FONT_SIZE, look="dim")
    return canvas.render()


def stacked_bar_chart(
    title: str,
    subtitle: str,
    rows: Sequence[tuple[str, dict[str, float]]],
    scale: Scale,
    limit: tuple[float, str] | None = None,
) -> str:
    """Return a horizontal bar chart whose bars are sums; each row is (label, value by part).

    The sum is written at the end of each bar. `limit` draws a vertical line with a name, which
    bars may cross.
    """
    parts = list(dict.fromkeys(part for _, values in rows for part in values))
    totals = [scale.format(sum(values.values())) for _, values in rows]
    row_height, top = ROW_HEIGHT + 8, TOP + 30
    bottom = top + row_height * len(rows)
    canvas = Canvas(title, subtitle, bottom - 2 + AXIS_HEIGHT)
    canvas.legend(parts)
    area = _bar_area(scale, [label for label, _ in rows], totals, top, bottom)
    canvas.x_axis(area)
    for number, ((label, values), total) in enumerate(zip(rows, totals, strict=True)):
        x, y = area.left, top + row_height * number
        canvas.text(area.left - 8, y + 22, label, anchor="end")
        for part, value in values.items():
            width = value / scale.high * (area.right - area.left)
            if value > 0:
                tip = f"{label}, {part}: {scale.format(value)}"
                canvas.bar(x, y + 6, width, BAR_HEIGHT + 6, parts.index(part), tip)
            x += width
        canvas.text(x + 6, y + 21, total, size=SMALL_FONT_SIZE, look="dim")
    if limit is not None:
        x = area.x_of(limit[0])
        canvas.line(x, top - 6, x, bottom, "limit")
        anchor = "start" if x < WIDTH / 2 else "end"
        canvas.text(x, top - 11, limit[1], size=SMALL_FONT_SIZE, look="ink bold", anchor=anchor)
    return canvas.render()


def _bar_area(
    scale: Scale, labels: Sequence[str], texts: Sequence[str], top: float, bottom: float
) -> PlotArea:
    """Return the area of bars between their labels and the texts at their ends."""
    left = LEFT + max(text_width(label, FONT_SIZE) for label in labels) + 10
    right = WIDTH - RIGHT - max(text_width(text, SMALL_FONT_SIZE) for text in texts) - 8
    return PlotArea(left, top, right, bottom, scale, NO_AXIS)


def line_chart(
    title: str,
    subtitle: str,
    series: Sequence[Series],
    x: Scale,
    y: Scale,
    notes: Sequence[str] = (),
) -> str:
    """Return a chart of lines and points over two axes.

    A point's label is written next to it if it overlaps no dot or label there, and on a line only
    if it must; otherwise the label is the point's tooltip only.
    """
    top = TOP + 30.0
    area = PlotArea(LEFT + 56.0, top, float(WIDTH - RIGHT - 10), top + PLOT_HEIGHT, x, y)
    canvas = Canvas(title, subtitle, area.bottom - 4 + AXIS_HEIGHT, notes)
    named = [one for one in series if not one.quiet]
    canvas.legend([one.name for one in named])
    canvas.x_axis(area)
    canvas.y_axis(area)
    dots = [(area.x_of(a), area.y_of(b)) for one in series if one.dots for a, b in one.points]
    taken: list[Box] = [(a - 5, b - 5, a + 5, b + 5) for a, b in dots]
    paths = [[(area.x_of(a), area.y_of(b)) for a, b in one.points] for one in series if one.line]
    segments = [pair for path in paths for pair in itertools.pairwise(path)]
    title_right = area.left + text_width(y.title, SMALL_FONT_SIZE)
    taken.append((area.left, top - 22, title_right, top - 4))
    labels: list[tuple[str, Box, str]] = []  # drawn last, over every line
    # quiet series first, then lines, then points
    for one in sorted(series, key=lambda one: (not one.quiet, not one.line)):
        color = GREY if one.quiet else named.index(one) % len(PALETTE)
        if one.line:
            look = f"{'thin' if one.quiet else 'curve'} c{color}-stroke" + " dashed" * one.dashed
            canvas.curve(area.path(one.points), look, one.name)
        for (a, b), label in zip(one.points, one.labels or [""] * len(one.points), strict=True):
            place = area.x_of(a), area.y_of(b)
            if one.dots:
                canvas.dot(*place, color, label or one.name)
            box = _label_box(label, *place, taken, segments, area) if label else None
            if box is not None:
                taken.append(box)
                labels.append((label, box, "halo dim" if one.quiet else "halo ink"))
    for label, box, look in labels:
        canvas.text(box[0], box[3] - 3, label, size=SMALL_FONT_SIZE, look=look)
    return canvas.render()


def _label_box(
    label: str,
    x: float,
    y: float,
    taken: Sequence[Box],
    segments: Sequence[tuple[Point, Point]],
    area: PlotArea,
) -> Box | None:
    """Return a free box for a label next to a point: right, left, above, below, or at a corner.

    The first that no line of `segments` crosses, or else the first. None if every one of them
    overlaps a box in `taken` or leaves the area.
    """
    width, height = text_width(label, SMALL_FONT_SIZE), 15.0
    corners = [
        (x + 8, y - 7.5), (x - 8 - width, y - 7.5), (x - width / 2, y - 22), (x - width / 2, y + 7),
        (x + 6, y - 21), (x + 6, y + 6), (x - 6 - width, y - 21), (x - 6 - width, y + 6),
    ]  # fmt: skip
    free: list[Box] = []
    for left, top in corners:
        box = (left, top, left + width, top + height)
        inside = (
            area.left <= box[0]
            and box[2] <= area.right
            and area.top <= box[1]
            and box[3] <= area.bottom
        )
        if inside and not any(overlap(box, other) for other in taken):
            free.append(box)
    clear = (box for box in free if not any(_crosses(box, *pair) for pair in segments))
    return next(clear, free[0] if free else None)


def _crosses(box: Box, one: Point, other: Point) -> bool:
    """Tell whether the straight line between two points touches the box."""
    (x1, y1), (x2, y2) = sorted((one, other))
    left, right = max(box[0], x1), min(box[2], x2)
    if left > right:
        return False
    slope = (y2 - y1) / (x2 - x1) if x2 > x1 else 0.0
    heights = (y1 + slope * (left - x1), y1 + slope * (right - x1)) if x2 > x1 else (y1, y2)
    return min(heights) <= box[3] and max(heights) >= box[1]
