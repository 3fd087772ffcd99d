"""Quantities, ranges, and values with the origin of each."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import UsageError
from gptcli.settings import (
    NUMBERS,
    Number,
    Resolved,
    count,
    quantity,
    resolved_toml,
    updated_toml,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12k", 12e3),
        ("0.5M", 5e5),
        ("300B", 3e11),
        ("3.14e23", 3.14e23),
        ("1_000", 1e3),
        ("2 t", 2e12),
        (".5m", 5e5),
        (7, 7),
        ("1G", 1e9),
    ],
)
def test_quantities_are_numbers_with_suffixes(text: str | int, value: float) -> None:
    assert quantity(text) == pytest.approx(value)


@pytest.mark.parametrize("value", [True, [2], {"a": 1}, None])
def test_what_a_file_has_in_place_of_a_number_is_spelled_as_there(value: Any) -> None:
    for read in (NUMBERS["lr"], NUMBERS["n_layer"], quantity):
        with pytest.raises(UsageError) as caught:
            read(value)
        assert caught.value.what == f"{json.dumps(value)} is not a number"


@pytest.mark.parametrize("text", ["", "k", "-5", "12kk", "1e", "nan", "inf", "0x10", "5 apples"])
def test_other_texts_are_no_quantities(text: str) -> None:
    with pytest.raises(UsageError, match="is not a number"):
        quantity(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("5%", "write 0.05:"),
        ("12.5 %", "write 0.125:"),
        ("1,000", "write 1000, or 1_000"),
        ("2,000,000", "write 2000000,"),
        ("0,8", "write 0.8,"),
        ("$2", "write 2,"),
        ("2.5 €", "write 2.5,"),
        ("1,5", "write 1.5,"),
        ("auto", "leave the option out"),
        ("5 apples", "write it like 250"),
    ],
)
def test_a_number_written_another_way_is_spelled(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match="is not a number") as caught:
        quantity(text)
    assert str(caught.value.hint).startswith(hint)


def test_a_share_of_what_is_counted_is_no_number() -> None:
    with pytest.raises(UsageError, match="'10%' is not a number") as caught:
        Number(1, 100, whole=True)("10%")
    assert caught.value.hint == "a whole number at least 1 and at most 100"


def test_counts_are_whole() -> None:
    assert count("1.5k") == 1500
    assert count("0.1M") == 100_000
    with pytest.raises(UsageError, match="not a whole number"):
        count("1.5")


def test_later_values_replace_earlier_ones_with_their_origin() -> None:
    resolved = Resolved()
    resolved.put({"lr": 1.0, "seed": 0}, "preset 350M")
    resolved.put({"lr": 2.0, "seed": None}, "a.toml")
    resolved.put({"lr": None}, "option")
    assert resolved.values == {"lr": 2.0, "seed": 0}
    assert resolved.origin == {"lr": "a.toml", "seed": "preset 350M"}


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,12}", fullmatch=True),
        st.one_of(
            st.text(),
            st.integers(-(2**60), 2**60),
            st.booleans(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.lists(st.text(), max_size=3),
        ),
    )
)
def test_resolved_configuration_reads_back(values: dict[str, object]) -> None:
    resolved = Resolved()
    resolved.put(values, "option")
    assert tomllib.loads(resolved_toml(resolved, "gpt")) == values


def test_comments_go_on_below_themselves_where_the_columns_end() -> None:
    resolved = Resolved()
    origin = "auto: the batch's share, or enough tokens to keep the device busy"
    resolved.put({"micro_batch": 8, "precision": "fp32"}, origin)
    command = "gpt train --dry-run --out runs/" + "a" * 60
    facts = {"stage 0": "2 processes, each with 12,345,678 parameters and 98.8 MB of state"}
    whole = resolved_toml(resolved, command, **facts)
    narrow = resolved_toml(resolved, command, 50, **facts)
    assert tomllib.loads(narrow) == tomllib.loads(whole) == resolved.values
    lines = narrow.splitlines()
    assert f"# command: {command}" in lines, "to be copied"
    assert max(len(line) for line in lines if "command" not in line) <= 50
    assert whole.count(origin) == 2
    assert " ".join(narrow.replace("#", " ").split()).count(origin) == 2


def test_a_long_value_leaves_the_other_comments_where_they_are() -> None:
    short, both = Resolved(), Resolved()
    origin = "auto: the batch's share, or enough tokens to keep the device busy"
    for resolved in (short, both):
        resolved.put({"micro_batch": 8, "a_name_of_half_the_columns": 123_456_789_012}, origin)
    both.put({"out": "runs/" + "a" * 90, "data": "b" * 40}, "option")
    lines = resolved_toml(both, "gpt", 80).splitlines()
    assert lines[:-3] == resolved_toml(short, "gpt", 80).splitlines()
    long, below, beside = lines[-3:]
    assert long == f'out = "runs/{"a" * 90}"'
    assert (below.strip(), below.index("#")) == ("# option", 42)
    assert beside == f'data = "{"b" * 40}"  # option'


def test_a_resolved_file_is_brought_up_to_date_line_by_line() -> None:
    first, resolved = Resolved(), Resolved()
    first.put({"lr": 1e-3, "keep": 2, "out": "a = b"}, "paper")
    before = resolved_toml(first, "gpt train", parameters="12")
    resolved.put({"lr": 1e-3, "keep": 2, "out": "a = b"}, "run.toml")
    command = "gpt train --resume --keep 5"
    assert updated_toml(before, resolved, command, parameters="12") == before
    resolved.put({"keep": 5, "track": "tensorboard"}, "option")
    after = updated_toml(before, resolved, command, parameters="12")
    assert tomllib.loads(after) == resolved.values
    remarks = [line for line in after.splitlines() if line.startswith("#")]
    assert remarks == [*before.splitlines()[:3], "# resumed by: gpt train --resume --keep 5"]
    origins = {
        line.partition(" = ")[0]: line.rpartition("  # ")[2]
        for line in after.splitlines()
        if " = " in line
    }
    assert origins == {"lr": "paper", "keep": "option", "out": "paper", "track": "option"}
    for by_hand in ("lr=1e-3\nkeep=2\n", 'keep = 2\nbatch-tokens = 3\nout = """\na"""\n', ""):
        assert tomllib.loads(updated_toml(by_hand, resolved, command)) == resolved.values


def test_quantities_are_finite() -> None:
    for text in ("1e400", "9e307T"):
        with pytest.raises(UsageError, match="out of range"):
            quantity(text)
        with pytest.raises(UsageError, match="out of range"):
            count(text)


@pytest.mark.parametrize(
    ("number", "good", "bad"),
    [
        (Number(0, 1), ["0", 1, "0.5", 1.0], ["-0.1", "1.01", "1e400", "-1e400"]),
        (Number(0, 1, above=True, below=True), ["0.5"], ["0", 0, "1", "-0"]),
        (Number(1, 5000, whole=True), ["1", 2, "5k"], ["0", "6k", "1e400", -3]),
    ],
)
def test_numbers_outside_their_range_are_refused(
    number: Number, good: list[str | float], bad: list[str | float]
) -> None:
    for text in good:
        assert number(text) == quantity(text)
        assert isinstance(number(text), int if number.whole else float)
    for text in bad:
        with pytest.raises(UsageError, match="out of range") as caught:
            number(text)
        assert str(caught.value.hint).startswith(
            "a whole number at least" if number.whole else "a number a"
        )
    with pytest.raises(UsageError, match="not a whole number" if number.whole else "not a number"):
        number("1.5" if number.whole else "nan")


def test_a_learning_rate_at_which_a_run_diverges_may_be_tried() -> None:
    assert NUMBERS["lr"]("1e6") == 1e6


@given(st.sampled_from(list(NUMBERS)), st.floats() | st.integers() | st.text(max_size=8))
def test_any_number_is_in_its_range_or_refused(name: str, value: float | str) -> None:
    try:
        read = NUMBERS[name](value)
    except UsageError:
        return
    assert NUMBERS[name].low <= read <= NUMBERS[name].high
