from __future__ import annotations

import pytest

from gptcli.cli.cost_sheet import WIDTH, as_bytes, dollars, figure, print_lines, print_rows, print_table, short


@pytest.mark.parametrize(("value", "text"), [(3.14e23, "3.14e23"), (1.0, "1.00e00"), (6.6e-3, "6.60e-03")])
def test_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(27.4149, "27.41"), (3638.2, "3,638"), (0.002604, "0.002604"), (999.96, "1000"), (1000, "1,000"), (5, "5")]
)
def test_figure(value: float, text: str) -> None:
    assert figure(value) == text


def test_figures_have_as_many_digits_as_asked() -> None:
    assert (figure(3.14159, 3), figure(1234.5, 2)) == ("3.14", "1,234")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (4_676_900.0, "$4.68M"),
        (2e9, "$2.00B"),
        (20_365.4, "$20,365"),
        (100, "$100"),
        (99.994, "$99.99"),
        (12.3, "$12.30"),
        (0, "$0.00"),
    ],
)
def test_dollars(value: float | None, text: str) -> None:
    assert dollars(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (36_864, "36.9 kB"),
        (5 * 10**6, "5 MB"),
        (698 * 10**9, "698 GB"),
        (2_793_668_149_248, "2.79 TB"),
    ],
)
def test_bytes(value: int, text: str) -> None:
    assert as_bytes(value) == text


def test_rows_stand_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows("Title", [("Head", "", "note"), ("  one", "1", ""), ("  twelve", "12", "remark")], markdown=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Title", "", "Head          note", "  one      1", "  twelve  12  remark"]


def test_tables_stand_left_and_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([["size", "tokens"], ["a", "5"], ["longer", "123456789"]], markdown=False)
    assert capsys.readouterr().out.splitlines() == ["size      tokens", "a              5", "longer 123456789"]


def test_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([["size", "tokens"], ["a", "5"]], markdown=True)
    assert capsys.readouterr().out.splitlines() == ["| size | tokens |", "|---|---:|", "| a | 5 |"]
    print_rows("Title", [("Head", "", ""), ("  one", "1", "x")], markdown=True)
    assert capsys.readouterr().out.splitlines() == [
        "**Title**",
        "",
        "|  |  |  |",
        "|---|---:|---:|",
        "| **Head** |  |  |",
        "| one | 1 | x |",
    ]


def test_lines_are_wrapped_and_addresses_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    address = "https://example.org/" + "a-b-" * 30
    print_lines("word " * 40 + address)
    lines = capsys.readouterr().out.splitlines()
    assert address in lines
    assert all(len(line) <= WIDTH for line in lines if line != address)
    assert len(lines) == 4
