"""Results of training runs from a table: CSV with a header, or JSONL.

A row has a loss in nats per token, and two of parameters, tokens and FLOPs, of which the third
follows by 6ND; a name if it likes. Other columns are ignored. The columns of CSV are separated by
commas, semicolons, tabs, bars or blanks: by what divides the header into most known names.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptcli.cost.scaling_fit import RunResult
from gptcli.errors import InputError
from gptcli.toml_json import shown
from gptcli.units import read_quantity

COLUMNS = {  # names that a column may have
    "parameters": ("parameters", "params", "n", "model size", "model_size"),
    "tokens": ("tokens", "d", "training tokens", "training_tokens"),
    "flops": ("flops", "flop", "c", "training flop", "training_flop", "compute"),
    "loss": ("loss", "val_loss"),
    "name": ("name", "run"),
}
DELIMITERS = ",;\t| "
SUFFIXES = (".csv", ".tsv", ".jsonl")
FORMS = "columns: loss, and two of parameters, tokens and flops"


def read_run_table(path: Path) -> list[RunResult]:
    """Return the runs of a table. Raises InputError with the line of a row that is none, and for a
    table without rows.
    """
    runs = [_run(row, f"{path}:{line}", line) for line, row in _rows(path)]
    if not runs:
        raise InputError("no runs", where=path, hint="CSV with a header, or JSONL")
    return runs


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row by the names of COLUMNS, with its line."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix != ".jsonl":
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
                for row in reader:
                    yield above + reader.line_num, _named(row)
                return
            for line, text in enumerate(file, 1):
                if text.strip():
                    row = json.loads(text)
                    yield line, _named(row if isinstance(row, dict) else {})
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, RecursionError) as error:
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


def _run(row: dict[str, Any], where: str, line: int) -> RunResult:
    numbers = {}
    for name in ("parameters", "tokens", "flops", "loss"):
        if name in row:
            try:
                value = math.nan if isinstance(row[name], bool) else float(row[name])
            except ValueError:
                value = read_quantity(str(row[name])) or math.nan
            except (TypeError, OverflowError):
                value = math.nan
            if not 0 < value < 1e40:
                raise InputError(
                    f"{name} is {shown(row[name])}, not a positive number",
                    where=where,
                    hint="write it as 4.25, 1e9 or 124M",
                )
            numbers[name] = value
    sizes = [name for name in ("parameters", "tokens", "flops") if name in numbers]
    if "loss" not in numbers or len(sizes) < 2:
        raise InputError(
            f"a row of {', '.join(numbers) or 'nothing'}",
            where=where,
            hint=FORMS,
        )
    parameters = numbers.get("parameters") or numbers["flops"] / 6 / numbers["tokens"]
    tokens = numbers.get("tokens") or numbers["flops"] / 6 / parameters
    return RunResult(
        name=str(row.get("name", f"row {line}")),
        parameters=max(1, round(parameters)),
        tokens=max(1, round(tokens)),
        loss=numbers["loss"],
    )
