from __future__ import annotations

import pytest

from gptcli.cli.cost_sheet import WIDTH, print_lines, print_rows, print_table


def test_rows_stand_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(
        "Title",
        [("Head", "", "note"), ("  one", "1", ""), ("  twelve", "12", "remark")],
        markdown=False,
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Title", "", "Head          note", "  one      1", "  twelve  12  remark"]


def test_tables_stand_left_and_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([["size", "tokens"], ["a", "5"], ["longer", "123456789"]], markdown=False)
    assert capsys.readouterr().out.splitlines() == [
        "size      tokens",
        "a              5",
        "longer 123456789",
    ]


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
