"""Training curves: averaging, choice of axes, and charts as inline SVG for an HTML page.

A chart needs no script and no network: pointing at it shows the values there, a table below it has
some of them, and the page's style gives it its colors. `chart_data` has the curves for the page's
script, which draws them anew.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptcli.runs.page import folded, table
from gptcli.runs.svg import PALETTE, PlotArea, Scale, escape, short, tick_step, tick_text

MAX_POINTS = 400  # of a drawn curve; longer ones are averaged
MAX_DATA_POINTS = 2000  # of a curve that the page's script draws: a zoom shows more
MAX_HOVER_STRIPS = 60  # places of a chart that show their values
MAX_TABLE_ROWS = 8  # of the table below a chart
MAX_DOTTED_POINTS = 60  # curves of fewer points show each as a dot
# Share of the run at its start that the y axis leaves out if the values there are far above the
# rest.
START_SHARE = 0.1
MAX_LOG_TICKS, LOG_DIGITS = 8, ("1.0", "1.5", "2.0", "3.0", "4.0", "6.0", "8.0")
LOG_MARGIN = 1.02  # ratio of the end of a logarithmic y axis to the last value
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 276, 72, 26, 14, 32  # px, with margins

Curve = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axes:
    """Axes chosen for a set of curves."""

    x: Scale
    y: Scale
    peak: float | None
    """Highest value of the run's start, if it is left above the y axis."""
    above: float | None = None
    """Highest value after that, if it is above the y axis."""
    below: float | None = None
    """Lowest value, if it is below the y axis."""

    @property
    def left_out(self) -> str:
        """Words on what the y axis does not contain; the page's script says the same."""
        words = [
            *([] if self.peak is None else [f"begins at {short(self.peak)}"]),
            *([] if self.above is None else [f"single steps up to {short(self.above)}"]),
            *([] if self.below is None else [f"single steps down to {short(self.below)}"]),
        ]
        return ", ".join(words)

    @property
    def area(self) -> PlotArea:
        """Plot area of an inline chart."""
        return PlotArea(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM, self.x, self.y)


def inline_chart(
    title: str,
    curves: dict[str, Curve],
    *,
    unit: str = "",
    over: str = "tokens",
    log_x: bool = False,
    from_zero: bool = False,
    mean: bool = False,
    raw: bool = False,
    tall: bool = False,
    log_y: bool = False,
    number: int | None = None,
) -> str:
    """Return a chart of curves by name, as a <section> with a heading, a legend, an SVG and a table.

    At least one curve must have points. `over` names the x axis, which begins at 0 unless `log_x`
    is set. `from_zero` begins the y axis at 0, so that heights can be compared. `mean` draws the
    running mean of dense curves, and `raw` their own points faintly behind it. With `log_y` the y
    axis is logarithmic where it would leave out the start of the run. `number` is the place of the
    chart's `chart_data` in the data of the page.
    """
    # a curve without points keeps its color
    colors = {name: number % len(PALETTE) for number, name in enumerate(curves)}
    points = {name: thin(curve) for name, curve in curves.items() if curve}
    drawn = {name: running_mean(curve) if mean else curve for name, curve in points.items()}
    faint = list(points.values()) if raw else []
    axes = choose_axes(
        list(drawn.values()), log_x=log_x, from_zero=from_zero, faint=faint, log_y=log_y
    )
    area = axes.area
    parts = [*_axis_labels(area, over), _lines(area, drawn, points if raw else {}, colors)]
    parts += _hover_strips(area, drawn, colors, over)
    words = ", ".join(filter(None, [unit, axes.left_out]))
    heading = f"<h2>{escape(title)} <small>{escape(words)}</small></h2>"
    step = axes.y.step and axes.y.step / 10
    last = ", ".join(
        f"{name} {tick_text(curve[-1][1], step) if step else short(curve[-1][1])}".strip()
        for name, curve in drawn.items()
    )
    label = f'role="img" aria-label="{escape(f"{title}: in the end {last}")}"'
    of_data = "" if number is None else f' data-chart="{number}"'
    return (
        f'<section class="{"tall" if tall else "chart"}"{of_data}>{heading}'
        f"{legend({name: colors[name] for name in drawn})}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" {label}>{"".join(parts)}</svg>'
        f"{folded('Values', _value_table(drawn, axes, over))}</section>\n"
    )


def chart_data(
    title: str, curves: dict[str, Curve], xs: list[list[float]], runs: Sequence[int], **options: Any
) -> dict[str, Any]:
    """Return the curves of a chart and what the script needs of the options of `inline_chart`.

    Curve i is of the run `runs[i]`. The x values are in `xs`, to which new ones are appended: most
    curves share theirs.
    """
    found = []
    for number, (name, curve) in enumerate(curves.items()):
        if not curve:
            continue
        points = thin(curve, MAX_DATA_POINTS)
        places: list[float] = [round(x) for x, _ in points]
        if places not in xs:
            xs.append([*places])
        found.append(
            {
                "name": name,
                "color": number % len(PALETTE),
                "run": runs[number],
                "x": xs.index(places),
                "y": [float(f"{y:.6g}") for _, y in points],
            }
        )
    unit = options.get("unit", "")
    flags = {key: options.get(key, False) for key in ("from_zero", "mean", "raw", "log_y")}
    return {"title": title, "unit": unit, "curves": found, **flags}


