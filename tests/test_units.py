"""Units behind numbers: those of the option's kind are read, all other spellings are answered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import UsageError
from gptcli.settings import NUMBERS
from gptcli.units import SUFFIXES, UNITS, read_quantity, spelling


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("hours", "24h", 24),
        ("hours", "2 days", 48),
        ("hours", "90min", 1.5),
        ("checkpoint_minutes", "2h", 120),
        ("timeout", "10min", 600),
        ("memory", "80GB", 80),
        ("memory", "80G", 80),
        ("memory", "1TB", 1000),
        ("budget", "$5000", 5000),
        ("budget", "5000$", 5000),
        ("budget", "$4.6M", 4.6e6),
        ("price", "2.5 USD", 2.5),
        ("tflops", "312T", 312),
        ("tflops", "1 PFLOP/s", 1000),
        ("mfu", "40%", 0.4),
        ("dropout", "10 %", 0.1),
        ("tokens", "300B tokens", 300e9),
        ("tokens", "1.5B", 1.5e9),
        ("tokens", "300e9", 300e9),
        ("gpus", "8 GPUs", 8),
        ("eval_every", "100 steps", 100),
        ("flops", "3640PF-days", 3640 * 86400e15),
        ("flops", "3.14e23 FLOPs", 3.14e23),
        ("carbon", "429g", 0.429),
        ("pue", "1.1x", 1.1),
    ],
)
def test_the_units_of_an_option_are_read(name: str, text: str, value: float) -> None:
    assert NUMBERS[name](text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("hours", "90m", "m is a million elsewhere: write 90min for minutes"),
        ("hours", "1:30", "write 1.5h"),
        ("tokens", "300 billion", "write 300B"),
        ("tokens", "300Billion tokens", "write 300B"),
        ("tokens", "10MB", "write the number alone, without 'mb'"),
        ("tokens", "5GB", "write the number alone, without 'gb': tokens are counted here"),
        ("batch_tokens", "2^19", "write 524288"),
        ("batch_tokens", "1024*512", "write 524288"),
        ("lr", "10^-4", "write 0.0001"),
        ("lr", "1/1000", "write 0.001"),
        ("lr", "3e-4,1e-3", "one number at a time, such as 3e-4"),
        ("lr", "3e-4-1e-3", "one number at a time, such as 3e-4"),
        ("gpus", "8,16", "one number at a time, such as 8"),
        ("gpus", "8-16", "one number at a time, such as 8"),
        ("gpus", "8..16", "one number at a time, such as 8"),
        ("gpus", "8 to 16", "one number at a time, such as 8"),
        ("gpus", "[8, 16, 32]", "one number at a time, such as 8"),
        ("batch_tokens", "1M,2M", "one number at a time, such as 1M"),
        ("batch_tokens", "0,5M", "write 0.5M, with a point"),
        ("val_fraction", "0,05", "write 0.05, with a point"),
        ("tokens", "1 000 000", "write 1000000, or 1_000_000"),
        ("tokens", "1.000.000", "write 1000000, or 1_000_000"),
        ("tokens", "\uff11\uff12", "write 12"),
        ("tokens", "+5", "write 5"),
        ("seed", "0x10", "write it like 250"),
        ("checkpoint", "last", "leave the option out for the newest"),
        ("lr", "2h", "write the number alone, without 'h'"),
        ("pue", "110%", "write 1.1"),
        ("budget", "50%", "write the number alone, without '%': dollars are counted here"),
        ("budget", "$1,000", "write 1000, or 1_000"),
        ("hours", "1h30m", "write 1.5h"),
        ("tokens", "5KB", "write the number alone, without 'kb'"),
    ],
)
def test_other_spellings_are_answered_with_the_number(name: str, text: str, hint: str) -> None:
    with pytest.raises(UsageError, match="is not a number") as caught:
        NUMBERS[name](text)
    assert str(caught.value.hint).startswith(hint)


def test_a_share_beyond_one_may_be_per_cent() -> None:
    with pytest.raises(UsageError, match="50 is out of range") as caught:
        NUMBERS["mfu"]("50")
    assert str(caught.value.hint).endswith("50 % is 0.5, or 50%")


@pytest.mark.parametrize("text", ["150%", "150 %", "150 percent"])
def test_a_share_in_per_cent_is_not_answered_with_another(text: str) -> None:
    for name in ("mfu", "goodput"):
        with pytest.raises(UsageError, match="is out of range") as caught:
            NUMBERS[name](text)
        assert caught.value.hint == "a number above 0 and at most 1"


numbers = st.integers(0, 999).map(str) | st.decimals(0, 99, places=2).map(str)


@given(numbers, st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]), st.data())
def test_a_unit_multiplies_and_a_suffix_keeps_its_power_of_1000(
    digits: str, unit: str, blank: str, data: st.DataObject
) -> None:
    plain = float(digits)
    letters = set(SUFFIXES) - UNITS[unit].keys() - ({"m"} if unit in TIMES else set())
    letter = data.draw(st.sampled_from(sorted(letters)))
    assert read_quantity(f"{digits}{letter}", unit) == plain * SUFFIXES[letter]
    if UNITS[unit]:
        name = data.draw(st.sampled_from(sorted(UNITS[unit])))
        for spelled in (name, name.upper()):
            assert read_quantity(f"{digits}{blank}{spelled}", unit) == plain * UNITS[unit][name]


TIMES = ("seconds", "minutes", "hours")


@given(st.text(max_size=12), st.sampled_from(sorted(UNITS)))
def test_any_text_is_a_number_or_none(text: str, unit: str) -> None:
    value = read_quantity(text, unit)
    assert value is None or value >= 0
    assert isinstance(spelling(text, unit), str)
