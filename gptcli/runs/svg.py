"""SVG primitives shared by every figure: colors, scales, ticks, text, and a canvas with a legend.

Figures are legible on light and on dark pages. A browser decides how wide a label is, so layout
assumes `MAX_EM` of the font size per character, more than common fonts need: labels that do not
overlap here do not overlap in any font.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gptcli.numbers import COUNTS, amount

MAX_EM = 0.6  # upper bound of a character's width, in font sizes
TITLE_SIZE, FONT_SIZE, SMALL_FONT_SIZE = 17, 13, 11.5  # px
WIDTH = 860  # of a figure with a title of its own, px
LEFT, RIGHT, TOP = 24, 24, 78  # margins, px

# (light, dark): blue, vermilion, green, purple, gold, ink, teal and grey. They differ in hue and in
# lightness, for readers who do not tell red from green.
PALETTE = (
    ("#0b62c4", "#79b4ff"), ("#cf4a06", "#ff9a57"), ("#00543d", "#2fa57b"), ("#b552ad", "#d77fd0"),
    ("#a37c00", "#ffe27a"), ("#1b1f24", "#f2f4f6"), ("#0d8c9c", "#4cc3d1"), ("#6b7280", "#9aa3af"),
)  # fmt: skip
GREY = len(PALETTE) - 1
THEME = {
    "back": ("#ffffff", "#121518"),
    "ink": ("#1b1f24", "#e6e8eb"),
    "dim": ("#59636e", "#9aa5b1"),
    "line": ("#dfe3e8", "#2b3138"),
    "card": ("#f6f7f9", "#1a1e23"),
}
FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"

Points = Sequence[tuple[float, float]]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Axis from `low` to `high`, logarithmic or linear."""

    title: str
    low: float
    high: float
    log: bool = True
    format: Callable[[float], str] = lambda value: f"{value:g}"
    step: float | None = None
    """Distance between ticks of a linear axis; None chooses one."""

    def fraction(self, value: float) -> float:
        """Return the position of `value` along the axis: 0 at `low`, 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / (math.log(self.high / self.low) or 1)
        return (value - self.low) / (self.high - self.low or 1)

    def ticks(self) -> list[float]:
        """Return the values to label.

        A linear axis has multiples of 1, 2 or 5 times a power of ten; a logarithmic one has powers
        of ten, and below four decades also 2 and 5 times each, or every half.
        """
        if not self.log:
            step = self.step or tick_step(self.low, self.high, max_intervals=8, factors=(1, 2, 5))
            return multiples(self.low, self.high, step)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        if last - first > 3:
            digits: Sequence[float] = (1,)
        elif self.high / self.low > 8:
            digits = (1, 2, 5)
        else:
            digits = tuple(n / 2 for n in range(2, 20))
        found = [
            digit * 10.0**exponent
            for exponent in range(first, last + 1, max(1, -(-(last - first) // 9)))
            for digit in digits
        ]
        return [tick for tick in found if self.low * 0.9999 <= tick <= self.high * 1.0001]


@dataclass(frozen=True, slots=True)
class PlotArea:
    """Rectangle between two axes, in px; maps values to places in it."""

    left: float
    top: float
    right: float
    bottom: float
    x: Scale
    y: Scale

    def x_of(self, value: float) -> float:
        """Return the horizontal place of a value."""
        return self.left + self.x.fraction(value) * (self.right - self.left)

    def y_of(self, value: float) -> float:
        """Return the vertical place of a value; y grows downwards."""
        return self.bottom - self.y.fraction(value) * (self.bottom - self.top)

    def path(self, points: Points) -> str:
        """Return the `d` attribute of a line through the points."""
        return "M" + "L".join(f"{self.x_of(x):.1f} {self.y_of(y):.1f}" for x, y in points)


def tick_step(
    low: float, high: float, max_intervals: int = 5, factors: Sequence[float] = (1, 2, 2.5, 5)
) -> float:
    """Return the smallest round distance that fits at most `max_intervals` times between two
    different values: one of `factors` times a power of ten.
    """
    rough = (high - low) / max_intervals
    unit = 10 ** math.floor(math.log10(rough))
    return next(unit * factor for factor in (*factors, 10) if unit * factor >= rough * (1 - 1e-9))


def multiples(low: float, high: float, step: float) -> list[float]:
    """Return the multiples of `step` from `low` to `high`; `low` alone if there is none."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)] or [low]


