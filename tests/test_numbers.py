from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gptcli
from gptcli.numbers import UNITS, amount, duration, in_bytes, rough_duration

SCALES = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12, "P": 1e15}


@pytest.mark.parametrize(
    ("seconds", "text"), [(12, "12 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (270_000, "3 d 3 h"), (4e11, "12,684 years")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


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
    number, unit = re.fullmatch(r"([\d,.]+)( \w+)", rough_duration(seconds)).groups()
    size = {" s": 1, **{unit: size for size, unit in UNITS}}[unit]
    assert float(number.replace(",", "")) * size == pytest.approx(seconds, rel=0.051)


@given(st.floats(min_value=0, max_value=9e17))
def test_bytes_are_right_to_three_digits_and_never_zero_for_some(n_bytes: float) -> None:
    number, prefix = re.fullmatch(r"(\d+(?:\.\d+)?) ([kMGTP]?)B", in_bytes(n_bytes)).groups()
    assert float(number) * SCALES[prefix] == pytest.approx(n_bytes, rel=0.0051, abs=0.5)
    assert float(number) > 0 or n_bytes <= 0.5


@given(st.integers(min_value=0, max_value=9 * 10**14))
def test_amounts_are_right_to_four_digits(value: int) -> None:
    number, suffix = re.fullmatch(r"(\d+(?:\.\d+)?)([kMBT]?)", amount(value)).groups()
    assert float(number) * SCALES[suffix] == pytest.approx(value, rel=0.00051)


def test_no_code_writes_gigabytes_by_itself() -> None:
    """A size divided by 1e9 and written with few digits reads "0.0 GB needed, 0.0 GB free" for a small model."""
    files = Path(gptcli.__file__).parent.rglob("*.py")
    assert [path.name for path in files if re.search(r"/ 1e9:[.,\d]*[fg]\} ?GB", path.read_text(encoding="utf-8"))] == []
