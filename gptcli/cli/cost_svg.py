"""Charts as SVG text, drawn by hand: bars, stacked bars, and curves with points. Legible on light
and dark pages alike.

A label's room is reckoned at `EM` of its size a character, wider than common fonts are, so that
labels that do not touch here do not touch anywhere.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 860
LEFT, RIGHT, TOP = 24, 24, 78
ROW, BAR = 26, 16  # height of a row of bars, and of a bar
PLOT = 400  # height of a chart of curves
SIZE, SMALL = 13, 11.5
EM = 0.6

# On white and on near-black: blue, orange, green, purple, red, teal, brown, grey.
COLOURS = (
    ("#1f6fb4", "#5aa9e6"), ("#d97a06", "#f2a541"), ("#1d8a63", "#4fc79a"), ("#8657b8", "#b894e0"),
    ("#c2403a", "#ef7b74"), ("#0d8c9c", "#4cc3d1"), ("#8a6a3b", "#c7a46f"), ("#6b7280", "#9aa3af"),
)  # fmt: skip
INKS = {
    "paper": ("#ffffff", "#14171c"),
    "ink": ("#1b1f24", "#e8eaed"),
    "dim": ("#5a6270", "#a3abb8"),
    "grid": ("#e3e6ea", "#2b313a"),
}

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True, slots=True)
class Series:
    """Points that belong together, joined by a line or not."""

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()
    """Beside the points; empty for none."""
    line: bool = False
    dots: bool = True
    dashed: bool = False
    quiet: bool = False
    """Thin and grey, named by its last point and not in the legend."""


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis: values between `low` and `high`, by their logarithms or as they are."""

    title: str
    low: float
    high: float
    log: bool = True
    write: Callable[[float], str] = lambda value: f"{value:g}"

    def share(self, value: float) -> float:
        """How far along the axis `value` stands, from 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> Iterator[float]:
        """Powers of ten where there are enough, else 1, 2 and 5 of each, or every half; steps of 1,
        2 or 5 where the axis is linear.
        """
        if not self.log:
            step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
            step *= next(n for n in (1, 2, 5, 10) if (self.high - self.low) / (n * step) <= 8)
            yield from (
                n * step
                for n in range(
                    math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1
                )
            )
            return
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        decades = last - first
        digits = (
            (1,)
            if decades > 3
            else (1, 2, 5)
            if self.high / self.low > 8
            else tuple(n / 2 for n in range(2, 20))
        )
        every = max(1, -(-decades // 9))
        for exponent in range(first, last + 1, every):
            yield from (
                n * 10.0**exponent
                for n in digits
                if self.low * 0.9999 <= n * 10.0**exponent <= self.high * 1.0001
            )


class _Drawing:
    def __init__(self, title: str, subtitle: str, height: float, notes: Sequence[str]) -> None:
        lines = [
            line
            for note in notes
            for line in textwrap.wrap(note, int((WIDTH - LEFT - RIGHT) / room(" ", SMALL)))
        ]
        self.height = height + 20 * len(lines)
        self.parts: list[str] = []
        self.title, self.subtitle = title, subtitle
        self.text(LEFT, 30, shortened(title, 17, WIDTH - LEFT - RIGHT), size=17, look="ink bold")
        self.text(LEFT, 50, shortened(subtitle, SIZE, WIDTH - LEFT - RIGHT), look="dim")
        for number, note in enumerate(lines):
            self.text(LEFT, height + 20 * number, note, size=SMALL, look="dim")

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = SIZE,
        look: str = "ink",
        anchor: str = "start",
    ) -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" class="{look}">{escape(words)}</text>'
        )

    def line(self, x: float, y: float, to_x: float, to_y: float, look: str = "grid") -> None:
        self.parts.append(f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" class="{look}-line"/>')

    def bar(self, x: float, y: float, width: float, height: float, colour: int, tip: str) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.5, width):.1f}" height="{height:g}" class="c{colour % len(COLOURS)}">'
            f"<title>{escape(tip)}</title></rect>"
        )

    def legend(self, names: Sequence[str], y: float) -> None:
        x, width = float(LEFT), WIDTH - LEFT - RIGHT
        crowded = sum(30 + room(name, SMALL) for name in names) > width
        for number, name in enumerate(names):
            words = shortened(name, SMALL, width / len(names) - 30) if crowded else name
            self.bar(x, y - 9, 11, 11, number, name)
            self.text(x + 16, y, words, size=SMALL, look="dim")
            x += 16 + room(words, SMALL) + 14

    def svg(self) -> str:
        """The whole picture. Its title and subtitle stand for it where it cannot be seen."""
        light, dark = ("".join(_rules(shade)) for shade in (0, 1))
        style = (
            "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}.bold{font-weight:600}"
            ".line{fill:none;stroke-width:2;stroke-linejoin:round}.thin{fill:none;stroke-width:1.2}.dashed{stroke-dasharray:6 4}"
            f"{light}@media (prefers-color-scheme:dark){{{dark}}}"
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height:g}" width="{WIDTH}" height="{self.height:g}" '
            f'role="img" aria-labelledby="t d">\n<title id="t">{escape(self.title)}</title>\n<desc id="d">{escape(self.subtitle)}</desc>\n'
            f'<style>{style}</style>\n<rect width="{WIDTH}" height="{self.height:g}" class="paper"/>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def bars(
    title: str,
    subtitle: str,
    rows: Sequence[tuple[str, float, str, str]],
    scale: Scale,
    notes: Sequence[str] = (),
) -> str:
    """A bar for each row: its label, value, group, and what is written at its end. Groups have
    colours, and a legend.
    """
    groups = list(dict.fromkeys(group for _, _, group, _ in rows))
    drawing = _Drawing(title, subtitle, TOP + 10 + ROW * len(rows) + 62, notes)
    drawing.legend(groups, TOP - 2)
    left = LEFT + max(room(label) for label, *_ in rows) + 10
    right = WIDTH - RIGHT - max(room(text, SMALL) for *_, text in rows) - 8
    top, bottom = TOP + 12, TOP + 12 + ROW * len(rows)
    _grid(drawing, scale, left, right, top, bottom)
    for number, (label, value, group, text) in enumerate(rows):
        y = top + ROW * number
        width = scale.share(value) * (right - left)
        drawing.text(left - 8, y + 18, label, anchor="end")
        drawing.bar(left, y + 5, width, BAR, groups.index(group), f"{label}: {text}")
        drawing.text(left + width + 6, y + 17.5, text, size=SMALL, look="dim")
    return drawing.svg()


def stacks(
    title: str,
    subtitle: str,
    rows: Sequence[tuple[str, dict[str, float]]],
    scale: Scale,
    limit: tuple[float, str] | None = None,
) -> str:
    """A bar for each row, put together from its parts, and its sum at the end; `limit` draws a line
    that bars may cross, with its name.
    """
    parts = list(dict.fromkeys(part for _, values in rows for part in values))
    row = ROW + 8
    drawing = _Drawing(title, subtitle, TOP + 28 + row * len(rows) + 62, ())
    drawing.legend(parts, TOP - 2)
    left = LEFT + max(room(label) for label, _ in rows) + 10
    right = (
        WIDTH
        - RIGHT
        - max(room(scale.write(sum(values.values())), SMALL) for _, values in rows)
        - 8
    )
    top, bottom = TOP + 30, TOP + 30 + row * len(rows)
    _grid(drawing, scale, left, right, top, bottom)
    for number, (label, values) in enumerate(rows):
        x, y = left, top + row * number
        drawing.text(left - 8, y + 22, label, anchor="end")
        for part, value in values.items():
            width = value / scale.high * (right - left)
            if value > 0:
                drawing.bar(
                    x,
                    y + 6,
                    width,
                    BAR + 6,
                    parts.index(part),
                    f"{label}, {part}: {scale.write(value)}",
                )
            x += width
        drawing.text(x + 6, y + 21, scale.write(sum(values.values())), size=SMALL, look="dim")
    if limit is not None:
        x = left + scale.share(limit[0]) * (right - left)
        drawing.line(x, top - 6, x, bottom, "limit")
        drawing.text(
            x,
            top - 11,
            limit[1],
            size=SMALL,
            look="ink bold",
            anchor="start" if x < WIDTH / 2 else "end",
        )
    return drawing.svg()


def curves(
    title: str,
    subtitle: str,
    series: Sequence[Series],
    x: Scale,
    y: Scale,
    notes: Sequence[str] = (),
) -> str:
    """Lines and points over two axes. A point's label stands where it touches nothing; where there
    is no such place, it is a tip only.
    """
    drawing = _Drawing(title, subtitle, TOP + 26 + PLOT + 62, notes)
    loud = [one for one in series if not one.quiet]
    drawing.legend([one.name for one in loud], TOP - 2)
    left, right, top, bottom = LEFT + 56.0, float(WIDTH - RIGHT - 10), TOP + 30.0, TOP + 30.0 + PLOT
    _grid(drawing, x, left, right, top, bottom)
    for tick in y.ticks():
        height = bottom - y.share(tick) * (bottom - top)
        drawing.line(left, height, right, height)
        drawing.text(left - 8, height + 4, y.write(tick), size=SMALL, look="dim", anchor="end")
    drawing.text(left, top - 8, y.title, size=SMALL, look="dim")

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return left + x.share(point[0]) * (right - left), bottom - y.share(point[1]) * (
            bottom - top
        )

    dots = [at(point) for one in series if one.dots for point in one.points]
    taken: list[Box] = [(a - 5, b - 5, a + 5, b + 5) for a, b in dots] + [
        (left, top - 22, left + room(y.title, SMALL), top - 4)
    ]
    inside = (left, top, right, bottom)
    labels: list[tuple[str, Box, str]] = []  # drawn last, over every line
    for one in sorted(series, key=lambda one: (not one.quiet, not one.line)):  # points over lines
        colour = "c7" if one.quiet else f"c{loud.index(one) % len(COLOURS)}"
        places = [at(point) for point in one.points]
        if one.line:
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
            look = f"{'thin' if one.quiet else 'line'} {colour}-stroke{' dashed' if one.dashed else ''}"
            drawing.parts.append(
                f'<path d="M{path}" class="{look}"><title>{escape(one.name)}</title></path>'
            )
        for (a, b), label in zip(places, one.labels or [""] * len(places), strict=True):
            if one.dots:
                tip = escape(label or one.name)
                drawing.parts.append(
                    f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4.5" class="{colour}"><title>{tip}</title></circle>'
                )
            if label and (place := _place(label, a, b, taken, inside)) is not None:
                taken.append(place)
                labels.append((label, place, "halo dim" if one.quiet else "halo ink"))
    for label, place, look in labels:
        drawing.text(place[0], place[3] - 3, label, size=SMALL, look=look)
    return drawing.svg()


def room(words: str, size: float = SIZE) -> float:
    """An upper bound of how wide `words` are."""
    return EM * size * len(words)


def shortened(words: str, size: float, width: float) -> str:
    """As much of `words` as there is room for."""
    most = int(width / room(" ", size))
    return words if len(words) <= most else words[: most - 1] + "…"


def _grid(
    drawing: _Drawing, scale: Scale, left: float, right: float, top: float, bottom: float
) -> None:
    for tick in scale.ticks():
        x = left + scale.share(tick) * (right - left)
        drawing.line(x, top, x, bottom)
        drawing.text(x, bottom + 18, scale.write(tick), size=SMALL, look="dim", anchor="middle")
    drawing.text(
        (left + right) / 2, bottom + 38, scale.title, size=SMALL, look="dim", anchor="middle"
    )


def _place(label: str, x: float, y: float, taken: Sequence[Box], inside: Box) -> Box | None:
    """Room for a label beside a point: right, left, above, below, and the corners between; None
    where all is taken.
    """
    width, height = room(label, SMALL), 15.0
    corners = [
        (x + 8, y - 7.5),
        (x - 8 - width, y - 7.5),
        (x - width / 2, y - 22),
        (x - width / 2, y + 7),
    ]
    corners += [(x + 6, y - 21), (x + 6, y + 6), (x - 6 - width, y - 21), (x - 6 - width, y + 6)]
    for left, top in corners:
        box = (left, top, left + width, top + height)
        if (
            inside[0] <= box[0]
            and box[2] <= inside[2]
            and inside[1] <= box[1]
            and box[3] <= inside[3]
            and not any(overlap(box, other) for other in taken)
        ):
            return box
    return None


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _rules(shade: int) -> Iterator[str]:
    """Colours in light (0) or dark (1)."""
    for name, pair in INKS.items():
        yield f".{name}{{fill:{pair[shade]}}}"
    yield f".halo{{paint-order:stroke;stroke:{INKS['paper'][shade]};stroke-width:4;stroke-linejoin:round}}"
    yield f".grid-line{{stroke:{INKS['grid'][shade]};fill:none}}"
    yield f".limit-line{{stroke:{INKS['ink'][shade]};stroke-width:1.5;stroke-dasharray:5 4;fill:none}}"
    for number, pair in enumerate(COLOURS):
        yield f".c{number}{{fill:{pair[shade]}}}.c{number}-stroke{{stroke:{pair[shade]}}}"
