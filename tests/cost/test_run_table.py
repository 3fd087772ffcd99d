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
        ("N,loss\n1e6,3\n", ":2: a row of parameters, loss"),
        ("N,D\n1e6,3\n", ":2: a row of parameters, tokens"),
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
    with pytest.raises(InputError, match="not a table of runs"):
        read_run_table(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"N": true, "D": 1e8, "loss": 3}', "parameters is true"),
        ("[" * 100_000, "not a table of runs"),
        ('{"N": 1' + "0" * 400 + ', "D": 1e8, "loss": 3}', "not a positive number"),
    ],
)
def test_json_that_is_no_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_run_table(path)
