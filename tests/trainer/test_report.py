from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.trainer.report import POINTS, chart, page, thinned, ticks

finite = st.floats(-1e12, 1e12)


def lines(count: int) -> list[dict]:
    rest = {"grad_norm": 1.0, "batch_tokens": 64, "tokens_per_second": 100.0, "tflops": 0.1, "mfu": None, "mfu_causal": None}
    rest |= {"noise_scale": None, "peak_memory": 3_200_000_000}
    return [{"step": n, "tokens": 64 * n, "loss": 5 / n, "lr": 1e-4 * n, **rest} for n in range(1, count + 1)]


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.removeprefix("<!doctype html>"))


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_well_formed_and_complete(make_run, count):
    rows = lines(count)
    rows[-1]["val_loss"] = 4.25
    samples = [{"step": n, "tokens": 64 * n, "prompt": "Once <b>", "text": "\x1b[1m a & b\n\u2028"} for n in (1, 5)]
    text = page(make_run("a & b", resolved="lr = 1  # <b> & more\n"), rows, samples)
    root = parsed(text)
    assert root.find("head/title").text == "tiny: a & b"
    assert len(root.findall(".//svg")) == 5
    assert root.find(".//pre").text == "lr = 1  # <b> & more\n"
    assert "4.2500" in text
    assert "3.2 GB" in text
    assert [item.find("summary").text for item in root.iterfind(".//details")] == ["step 5, 320 tokens", "step 1, 64 tokens"]
    assert [item.get("open") for item in root.iterfind(".//details")] == ["open", None]
    assert root.find(".//blockquote/b").text == "Once <b>"
    assert root.find(".//blockquote/b").tail == "\N{REPLACEMENT CHARACTER}[1m a & b\n\N{REPLACEMENT CHARACTER}"
    assert not re.search(r"https?:|src=|<script|url\(", text)  # opens offline


def test_what_was_measured_is_drawn_and_what_was_not_is_named(make_run):
    rows = [{**line, "mfu": 0.4, "mfu_causal": 0.35, "noise_scale": 1e5, "skipped": "a spike", "loss": None} for line in lines(3)]
    text = page(make_run(), [*lines(3), *rows], [])
    assert len(parsed(text).findall(".//svg")) == 6
    facts = {row.find("dt").text: row.find("dd").text for row in parsed(text).iterfind(".//dl/div")}
    assert (facts["MFU"], facts["MFU, causal"], facts["training loss"], facts["updates skipped"]) == ("40.0%", "35.0%", "n/a", "3")
    assert "Samples" not in text


@given(st.lists(st.tuples(st.floats(1e-9, 1), finite), min_size=1, max_size=50))
def test_a_chart_over_rates_has_a_logarithmic_axis(points):
    root = parsed(chart("x", {"loss": points}, log_x=True))
    for path in root.iterfind(".//path[@class='a']"):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d"))]
        assert all(71.9 <= x <= 640 for x in numbers[::2])


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=50))
def test_any_curve_makes_a_chart_whose_points_lie_inside(points):
    root = parsed(chart("x", {"training": [(abs(x), y) for x, y in points]}))
    for path in root.iterfind(".//path[@class='a']"):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d"))]
        assert all(0 <= x <= 640 for x in numbers[::2])
        assert all(0 <= y <= 240 for y in numbers[1::2])


def test_long_curves_are_averaged():
    curve = [(float(n), float(n % 2)) for n in range(10 * POINTS)]
    assert len(thinned(curve)) == POINTS
    assert all(y == 0.5 for _, y in thinned(curve))


@given(low=finite, high=finite)
def test_ticks_are_few_and_inside(low, high):
    low, high = min(low, high), max(low, high)
    values = ticks(low, high)
    assert 1 <= len(values) <= 6
    assert all(low - 1e-6 * abs(low) - 1e-9 <= value <= high + 1e-6 * abs(high) + 1e-9 for value in values)