def tick_text(value: float, step: float) -> str:
    """Format a value with the digits that ticks `step` apart need: 2.25, 500k, 1.5M, 2e-5."""
    if abs(value) < step * 1e-6:
        return "0"
    size, suffix = next((unit for unit in COUNTS if abs(value) >= unit[0]), (1.0, ""))
    if not suffix and 0 < abs(value) < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-")
    digits = min(6, max(0, -math.floor(math.log10(step / size) + 1e-9)))
    if digits < 6 and abs(step / size * 10**digits % 1 - 0.5) < 1e-3:  # a quarter needs one more
        digits += 1
    return f"{value / size:.{digits}f}{suffix}"


def escape(text: str) -> str:
    """Escape text for markup, quotes included."""
    return html.escape(text)


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """Return an upper bound of the width of `text`, in px."""
    return MAX_EM * size * len(text)


def truncate(text: str, size: float, width: float) -> str:
    """Return as much of `text` as fits into `width` px, with an ellipsis if it is cut."""
    max_chars = int(width / text_width(" ", size))
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def overlap(one: Box, other: Box) -> bool:
    """Return True if the boxes share an area."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def css_variables(shade: int) -> str:
    """Return the theme and the palette as CSS variables, for light (0) or dark (1) pages."""
    variables = [f"--{name}: {colors[shade]}" for name, colors in THEME.items()]
    variables += [f"--c{number}: {colors[shade]}" for number, colors in enumerate(PALETTE)]
    return "; ".join(variables)


class Canvas:
    """Figure with a title, a subtitle and notes below, to which shapes are added."""

    def __init__(self, title: str, subtitle: str, height: float, notes: Sequence[str] = ()) -> None:
        """Lay out a figure whose plot ends at `height` px; notes are wrapped below."""
        inner = WIDTH - LEFT - RIGHT
        max_chars = int(inner / text_width(" ", SMALL_FONT_SIZE))
        lines = [line for note in notes for line in textwrap.wrap(note, max_chars)]
        self.height = height + 20 * len(lines)
        self.parts: list[str] = []
        self.title, self.subtitle = title, subtitle
        self.text(LEFT, 30, truncate(title, TITLE_SIZE, inner), size=TITLE_SIZE, look="ink bold")
        self.text(LEFT, 50, truncate(subtitle, FONT_SIZE, inner), look="dim")
        for number, line in enumerate(lines):
            self.text(LEFT, height + 20 * number, line, size=SMALL_FONT_SIZE, look="dim")

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = FONT_SIZE,
        look: str = "ink",
        anchor: str = "start",
    ) -> None:
        """Write text with its baseline at `y`."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" '
            f'class="{look}">{escape(text)}</text>'
        )

    def line(self, x: float, y: float, to_x: float, to_y: float, look: str = "grid") -> None:
        """Draw a straight line; `look` is "grid" or "limit"."""
        self.parts.append(f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" class="{look}"/>')

    def bar(self, x: float, y: float, width: float, height: float, color: int, tip: str) -> None:
        """Draw a bar with a tooltip."""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.5, width):.1f}" height="{height:g}" '
            f'class="c{color % len(PALETTE)}"><title>{escape(tip)}</title></rect>'
        )

    def curve(self, path: str, look: str, tip: str) -> None:
        """Draw a line along `path` with a tooltip."""
        self.parts.append(f'<path d="{path}" class="{look}"><title>{escape(tip)}</title></path>')

    def dot(self, x: float, y: float, color: int, tip: str) -> None:
        """Draw a point with a tooltip."""
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="c{color}">'
            f"<title>{escape(tip)}</title></circle>"
        )

    def legend(self, names: Sequence[str], y: float = TOP - 2) -> None:
        """Write a row of names, each with its color; long names are cut if the row is too long."""
        x, width = float(LEFT), WIDTH - LEFT - RIGHT
        crowded = sum(30 + text_width(name, SMALL_FONT_SIZE) for name in names) > width
        for number, name in enumerate(names):
            label = truncate(name, SMALL_FONT_SIZE, width / len(names) - 30) if crowded else name
            self.bar(x, y - 9, 11, 11, number, name)
            self.text(x + 16, y, label, size=SMALL_FONT_SIZE, look="dim")
            x += 16 + text_width(label, SMALL_FONT_SIZE) + 14

    def x_axis(self, area: PlotArea) -> None:
        """Draw the vertical grid lines, their labels and the title of the x axis."""
        for tick in area.x.ticks():
            x = area.x_of(tick)
            self.line(x, area.top, x, area.bottom)
            self._label(x, area.bottom + 18, area.x.format(tick), "middle")
        self._label((area.left + area.right) / 2, area.bottom + 38, area.x.title, "middle")

    def y_axis(self, area: PlotArea) -> None:
        """Draw the horizontal grid lines, their labels and the title of the y axis."""
        for tick in area.y.ticks():
            y = area.y_of(tick)
            self.line(area.left, y, area.right, y)
            self._label(area.left - 8, y + 4, area.y.format(tick), "end")
        self._label(area.left, area.top - 8, area.y.title, "start")

    def _label(self, x: float, y: float, text: str, anchor: str) -> None:
        self.text(x, y, text, size=SMALL_FONT_SIZE, look="dim", anchor=anchor)

    def render(self) -> str:
        """Return the SVG. Screen readers get the title and the subtitle."""
        light, dark = ("".join(_rules(shade)) for shade in (0, 1))
        style = (
            f"text{{font-family:{FONTS}}}.bold{{font-weight:600}}"
            ".curve{fill:none;stroke-width:2;stroke-linejoin:round}"
            ".thin{fill:none;stroke-width:1.2}.dashed{stroke-dasharray:6 4}"
            f"{light}@media (prefers-color-scheme:dark){{{dark}}}"
        )
        size = f'width="{WIDTH}" height="{self.height:g}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height:g}" {size} '
            f'role="img" aria-labelledby="t d">\n<title id="t">{escape(self.title)}</title>\n'
            f'<desc id="d">{escape(self.subtitle)}</desc>\n<style>{style}</style>\n'
            f'<rect {size} class="back"/>\n' + "\n".join(self.parts) + "\n</svg>\n"
        )


def _rules(shade: int) -> Iterator[str]:
    """Yield the CSS rules with the colors of light (0) or dark (1) pages."""
    back, ink, line = (THEME[name][shade] for name in ("back", "ink", "line"))
    for name in ("back", "ink", "dim"):
        yield f".{name}{{fill:{THEME[name][shade]}}}"
    yield f".halo{{paint-order:stroke;stroke:{back};stroke-width:4;stroke-linejoin:round}}"
    yield f".grid{{stroke:{line};fill:none}}"
    yield f".limit{{stroke:{ink};stroke-width:1.5;stroke-dasharray:5 4;fill:none}}"
    for number, colors in enumerate(PALETTE):
        yield f".c{number}{{fill:{colors[shade]}}}.c{number}-stroke{{stroke:{colors[shade]}}}"


def short(value: float) -> str:
    """Format a value for a tooltip: four digits below 1,000, else with a suffix."""
    return f"{value:.4g}" if abs(value) < 1e3 else amount(value)
