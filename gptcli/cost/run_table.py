"""Results of training runs from a table: CSV with a header, or JSONL.

A row has a loss in nats per token, and two of parameters, tokens and FLOPs, of which the third
follows by 6ND; a name if it likes. Other columns are ignored. The columns of CSV are separated by
commas, semicolons, tabs, bars or blanks: by what divides the header into most known names.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gptcli.cost.scaling_forms import RunResult
from gptcli.errors import InputError
from gptcli.files import missing_file, read_text
from gptcli.toml_json import parse_json, shown
from gptcli.units import read_quantity

COLUMNS = {  # names that a column may have
    "parameters": ("parameters", "params", "n", "model size", "model_size"),
    "tokens": ("tokens", "d", "training tokens", "training_tokens"),
    "flops": ("flops", "flop", "c", "training flop", "training_flop", "compute"),
    "loss": ("loss", "val_loss"),
    "name": ("name", "run"),
}
SIZES = ("parameters", "tokens", "flops")
DELIMITERS = ",;\t| "
SUFFIXES = (".csv", ".tsv", ".jsonl")
FORMS = "columns: loss, and two of parameters, tokens and flops"


class _Row(NamedTuple):
    """A row of a table: where it is, its values by the names of COLUMNS, and what it may have."""

    where: str
    """File and line."""
    values: dict[str, Any]
    """Values that are not empty."""
    names: tuple[str, ...]
    """Columns of the table, or names of the JSON object, as written."""
    lack: str
    """Message for a name that is not among them."""


def read_run_table(path: Path) -> list[RunResult]:
    """Return the runs of a table; one without a name gets that of its file and line.

    Raises InputError with the line of a row that is none, and for a table without rows.
    """
    runs = [_run(row) for row in _rows(path)]
    if not runs:
        raise InputError("no runs", where=path, hint="CSV with a header, or JSONL")
    return runs


def _rows(path: Path) -> Iterator[_Row]:
    """Yield each row of a table."""
    if not path.exists():
        raise InputError("no such table of runs", where=path, hint=missing_file(path).hint)
    file = io.StringIO(read_text(path), newline="")
    if path.suffix == ".jsonl":
        for line, text in enumerate(file, 1):
            if text.strip():
                where = f"{path}:{line}"
                row = parse_json(text.encode(), where)
                row = row if isinstance(row, dict) else {}
                yield _Row(where, _named(row), tuple(map(str, row)), "the line has no such field")
        return
    above, header = next(
        ((line, text) for line, text in enumerate(file, 1) if text.strip()), (0, "")
    )
    delimiter = _delimiter(header)
    names = next(csv.reader([header], delimiter=delimiter), [])
    if header and not _named(dict.fromkeys(names, 0)):
        raise InputError(
            f"the first line names no column of runs: {shown(header.strip())}",
            where=f"{path}:{above}",
            hint=f"begin the table with a header: parameters,tokens,loss\n{FORMS}",
        )
    reader = csv.DictReader(file, names, delimiter=delimiter)
    try:
        for row in reader:
            where = f"{path}:{above + reader.line_num}"
            yield _Row(where, _named(row), tuple(names), "the header has no such column")
    except csv.Error as error:
        raise InputError(
            f"not a table of runs: {error}", where=path, hint="CSV with a header, or JSONL"
        ) from None


def _delimiter(header: str) -> str:
    """Return the character that divides a header into most names of COLUMNS."""

    def known(delimiter: str) -> int:
        names = next(csv.reader([header], delimiter=delimiter), [])
        return len(_named(dict.fromkeys(names, 0)))

    return max(DELIMITERS, key=known)


def _named(row: dict[Any, Any]) -> dict[str, Any]:
    lower = {str(key).strip().lower(): value for key, value in row.items()}
    return {
        column: lower[name]
        for column, names in COLUMNS.items()
        for name in names
        if name in lower and lower[name] not in (None, "")
    }


def _run(row: _Row) -> RunResult:
    numbers = {}
    for name in (*SIZES, "loss"):
        if name in row.values:
            found = row.values[name]
            try:
                value = math.nan if isinstance(found, bool) else float(found)
            except ValueError:
                value = read_quantity(str(found)) or math.nan
            except (TypeError, OverflowError):
                value = math.nan
            if not 0 < value < 1e40:
                raise InputError(
                    f"{name} is {shown(found)}, not a positive number",
                    where=row.where,
                    hint="write it as 4.25, 1e9 or 124M",
                )
            numbers[name] = value
    if "loss" not in numbers or sum(name in numbers for name in SIZES) < 2:
        raise InputError(_missing(row), where=row.where, hint=FORMS)
    parameters = numbers.get("parameters") or numbers["flops"] / 6 / numbers["tokens"]
    tokens = numbers.get("tokens") or numbers["flops"] / 6 / parameters
    return RunResult(
        name=str(row.values.get("name", row.where)),
        parameters=max(1, round(parameters)),
        tokens=max(1, round(tokens)),
        loss=numbers["loss"],
    )


def _missing(row: _Row) -> str:
    """Return which number a row lacks: an empty one, or one without a column."""
    lacks = ["loss"] if "loss" not in row.values else [n for n in SIZES if n not in row.values]
    known = _named(dict.fromkeys(row.names, 0))
    if empty := [name for name in lacks if name in known]:
        return f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty"
    names = ", ".join(lacks[:-1]) + (" or " if lacks[1:] else "") + lacks[-1]
    has = f"it has {', '.join(row.names)}" if row.names else "it has no names"
    return f"no {names}; {row.lack} ({has})"
