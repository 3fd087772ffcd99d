"""Ticks are round and few, and every color can be seen on its page."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.runs.charts import bar_chart
from gptcli.runs.svg import (
    PALETTE,
    THEME,
    Scale,
    css_variables,
    multiples,
    text_width,
    tick_step,
    tick_text,
)

finite = st.floats(-1e12, 1e12)


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
def test_ticks_are_round_numbers(scale: Scale, ticks: list[float]) -> None:
    assert list(scale.ticks()) == pytest.approx(ticks)


@given(st.floats(1e-9, 1e9), st.floats(1.1, 1e12), st.booleans())
def test_ticks_are_few_and_on_the_axis(low: float, ratio: float, log: bool) -> None:
    scale = Scale("", low, low * ratio, log=log)
    ticks = list(scale.ticks())
    assert len(ticks) <= 16
    assert all(-1e-3 <= scale.fraction(tick) <= 1 + 1e-3 for tick in ticks)


@given(low=finite, high=finite)
def test_tick_labels_are_few_and_distinct(low, high):
    low, high = min(low, high), max(low, high)
    if high - low <= 1e-6 * max(abs(low), abs(high), 1e-3):
        return
    step = tick_step(low, high)
    values = multiples(low, high, step)
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
def test_tick_text_has_the_digits_that_its_step_needs(value, step, text):
    assert tick_text(value, step) == text


def luminance(color: str) -> float:
    """Return the relative luminance (WCAG 2.2) of a color such as #1f6fb4."""
    parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("shade", [0, 1], ids=["light", "dark"])
def test_colors_have_enough_contrast_on_their_page(shade: int) -> None:
    """Contrast of at least 3 for bars and lines, 4.5 for words (WCAG 2.2)."""
    paper = luminance(THEME["back"][shade])
    for least, colors in (
        (3, [pair[shade] for pair in PALETTE]),
        (4.5, [THEME["ink"][shade], THEME["dim"][shade]]),
    ):
        for color in colors:
            bright, dark = sorted((luminance(color), paper), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= least, color


def test_dark_pages_have_their_own_colors() -> None:
    svg = bar_chart("T", "S", [("a", 2.0, "g", "2")], Scale("x", 1, 10))
    light, dark = svg.split("@media (prefers-color-scheme:dark)")
    assert THEME["back"][0] in light
    assert THEME["back"][1] in dark
    assert math.isclose(text_width("abcd", 10), 24)
    assert f"--back: {THEME['back'][1]}" in css_variables(1)
