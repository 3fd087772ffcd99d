"""Numbers as a person reads them, over thirty orders of magnitude."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gptcli
from gptcli.numbers import (
    BYTES,
    COUNTS,
    ENERGY,
    GPU_TIME,
    MASS,
    ROUGH,
    SPEED,
    TIME,
    amount,
    counted,
    dollars,
    duration,
    figure,
    gpu_time,
    in_bytes,
    percent,
    rough_duration,
    scaled,
    short,
    significant,
    unit_for,
)  # fmt: skip

UNITS = {"TIME": TIME, "GPU_TIME": GPU_TIME, "ENERGY": ENERGY, "MASS": MASS, "SPEED": SPEED}
wide = st.floats(-15, 15).map(lambda exponent: 10.0**exponent)


def read(text: str) -> float:
    """The figure that a text begins with."""
    return float(text.lstrip("<$").split()[0].replace(",", "").rstrip("TBMk%"))


@given(wide)
def test_nothing_but_zero_reads_as_zero_or_needs_an_exponent(value):
    shown = [figure(value), dollars(value), duration(value), gpu_time(value), percent(value)]
    shown += [scaled(value, units) for units in UNITS.values()]
    for text in shown:
        assert read(text) != 0 or "min" in text, (value, text)
        assert value >= 1e15 or not re.search(r"\de[+-]?\d", text), (value, text)


@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
@given(value=wide)
def test_a_figure_and_its_unit_give_the_value_back(units, value):
    text = scaled(value, units)
    size = next(size for size, name in units if name == text.split()[-1])
    if text.startswith("<"):
        assert value < size * 1e-3
    else:
        assert read(text) * size == pytest.approx(value, rel=6e-3)
        assert value / size >= 1 or size == units[-1][0], (
            "in the largest unit of which there is one whole"
        )


@pytest.mark.parametrize("units", [*UNITS.values(), BYTES, COUNTS])
def test_units_fall(units):
    sizes = [size for size, _ in units]
    assert sizes == sorted(sizes, reverse=True)


@given(wide)
def test_significant_digits_leave_every_size_what_it_is(value):
    """A slow first step of a small run once had 0.0 TFLOP/s."""
    assert significant(value) == pytest.approx(value, rel=1e-4)
    assert significant(0.0) == 0.0
    assert significant(1_234_567.8) == 1_234_600


def test_zero_is_zero():
    assert (figure(0), dollars(0), duration(0), percent(0), in_bytes(0), amount(0)) == (
        "0",
        "$0.00",
        "0 s",
        "0.0%",
        "0 B",
        "0",
    )
    assert scaled(0, ENERGY) == "0 MWh"


@pytest.mark.parametrize(
    ("value", "text"), [(3.14e23, "3.14e23"), (1.0, "1.00e00"), (6.6e-3, "6.60e-03")]
)
def test_short(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (27.4149, "27.41"),
        (3638.2, "3,638"),
        (0.002604, "0.002604"),
        (999.96, "1000"),
        (1000, "1,000"),
        (5, "5"),
        (1e-9, "<0.001"),
    ],
)
def test_figure(value, text):
    assert figure(value) == text


def test_figures_have_as_many_digits_as_asked():
    assert (figure(3.14159, 3), figure(1234.5, 2), figure(150, 2)) == ("3.14", "1,234", "150")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (1.5e12, "$1.50T"),
        (2e9, "$2.00B"),
        (4_676_900.0, "$4.68M"),
        (20_365.4, "$20,365"),
        (100, "$100"),
        (99.994, "$99.99"),
        (12.3, "$12.30"),
        (0.543, "54.3 cents"),
        (8.52e-5, "0.00852 cents"),
        (1e-9, "<0.001 cents"),
    ],
)
def test_dollars(value, text):
    assert dollars(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12, "12 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (36_864, "36.9 kB"),
        (6.291e6, "6.29 MB"),
        (698 * 10**9, "698 GB"),
        (2_793_668_149_248, "2.79 TB"),
        (3e15, "3 PB"),
    ],
)
def test_bytes(value, text):
    assert in_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (950, "950"),
        (9999, "9999"),
        (12_300, "12.3k"),
        (4.5e6, "4.5M"),
        (3e11, "300B"),
        (2.25e12, "2.25T"),
        (0.5, "0.5"),
    ],
)
def test_amount(value, text):
    assert amount(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12.3 ms"),
        (12, "12 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (2.985, "3 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (7559, "2 h 06 min"),
        (86_390, "1 d 0 h"),
        (270_000, "3 d 3 h"),
        (359_000, "4 d 4 h"),
        (4e11, "12,684 years"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (250, "250 GPU-hours"),
        (0.25, "0.25 GPU-hours"),
        (0.01, "36 GPU-seconds"),
        (1e-4, "0.36 GPU-seconds"),
        (1e-7, "0.36 GPU-ms"),
    ],
)
def test_gpu_time(hours, text):
    assert gpu_time(hours) == text


def test_the_unit_of_several_is_that_of_the_least():
    assert unit_for(0.00846 * 365 * 86400, GPU_TIME, 0.001)[1] == "GPU-years"
    assert unit_for(0.0001 * 365 * 86400, GPU_TIME, 0.001)[1] == "GPU-hours"


@pytest.mark.parametrize(
    ("value", "text"), [(0.332, "33.2%"), (0.001, "0.1%"), (2.7e-5, "<0.1%"), (1.0, "100.0%")]
)
def test_percent(value, text):
    assert percent(value) == text
    assert (percent(0.733, 0), percent(0.004, 0)) == ("73%", "<1%")


SCALES = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12, "P": 1e15}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ((0.2,), "0.2 s"),
        ((12,), "12 s"),
        ((119,), "120 s"),
        ((120,), "2 min"),
        ((90, 400), "1.5 to 6.7 min"),
        ((7000, 7000), "120 min"),
        ((3600, 90_000), "1 to 25 h"),
        ((10 * 86_400,), "10 days"),
        ((1.2e13, 6.1e13), "380,000 to 1,900,000 years"),
    ],
)
def test_rough_duration(seconds: tuple[float, ...], text: str) -> None:
    assert rough_duration(*seconds) == text


@given(st.floats(min_value=0.01, max_value=1e15))
def test_a_rough_duration_is_right_to_two_digits(seconds: float) -> None:
    match = re.fullmatch(r"([\d,.]+)( \w+)", rough_duration(seconds))
    assert match is not None
    number, unit = match.groups()
    size = {" s": 1, **{unit: size for size, unit in ROUGH}}[unit]
    assert float(number.replace(",", "")) * size == pytest.approx(seconds, rel=0.051)


@given(st.floats(min_value=0, max_value=9e17))
def test_bytes_are_right_to_three_digits_and_never_zero_for_some(n_bytes: float) -> None:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ([kMGTP]?)B", in_bytes(n_bytes))
    assert match is not None
    number, prefix = match.groups()
    assert float(number) * SCALES[prefix] == pytest.approx(n_bytes, rel=0.0051, abs=0.5)
    assert float(number) > 0 or n_bytes <= 0.5


@given(st.integers(min_value=0, max_value=9 * 10**14))
def test_amounts_are_right_to_four_digits(value: int) -> None:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMBT]?)", amount(value))
    assert match is not None
    number, suffix = match.groups()
    assert float(number) * SCALES[suffix] == pytest.approx(value, rel=0.00051)


def test_no_code_writes_gigabytes_by_itself() -> None:
    """A size divided by 1e9 and written with few digits reads "0.0 GB needed, 0.0 GB free" for a
    small model.
    """
    files = Path(gptcli.__file__).parent.rglob("*.py")
    assert [
        path.name
        for path in files
        if re.search(r"/ 1e9:[.,\d]*[fg]\} ?GB", path.read_text(encoding="utf-8"))
    ] == []


NOUNS = "|".join(
    [
        "characters",
        "checkpoints",
        "cores",
        "documents",
        "examples",
        "files",
        "folders",
        "GPUs",
        "heads",
        "items",
        "layers",
        "lines",
        "merges",
        "parameters",
        "parts",
        "passes",
        "processes",
        "prompts",
        "runs",
        "samples",
        "sequences",
        "shards",
        "steps",
        "tensors",
        "texts",
        "threads",
        "tokens",
        "windows",
    ]
)
NO_COUNTS = {  # a number that is never one, or no number
    "{suffix} files", "{tasks} processes", "{one.parameters} parameters", "{found[2]} files", "{gpu.name} runs", "{gpu.family.title()} GPUs",
    "{tokens.dtype} tokens", "{MAX_TOKENS} tokens", "{MAX_GPUS:,} GPUs", "{max(lengths)} tokens",
    "{PROFILE_STEPS:,} steps", "{LR_RANGE_STEPS:,} steps", "{SPEED_STEPS} steps", "{window(facts['step'])} steps",
}  # fmt: skip


def test_every_count_with_its_noun_is_written_in_one_place() -> None:
    """1 merge, not 1 merges."""
    pattern = re.compile(rf"\{{([^{{}}!]*?)(:,)?\}} ({NOUNS})\b(?!/)")
    found = {
        match[0]
        for path in Path(gptcli.__file__).parent.rglob("*.py")
        if path.parent.name != "papers"
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
        if "counted(" not in match[1] and not match[1].endswith("f")
    }
    assert found == NO_COUNTS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (counted(1, "merge"), "1 merge"),
        (counted(0, "merge"), "0 merges"),
        (counted(1, "pass"), "1 pass"),
        (counted(2, "pass"), "2 passes"),
        (counted(3, "batch"), "3 batches"),
        (counted(1234, "process"), "1,234 processes"),
        (counted(1, "token", amount), "1 token"),
        (counted(0.99997, "pass", amount), "1 pass"),
        (counted(0.1997, "pass", amount), "0.1997 passes"),
        (counted(4_500_000, "token", amount), "4.5M tokens"),
    ],
)
def test_a_count_has_its_noun_in_singular_or_plural(text: str, words: str) -> None:
    assert text == words