def frame() -> dict[str, int]:
    """Return the size and the margins of a chart in px, for the page's script."""
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": RIGHT,
        "top": TOP,
        "bottom": BOTTOM,
    }


def _value_table(curves: dict[str, Curve], axes: Axes, over: str) -> str:
    """Return a table of some values of the curves, for readers who cannot see or hover."""
    places = sorted({x for curve in curves.values() for x, _ in curve})
    last = len(places) - 1
    count = min(MAX_TABLE_ROWS, len(places))
    rows = []
    for number in range(count):
        x = places[number * last // max(count - 1, 1)]
        points = [nearest(curve, x) for curve in curves.values()]
        cells = ["–" if point is None else short(point[1]) for point in points]
        rows.append([f"{x:.3g}" if axes.x.log else short(x), *cells])
    return table([over, *(escape(name or "value") for name in curves)], rows)


def legend(colors: dict[str, int]) -> str:
    """Return a legend as HTML; nothing for a single curve without a name."""
    entries = (
        f"<span>{swatch(color)} {escape(name)}</span>" for name, color in colors.items() if name
    )
    return f'<p class="key">{"".join(entries)}</p>' if any(colors) else ""


def swatch(number: int) -> str:
    """Return a short piece of the line of curve `number`, as inline SVG."""
    return (
        '<svg class="swatch" viewBox="0 0 24 8" aria-hidden="true">'
        f'<path class="c{number % len(PALETTE)}" d="M0 4H24"/></svg>'
    )


def choose_axes(
    curves: list[Curve],
    *,
    log_x: bool = False,
    from_zero: bool = False,
    faint: Sequence[Curve] = (),
    log_y: bool = False,
) -> Axes:
    """Choose axes that end on ticks and show the curves.

    The y axis leaves out the start of a run if it is far above the rest, and contains 90 % of the
    points of the `faint` curves. With `log_y` it is logarithmic instead, and contains them all.
    """
    xs = [x for curve in curves for x, _ in curve]
    ys = [y for curve in curves for _, y in curve]
    x = Scale("", min(xs) if log_x else 0.0, max(xs), log=log_x)
    later = [y for curve in curves for at, y in curve if x.fraction(at) > START_SHARE]
    peak = None
    if later and max(ys) > max(later) and max(ys) - min(ys) > 1.5 * (max(later) - min(ys)) > 0:
        every = [*ys, *(y for curve in faint for _, y in curve)]
        if log_y and min(every) > 0:
            low, high = min(every) / LOG_MARGIN, max(every) * LOG_MARGIN
            y = Scale("", low, high, format=lambda value: f"{value:.3g}")
            return Axes(_x_scale(x), y, None)
        peak, ys = max(ys), [y for y in ys if y <= max(later)]
    behind = sorted(y for curve in faint for at, y in curve if x.fraction(at) > START_SHARE)
    ys += [behind[round(share * (len(behind) - 1))] for share in (0.05, 0.95) if behind]
    low, high = min(ys), max(ys)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-200):  # a constant
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    step = tick_step(low, high)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    y = Scale("", low, high, log=False, format=lambda value: tick_text(value, step), step=step)
    seen = [
        value
        for curve in (*curves, *faint)
        for at, value in curve
        if peak is None or x.fraction(at) > START_SHARE
    ]
    above, below = max(seen), min(seen)
    return Axes(
        _x_scale(x),
        y,
        peak,
        above=above if above > high + step * 1e-6 else None,
        below=below if below < low - step * 1e-6 else None,
    )


def _x_scale(x: Scale) -> Scale:
    """Return the x axis with ticks, and extended to a round number that it just misses."""
    if x.log:
        return Scale("", x.low, x.high, format=lambda value: f"{value:.2g}")
    step, high = tick_step(0, x.high) if x.high > 0 else 1.0, x.high
    # a run of whole sequences ends a little before a round number of tokens
    nearest_tick = round(high / step) * step
    high = nearest_tick if high < nearest_tick < 1.01 * high else high
    return Scale("", 0.0, high, log=False, format=lambda value: tick_text(value, step), step=step)


