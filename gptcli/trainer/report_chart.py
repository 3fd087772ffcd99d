"""Curves as inline SVG that says more where one points at it: no script, no network, colours by the
page's style.
"""

from __future__ import annotations

import bisect
import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gptcli.numbers import COUNTS

POINTS = 400  # of a curve: longer ones are averaged
COLUMNS = 60  # places over which a chart can be asked for its values
COLOURS = 6
SPARSE = 60  # a curve of fewer points shows each as a dot
START = 0.1  # of the run: where it begins far above all the rest, the axis does not follow it there
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 276, 72, 26, 14, 32

Curve = list[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """From values to places."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def across(self, x: float) -> float:
        return LEFT + (x - self.x_low) / (self.x_high - self.x_low or 1) * (WIDTH - LEFT - RIGHT)

    def down(self, y: float) -> float:
        return TOP + (self.y_high - y) / (self.y_high - self.y_low or 1) * (HEIGHT - TOP - BOTTOM)

    def path(self, curve: Curve) -> str:
        return "M" + "L".join(f"{self.across(x):.1f} {self.down(y):.1f}" for x, y in curve)


def chart(
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
) -> str:
    """One figure over `over`, from 0 or by its logarithm; at least one curve has points. Names and
    titles are plain text.

    `from_zero`: so that heights can be compared. `mean`: of dense curves the running mean is drawn,
    `raw`: over their own points, faintly.
    """
    if log_x:
        curves = {name: [(math.log10(x), y) for x, y in curve] for name, curve in curves.items()}
    # a curve without points keeps its own
    colours = {name: number % COLOURS for number, name in enumerate(curves)}
    points = {name: thinned(curve) for name, curve in curves.items() if curve}
    drawn = {name: smoothed(curve) if mean else curve for name, curve in points.items()}
    frame, y_step, cut = framed(
        list(drawn.values()),
        log_x=log_x,
        from_zero=from_zero,
        behind=list(points.values()) if raw else [],
    )
    parts = axes(frame, y_step, over, log_x=log_x)
    inner = f'width="{WIDTH - LEFT}" height="{HEIGHT - BOTTOM + 2}"'
    # cuts off what begins above the axis
    parts.append(
        f'<svg x="{LEFT}" {inner} viewBox="{LEFT} 0 {WIDTH - LEFT} {HEIGHT - BOTTOM + 2}">'
    )
    for name, curve in drawn.items():
        if raw and points[name] is not curve:
            parts.append(f'<path class="c{colours[name]} raw" d="{frame.path(points[name])}"/>')
    for name, curve in drawn.items():
        parts.append(f'<path class="c{colours[name]}" d="{frame.path(curve)}"/>')
        if len(curve) < SPARSE:
            dots = "".join(
                f'<circle cx="{frame.across(x):.1f}" cy="{frame.down(y):.1f}" r="2.5"/>'
                for x, y in curve
            )
            parts.append(f'<g class="c{colours[name]}">{dots}</g>')
    parts.append("</svg>")
    parts += columns(frame, drawn, colours, over, log_x=log_x)
    notes = [unit] * bool(unit) + ([] if cut is None else [f"begins at {short(cut)}"])
    title = html.escape(title)
    heading = f"<h2>{title} <small>{html.escape(', '.join(notes))}</small></h2>{legend({name: colours[name] for name in drawn})}"
    last = ", ".join(
        f"{html.escape(name)} {tick_text(curve[-1][1], y_step / 10)}".strip()
        for name, curve in drawn.items()
    )
    return (
        f'<section class="{"tall" if tall else "chart"}">{heading}'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}: in the end {last}">{"".join(parts)}</svg></section>\n'
    )


def legend(colours: dict[str, int]) -> str:
    """What each line stands for; nothing where a single one has no name."""
    keys = (
        f"<span>{swatch(colour)} {html.escape(name)}</span>"
        for name, colour in colours.items()
        if name
    )
    return f'<p class="key">{"".join(keys)}</p>' if any(colours) else ""


def swatch(number: int) -> str:
    """A piece of the line that the curve of this number is drawn with."""
    return f'<svg class="swatch" viewBox="0 0 24 8" aria-hidden="true"><path class="c{number % COLOURS}" d="M0 4H24"/></svg>'


def framed(
    curves: list[Curve], *, log_x: bool, from_zero: bool, behind: Sequence[Curve] = ()
) -> tuple[Frame, float, float | None]:
    """Return the frame, the step between its ticks, and the highest value if the first part of the
    run is left above the frame. It holds nine points in ten of the curves `behind`, which are drawn
    faintly."""
    xs = [x for curve in curves for x, _ in curve]
    ys = [y for curve in curves for _, y in curve]
    x_low = min(xs) if log_x else 0.0
    later = [y for curve in curves for x, y in curve if x > x_low + START * (max(xs) - x_low)]
    cut = None
    if later and max(ys) > max(later) and max(ys) - min(ys) > 1.5 * (max(later) - min(ys)) > 0:
        cut, ys = max(ys), [y for y in ys if y <= max(later)]
    faint = sorted(y for curve in behind for x, y in curve if x > x_low + START * (max(xs) - x_low))
    ys += [faint[round(share * (len(faint) - 1))] for share in (0.05, 0.95) if faint]
    low, high = min(ys), max(ys)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if flat(low, high):
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    step = tick_step(low, high)
    x_high = max(xs)
    if not log_x and x_high > 0:  # a run in whole sequences ends a little before a round number
        nearest_tick = round(x_high / (across := tick_step(0, x_high))) * across
        x_high = nearest_tick if x_high < nearest_tick < 1.01 * x_high else x_high
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Frame(x_low=x_low, x_high=x_high, y_low=low, y_high=high), step, cut


def axes(frame: Frame, y_step: float, over: str, *, log_x: bool) -> list[str]:
    parts = [f'<text x="{LEFT - 6}" y="{HEIGHT - 6}" text-anchor="end">{html.escape(over)}</text>']
    for y in ticks(frame.y_low, frame.y_high, y_step):
        down = frame.down(y)
        parts.append(f'<path class="grid" d="M{LEFT} {down:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{tick_text(y, y_step)}</text>'
        )
    x_step = tick_step(frame.x_low, frame.x_high) if frame.x_high > frame.x_low else 1.0
    for number, x in enumerate(
        ticks(frame.x_low, frame.x_high, max(x_step, 1.0) if log_x else x_step)
    ):
        text = f"{10**x:.2g}" if log_x else tick_text(x, x_step)
        anchor = "middle" if number else "start"
        parts.append(
            f'<text x="{frame.across(x):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{text}</text>'
        )
    return parts


def columns(
    frame: Frame, curves: dict[str, Curve], colours: dict[str, int], over: str, *, log_x: bool
) -> list[str]:
    """Strips over the chart, each of which shows the values below it while it is pointed at."""
    places = sorted({x for curve in curves.values() for x, _ in curve})
    if len(places) > COLUMNS:
        places = [places[number * (len(places) - 1) // (COLUMNS - 1)] for number in range(COLUMNS)]
    at = [frame.across(x) for x in places]
    borders = [float(LEFT), *((a + b) / 2 for a, b in itertools.pairwise(at)), float(WIDTH)]
    parts = []
    for number, (x, across) in enumerate(zip(places, at, strict=True)):
        side, anchor = (across + 8, "start") if across < (LEFT + WIDTH) / 2 else (across - 8, "end")
        lines, dots = (
            [
                f'<tspan x="{side:.1f}">{f"{10**x:.3g}" if log_x else short(x)} {html.escape(over)}</tspan>'
            ],
            [],
        )
        for name, curve in curves.items():
            if (point := nearest(curve, x)) is not None:
                value = f"{point[1]:.4g}" if abs(point[1]) < 1e3 else short(point[1])
                text = f"{html.escape(name)} {value}".strip()
                lines.append(
                    f'<tspan class="t{colours[name]}" x="{side:.1f}" dy="1.3em">{text}</tspan>'
                )
                if point[1] <= frame.y_high:
                    place = f'cx="{frame.across(point[0]):.1f}" cy="{frame.down(point[1]):.1f}"'
                    dots.append(f'<circle class="c{colours[name]}" {place} r="3.5"/>')
        shown = f'<path d="M{across:.1f} {TOP}V{HEIGHT - BOTTOM}"/>{"".join(dots)}'
        shown += f'<text y="{TOP + 10}" text-anchor="{anchor}">{"".join(lines)}</text>'
        strip = f'<rect x="{borders[number]:.1f}" y="0" width="{borders[number + 1] - borders[number]:.1f}" height="{HEIGHT - BOTTOM}"/>'
        parts.append(f'<g class="at">{strip}<g>{shown}</g></g>')
    return parts


def nearest(curve: Curve, x: float) -> tuple[float, float] | None:
    """The curve's point nearest to `x`; None beyond its ends."""
    if not curve[0][0] <= x <= curve[-1][0]:
        return None
    place = bisect.bisect_left(curve, (x, -math.inf))
    return min(curve[max(0, place - 1) : place + 1], key=lambda point: abs(point[0] - x))


def thinned(curve: Curve) -> Curve:
    """At most POINTS points, each the mean of its neighbours."""
    size = -(-len(curve) // POINTS)
    if size < 2:
        return curve
    weights = widths(curve)
    return [
        (
            sum(x for x, _ in curve[a : a + size]) / len(curve[a : a + size]),
            mean(curve, weights, a, a + size),
        )
        for a in range(0, len(curve), size)
    ]


def smoothed(curve: Curve) -> Curve:
    """Return the mean over a 40th of the curve to either side, no further ahead than back, by how
    far each point reaches: a small last batch counts for little. A curve of few points stays as it
    is."""
    most = len(curve) // 40
    if most < 2:
        return curve
    weights = widths(curve)
    means = []
    for place, (x, _) in enumerate(curve):
        reach = min(most, place)
        means.append((x, mean(curve, weights, place - reach, place + reach + 1)))
    return means


def widths(curve: Curve) -> list[float]:
    """Return how far each point lies from the one before: of a step's figures over tokens, its
    batch.
    """
    apart = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(curve)]
    return [apart[0] if apart else 1.0, *apart]


def mean(curve: Curve, weights: list[float], start: int, end: int) -> float:
    """Return the mean of the values from `start` to before `end`, by weight; each alike if none has
    any.
    """
    values, near = [y for _, y in curve[start:end]], weights[start:end]
    total = sum(near)
    return (
        sum(y * w for y, w in zip(values, near, strict=True)) / total
        if total > 0
        else sum(values) / len(values)
    )


def flat(low: float, high: float) -> bool:
    return high - low <= 1e-9 * max(abs(low), abs(high), 1e-200)


def tick_step(low: float, high: float) -> float:
    """A round distance that lies two to five times between two values that differ."""
    rough = (high - low) / 5
    unit = 10 ** math.floor(math.log10(rough))
    return next(
        unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * (1 - 1e-9)
    )


def ticks(low: float, high: float, step: float) -> list[float]:
    """The multiples of `step` from `low` to `high`; `low` where there is none."""
    return [
        number * step
        for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ] or [low]


def tick_text(value: float, step: float) -> str:
    """A value as finely as ticks `step` apart must be told from each other: 2.25, 500k, 1.5M,
    2e-5.
    """
    if abs(value) < step * 1e-6:
        return "0"
    size, suffix = next(
        ((size, suffix) for size, suffix in COUNTS if abs(value) >= size), (1.0, "")
    )
    if not suffix and 0 < abs(value) < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-")
    digits = min(6, max(0, -math.floor(math.log10(step / size) + 1e-9)))
    if digits < 6 and abs(step / size * 10**digits % 1 - 0.5) < 1e-3:  # a quarter needs one more
        digits += 1
    return f"{value / size:.{digits}f}{suffix}"


def short(value: float) -> str:
    size, suffix = next(
        ((size, suffix) for size, suffix in COUNTS if abs(value) >= size), (1.0, "")
    )
    return f"{value / size:.4g}{suffix}" if suffix else f"{value:.3g}"
