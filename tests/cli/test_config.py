"""Quantities, configuration files, and where each value came from."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cli.config import (
    NUMBERS,
    Number,
    Resolved,
    count,
    option,
    quantity,
    read_config,
    read_option,
    resolved_toml,
    updated_toml,
)
from gptcli.errors import InputError, UsageError


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
def test_quantities(text: str | int, value: float) -> None:
    assert quantity(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "k", "-5", "12kk", "1e", "nan", "inf", "0x10", "5 apples"])
def test_not_quantities(text: str) -> None:
    with pytest.raises(UsageError, match="is not a quantity"):
        quantity(text)


def test_counts_are_whole() -> None:
    assert count("1.5k") == 1500
    assert count("0.1M") == 100_000
    with pytest.raises(UsageError, match="not a whole number"):
        count("1.5")


NAMES = {"lr": float, "batch_tokens": count, "size": None}


def test_config_files(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('lr = 1e-3\nbatch-tokens = "8k"\nsize = "350M"\n')
    assert read_config(path, NAMES) == {"lr": 1e-3, "batch_tokens": 8000, "size": "350M"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lr = 1\n\nbatch_token = 3\n",
            r"a\.toml:3: unknown key 'batch_token'\n  did you mean batch_tokens\?",
        ),
        ("lr = 1\nlr = 2\n", r"a\.toml:2: not valid TOML: given twice: lr = 2"),
        (
            "size = 'x'\nbatch_tokens = 'many'\n",
            r"a\.toml:2: batch_tokens: 'many' is not a quantity",
        ),
        ("[lr]\nx = 1\n", r"a\.toml:1: lr: "),
    ],
)
def test_bad_config_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(path, NAMES)
    with pytest.raises(InputError, match="no such configuration file"):
        read_config(tmp_path / "b.toml", NAMES)


def test_later_layers_win_and_leave_their_name() -> None:
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
    assert tomllib.loads(resolved_toml(resolved)) == values


def test_an_option_names_itself_where_its_value_is_refused() -> None:
    assert read_option("n_layer", "12k", count) == 12_000
    with pytest.raises(UsageError, match="'many' is not a quantity") as caught:
        read_option("n_layer", "many", count)
    assert (caught.value.where, option("n_layer")) == ("--n-layer", "--n-layer")
    assert "12k" in str(caught.value.hint)


def test_a_resolved_file_is_brought_up_to_date_line_by_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["gpt", "train"])
    first, resolved = Resolved(), Resolved()
    first.put({"lr": 1e-3, "keep": 2, "out": "a = b"}, "paper")
    before = resolved_toml(first, parameters="12")
    resolved.put({"lr": 1e-3, "keep": 2, "out": "a = b"}, "run.toml")
    monkeypatch.setattr("sys.argv", ["gpt", "train", "--resume", "--keep", "5"])
    assert updated_toml(before, resolved, parameters="12") == before
    resolved.put({"keep": 5, "track": "tensorboard"}, "option")
    after = updated_toml(before, resolved, parameters="12")
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
        assert tomllib.loads(updated_toml(by_hand, resolved)) == resolved.values


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
def test_numbers_have_ranges(
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
    with pytest.raises(
        UsageError, match="not a whole number" if number.whole else "not a quantity"
    ):
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
