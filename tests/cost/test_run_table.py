"""Tables of runs for a fit of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.cost.run_table import read_run_table
from gptcli.errors import InputError


def test_csv_and_jsonl_with_two_of_three(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    table.write_text("name,N,D,loss,more\na,1e6,2e7,4.5,x\nb,2e6,4e7,4.25,\n")
    lines = tmp_path / "runs.jsonl"
    lines.write_text(
        '{"params": 1e6, "flops": 1.2e14, "loss": 4.5}\n\n{"D": 4e7, "C": 4.8e14, "loss": 4.25}\n'
    )
    for path in (table, lines):
        rows = read_run_table(path)
        assert [(row.parameters, row.tokens, row.loss) for row in rows] == [
            (10**6, 2 * 10**7, 4.5),
            (2 * 10**6, 4 * 10**7, 4.25),
        ]
    assert [row.name for row in read_run_table(table)] == ["a", "b"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " "])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_the_header_tells_how_columns_are_separated(
    delimiter: str, suffix: str, tmp_path: Path
) -> None:
    path = (tmp_path / "runs").with_suffix(suffix)
    rows = (("name", "params", "tokens", "loss"), ("a", "124M", "2e9", "3.5"))
    path.write_text("".join(delimiter.join(row) + "\n" for row in rows))
    (run,) = read_run_table(path)
    assert (run.name, run.parameters, run.tokens, run.loss) == ("a", 124 * 10**6, 2 * 10**9, 3.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1e6,2e7,4.5\n2e6,4e7,4.2\n", ":1: the first line names no column of runs: '1e6,2e7,4.5'"),
        ("x;y;z\n1;2;3\n", ":1: the first line names no column of runs: 'x;y;z'"),
        ("N;D;loss\n1e6;2e7;4,25\n", ":2: loss is '4,25', not a positive number"),
        ("N,D,loss\n1e6,2e7,nan\n", ":2: loss is 'nan'"),
        ("N,D,loss\n1e6,x,3\n", ":2: tokens is 'x'"),
        ("\n\nN,D,loss\n1e6,x,3\n", ":4: tokens is 'x'"),
        ("\n1,2\n1e6,x,3\n", ":2: the first line names no column"),
        (
            "N,loss\n1e6,3\n",
            ":2: no tokens or flops; the header has no such column (it has N, loss)",
        ),
        ("loss\n3\n", ":2: no parameters, tokens or flops; the header has no such column"),
        ("N,D,L\n1e6,3,4\n", ":2: no loss; the header has no such column (it has N, D, L)"),
        ("N,D,loss\n1e6,3,4\n2e6,,4.1\n", ":3: tokens is empty"),
        ("N,D,loss\n1e6,3\n", ":2: loss is empty"),
        ("N,D,loss\n", "no runs"),
        ("", "no runs"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_run_table(path)
    assert message in str(caught.value)
    assert caught.value.hint
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-16"):
        read_run_table(path)


def test_a_row_without_a_name_is_called_by_its_file_and_line(tmp_path: Path) -> None:
    for name in ("one.csv", "two.csv"):
        path = tmp_path / name
        path.write_text("N,D,loss\n1e6,2e7,4.5\n\n1e6,4e7,4.25\n")
        assert [run.name for run in read_run_table(path)] == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize("name", ["runs.csv", "runs.jsonl"])
def test_bytes_that_are_no_text_are_told_in_plain_words(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xe6\x91\xf3" * 20)
    with pytest.raises(InputError, match="not valid UTF-8 at byte 0") as caught:
        read_run_table(path)
    assert "codec" not in caught.value.message
    assert caught.value.hint


def test_a_missing_table_is_called_a_table(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").touch()
    with pytest.raises(InputError, match=r"run.csv: no such table of runs") as caught:
        read_run_table(tmp_path / "run.csv")
    assert str(caught.value.hint).startswith("did you mean")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"N": true, "D": 1e8, "loss": 3}', "parameters is true"),
        ("[" * 100_000, ":1: not readable JSON"),
        ('{"N": 1,', ":1: not valid JSON"),
        ('{"N": 1, "D": 2, "L": 3}', r":1: no loss; the line has no such field \(it has N, D, L\)"),
        ("5", ":1: no loss; the line has no such field"),
        ('{"N": 1' + "0" * 400 + ', "D": 1e8, "loss": 3}', "not a positive number"),
    ],
)
def test_json_that_is_no_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_run_table(path)