def _axis_labels(area: PlotArea, over: str) -> list[str]:
    parts = [_text(LEFT - 6, HEIGHT - 6, "end", over)]
    ticks = area.y.ticks()
    if area.y.log and len(ticks) > MAX_LOG_TICKS:  # halves are close to each other at the top
        ticks = [tick for tick in ticks if f"{tick:.1e}"[:3] in LOG_DIGITS]
    for tick in ticks:
        y = area.y_of(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 6, y + 4, "end", area.y.format(tick)))
    for number, tick in enumerate(area.x.ticks()):
        anchor = "middle" if number else "start"
        parts.append(_text(area.x_of(tick), HEIGHT - 6, anchor, area.x.format(tick)))
    return parts


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _lines(
    area: PlotArea, drawn: dict[str, Curve], raw: dict[str, Curve], colors: dict[str, int]
) -> str:
    """Return the curves in an SVG of their own, which cuts off what begins above the y axis."""
    width, height = WIDTH - LEFT, HEIGHT - BOTTOM + 2
    parts = [
        f'<path class="c{colors[name]} raw" d="{area.path(raw[name])}"/>'
        for name, curve in drawn.items()
        if name in raw and raw[name] is not curve
    ]
    for name, curve in drawn.items():
        parts.append(f'<path class="c{colors[name]}" d="{area.path(curve)}"/>')
        if len(curve) < MAX_DOTTED_POINTS:
            dots = (
                f'<circle cx="{area.x_of(x):.1f}" cy="{area.y_of(y):.1f}" r="2.5"/>'
                for x, y in curve
            )
            parts.append(f'<g class="c{colors[name]}">{"".join(dots)}</g>')
    return (
        f'<svg x="{LEFT}" width="{width}" height="{height}" '
        f'viewBox="{LEFT} 0 {width} {height}">{"".join(parts)}</svg>'
    )


def _hover_strips(
    area: PlotArea, curves: dict[str, Curve], colors: dict[str, int], over: str
) -> list[str]:
    """Return strips over the chart; each shows the values below it while it is pointed at."""
    places = sorted({x for curve in curves.values() for x, _ in curve})
    if (count := len(places)) > MAX_HOVER_STRIPS:
        last = MAX_HOVER_STRIPS - 1
        places = [places[number * (count - 1) // last] for number in range(MAX_HOVER_STRIPS)]
    centers = [area.x_of(x) for x in places]
    middles = ((a + b) / 2 for a, b in itertools.pairwise(centers))
    borders = [float(LEFT), *middles, float(WIDTH)]
    parts = []
    for (start, end), x, center in zip(itertools.pairwise(borders), places, centers, strict=True):
        on_left = center < (LEFT + WIDTH) / 2
        text_x, anchor = (center + 8, "start") if on_left else (center - 8, "end")
        head = f"{f'{x:.3g}' if area.x.log else short(x)} {over}"
        lines, dots = [f'<tspan x="{text_x:.1f}">{escape(head)}</tspan>'], []
        for name, curve in curves.items():
            if (point := nearest(curve, x)) is None:
                continue
            color, text = colors[name], escape(f"{name} {short(point[1])}".strip())
            lines.append(f'<tspan class="t{color}" x="{text_x:.1f}" dy="1.3em">{text}</tspan>')
            if point[1] <= area.y.high:
                place = f'cx="{area.x_of(point[0]):.1f}" cy="{area.y_of(point[1]):.1f}"'
                dots.append(f'<circle class="c{color}" {place} r="3.5"/>')
        shown = f'<path d="M{center:.1f} {TOP}V{HEIGHT - BOTTOM}"/>{"".join(dots)}'
        shown += f'<text y="{TOP + 10}" text-anchor="{anchor}">{"".join(lines)}</text>'
        size = f'width="{end - start:.1f}" height="{HEIGHT - BOTTOM}"'
        strip = f'<rect x="{start:.1f}" y="0" {size}/>'
        parts.append(f'<g class="at">{strip}<g>{shown}</g></g>')
    return parts


def nearest(curve: Curve, x: float) -> tuple[float, float] | None:
    """Return the curve's point nearest to `x`; None beyond its ends."""
    if not curve[0][0] <= x <= curve[-1][0]:
        return None
    place = bisect.bisect_left(curve, (x, -math.inf))
    return min(curve[max(0, place - 1) : place + 1], key=lambda point: abs(point[0] - x))


def thin(curve: Curve, max_points: int = MAX_POINTS) -> Curve:
    """Return at most `max_points` points, each the mean of its neighbors."""
    size = -(-len(curve) // max_points)
    if size < 2:
        return curve
    weights, found = _widths(curve), []
    for start in range(0, len(curve), size):
        part = curve[start : start + size]
        x = sum(x for x, _ in part) / len(part)
        found.append((x, _mean(part, weights[start : start + size])))
    return found


def running_mean(curve: Curve) -> Curve:
    """Return the mean over a 40th of the curve to either side, never further ahead than back.

    A point's weight is its distance from the one before, so that a small last batch counts for
    little. A curve of fewer than 80 points is returned unchanged.
    """
    max_reach = len(curve) // 40
    if max_reach < 2:
        return curve
    weights, means = _widths(curve), []
    for place, (x, _) in enumerate(curve):
        reach = min(max_reach, place)
        near = slice(place - reach, place + reach + 1)
        means.append((x, _mean(curve[near], weights[near])))
    return means


def _widths(curve: Curve) -> list[float]:
    """Return each point's distance from the one before: for a metric over tokens, the batch."""
    distances = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(curve)]
    return [distances[0] if distances else 1.0, *distances]


def _mean(points: Curve, weights: Sequence[float]) -> float:
    """Return the weighted mean of the values; the plain mean if all weights are zero."""
    total = sum(weights)
    if total > 0:
        return sum(y * weight for (_, y), weight in zip(points, weights, strict=True)) / total
    return sum(y for _, y in points) / len(points)
