"""Rows of damaged CSV, beside the rows that were written: none is lost, and none costs another."""

from __future__ import annotations

import csv
import io
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.text.csv_rows import CsvRow, CsvRows

CELLS = st.text(alphabet='ab,"\n é', max_size=8)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[list[str]], list[str]]:
    """Return rows, header first, and how each is spelled."""
    columns = draw(st.integers(2, 3))
    cells = st.lists(CELLS, min_size=columns - 1, max_size=columns - 1)
    rows = [["id", "text", "tag"][:columns]]
    rows += [[str(number), *row] for number, row in enumerate(draw(st.lists(cells, max_size=8)))]
    quotings: list[Literal[0, 1, 2]] = [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]
    quoting = draw(st.sampled_from(quotings))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    spelled = []
    for row in rows:
        out = io.StringIO(newline="")
        csv.writer(out, quoting=quoting, lineterminator=end).writerow(row)
        spelled.append(out.getvalue())
    return rows, spelled


def rows_of(text: str) -> list[CsvRow]:
    return list(CsvRows(io.StringIO(text, newline="").readline))


def line_starts(text: str) -> list[int]:
    starts = [0]
    for line in io.StringIO(text, newline=""):
        starts.append(starts[-1] + len(line))
    return starts


@settings(max_examples=300, deadline=None)
@given(
    tables(),
    st.integers(0, 400),
    st.integers(0, 3),
    st.sampled_from(["", '"', "x", "\n", ",", '""', '",', '\n"', 'x"y']),
)
def test_a_row_that_is_whole_is_read_or_counted(
    table: tuple[list[list[str]], list[str]], at: int, removed: int, inserted: str
) -> None:
    """`removed` characters are replaced by `inserted` ones somewhere after the header."""
    rows, spelled = table
    text = "".join(spelled)
    assert [row.cells for row in rows_of(text)] == rows[1:]
    first = len(spelled[0])
    at = first + at % (len(text) - first + 1)
    stop = min(at + removed, len(text))
    damaged = text[:at] + inserted + text[stop:]
    shift = len(damaged) - len(text)
    found = rows_of(damaged)

    # Every line that is not blank is in exactly one row.
    starts, lines = line_starts(damaged), damaged.splitlines(keepends=False)
    lines = list(io.StringIO(damaged, newline=""))
    covered = [n for row in found for n in range(row.line, row.last_line + 1)]
    header_lines = spelled[0].count("\n")
    wanted = range(header_lines + 1, len(lines) + 1)
    missing = [n for n in wanted if n not in covered]
    assert sorted(covered + missing) == list(wanted)
    assert all(not lines[n - 1].strip("\r\n") for n in missing)
    assert all(one.line < other.line for one, other in pairwise(found))

    by_line = {row.line: row for row in found}
    start = first
    for row, spelling in zip(rows[1:], spelled[1:], strict=True):
        end = start + len(spelling)
        is_touched = start <= stop and at <= end
        place = start + (shift if start >= stop else 0)
        start = end
        if is_touched:
            continue
        line = starts.index(place) + 1
        here = by_line.get(line)
        if here is not None and here.cells == row and not here.problem:
            continue
        last = starts.index(place + len(spelling))
        if any(n in by_line and by_line[n].problem for n in range(line, last + 1)):
            continue  # counted
        # Left: it is inside what is, by RFC 4180, one row with the columns of the header.
        (outer,) = [one for one in found if one.line <= line <= one.last_line]
        whole = "".join(lines[outer.line - 1 : outer.last_line])
        assert outer.last_line > outer.line
        assert list(csv.reader(io.StringIO(whole, newline=""), strict=True)) == [outer.cells]
        assert len(outer.cells) == len(rows[0])
        # Only a quote can hide a row: one that was changed, or one of a row that was given up.
        is_given_up = any(one.problem and one.line < outer.line for one in found)
        assert '"' in text[at:stop] + inserted or is_given_up


def test_without_a_quote_added_or_removed_only_the_damaged_row_is_lost() -> None:
    """With one line a row, a row that is cut in two costs no other."""
    text = "id,text\n" + "".join(f"{n},word {n}\n" for n in range(20))
    for at in range(8, len(text)):
        for junk in ("", "\n", ",", "x"):
            found = rows_of(text[:at] + junk + text[at + 1 :])
            whole = [row.cells for row in found if not row.problem]
            assert sum([str(n), f"word {n}"] in whole for n in range(20)) >= 18, (at, junk)


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_rows_that_were_lost_as_zeros_are_a_bad_row(delimiter: str) -> None:
    """They may join the start of one row to the end of another, of as many columns as the header."""
    rows = [[str(number), f"words {number}" * 9] for number in range(9)]
    lines = [delimiter.join(row) + "\n" for row in [["id", "text"], *rows]]
    text = "".join(lines)
    for start in range(len(lines[0]), len(text) - 8, 5):
        for stop in (start + 5, max(start + 5, text.find(delimiter, start + 150) - 1)):
            hole = text[:start] + "\0" * (stop - start) + text[stop:]
            found = list(CsvRows(io.StringIO(hole, newline="").readline, delimiter))
            assert any(row.problem for row in found)
            assert all(row.cells in rows for row in found if not row.problem)
    with pytest.raises(csv.Error, match="zero bytes"):
        CsvRows(io.StringIO(f"id,text{chr(0) * 50}\n1,a\n").readline)
