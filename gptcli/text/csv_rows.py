"""Rows of CSV and TSV, of which a damaged one costs no other: shared by corpora, evaluation and
fine-tuning.

Quotes are those of RFC 4180, strictly where a row goes over several lines: an open quote would
otherwise take in the rows after it, up to the next quote of the file. A row over several lines that
is not valid, or does not have the columns of the header, is given up after its first line, and
reading goes on at its second.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from gptcli.encodings import lost_bytes
from gptcli.numbers import counted

MAX_ROW_CHARACTERS = 1 << 28


@dataclass(frozen=True, slots=True)
class CsvRow:
    """One row: its cells, or what is wrong with it."""

    number: int
    """Number of the row, from 0; blank ones count."""
    cells: list[str]
    """Cells, as many as the header has; of no use if there is a `problem`."""
    line: int
    """Number of its first line, from 1."""
    last_line: int
    """Number of its last line."""
    problem: str = ""
    """Fault of the row, in words for a person; empty if there is none."""
    is_valid: bool = True
    """False if it is not valid CSV; a row of other columns than the header's is valid."""


class _Lines:
    """Lines of a file, which can go back to the second line of the row being read."""

    def __init__(self, readline: Callable[[int], str]) -> None:
        self._readline = readline
        self._again: list[str] = []  # lines to read again, last one first
        self._characters = 0  # in the row being read
        self.row: list[str] = []
        """Lines of the row being read."""
        self.number = 0
        """Number of the line read last, from 1."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._characters > MAX_ROW_CHARACTERS:
            raise csv.Error("a row is longer than a document may be")
        line = self._again.pop() if self._again else self._readline(MAX_ROW_CHARACTERS)
        if not line:
            raise StopIteration
        self.row.append(line)
        self._characters += len(line)
        self.number += 1
        return line

    def begin_row(self) -> None:
        """Forget the lines of the row before."""
        self.row = []
        self._characters = 0

    def go_back(self) -> str:
        """Return the first line of the row; the lines after it are read again."""
        first, *others = self.row
        self._again += reversed(others)
        self.number -= len(others)
        return first


class CsvRows:
    """Rows after the header of a table; blank ones are left out.

    `readline` returns the next line, with its end, of up to so many characters, and "" at the end.
    Raises csv.Error if the header is not valid CSV. In TSV, where quotes are often ordinary
    characters, a line with a quote that opens nothing is taken as it stands if it has the columns
    of the header.
    """

    def __init__(self, readline: Callable[[int], str], delimiter: str = ",") -> None:
        csv.field_size_limit(MAX_ROW_CHARACTERS)
        self._delimiter = delimiter
        self._lines = _Lines(readline)
        self._parser = csv.reader(self._lines, delimiter=delimiter, strict=True)
        cell = rf'(?:"(?:[^"]++|"")*+"|[^"{delimiter}\r\n]*+)'
        self._valid = re.compile(rf"{cell}(?:{delimiter}{cell})*+(?:\r\n?|\n)?")
        self.header = next(self._parser, [])
        """Names of the columns; empty if there is no line."""
        while not self.header and self._lines.row:  # blank lines
            self._lines.begin_row()
            self.header = next(self._parser, [])
        if lost := lost_bytes("".join(self._lines.row)):
            raise csv.Error(lost)
        self.header_lines = len(self._lines.row)
        """Number of lines that the header goes over."""

    def __iter__(self) -> Iterator[CsvRow]:
        for number in count():
            self._lines.begin_row()
            try:
                cells = next(self._parser, None)
                problem = ""
            except csv.Error as error:
                cells, problem = [], f"not valid CSV: {_problem(error)}"
            if cells is None:
                return
            if not cells and not problem:
                continue
            yield self._checked(number, cells, problem)

    def _checked(self, number: int, cells: list[str], problem: str) -> CsvRow:
        """Return the row just read, after its first line alone if it is bad."""
        wanted = len(self.header)
        lines, size = len(self._lines.row), len(cells)
        row = self._lines.row[0] if lines == 1 else "".join(self._lines.row)
        is_valid = not problem
        if not problem and size != wanted:
            problem = f"{counted(size, 'column')}, but the header has {wanted}"
            if lines > 1:
                is_valid, problem = False, f"a quote opens a row of {problem}"
        if not problem and lines > 1 and not self._valid.fullmatch(row):
            is_valid, problem = False, "not valid CSV: a quote in a cell without quotes"
        lost = lost_bytes(row) if "\0" in row else ""
        if not problem and lost:
            is_valid, problem = False, lost
        if not is_valid:
            first = self._lines.go_back()
            if self._delimiter == "\t":
                cells = first.rstrip("\r\n").split("\t")
                if len(cells) == wanted and not lost:
                    is_valid, problem = True, ""
            return CsvRow(number, cells, self._lines.number, self._lines.number, problem, is_valid)
        last = self._lines.number
        return CsvRow(number, cells, last - lines + 1, last, problem)


def _problem(error: csv.Error) -> str:
    """Return what is wrong with a row, in words for a person."""
    if "unexpected end of data" in str(error):
        return "the quote is never closed"
    return str(error).replace("'\"'", "a quote")
