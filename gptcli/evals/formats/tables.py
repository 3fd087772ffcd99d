"""Read tables of items, whatever form they were saved in, as JSON values with their place.

The form is recognised by the first bytes of the content, so that a file may have any name: JSON
lines, a JSON list, a JSON object with the list under "data" or "rows", Parquet, Arrow (file and
stream), and otherwise a table with a header, separated by tabs or commas. Data sets of the Hugging
Face hub come in each of them. A table of several files, NAME-00000-of-00003.parquet, is read as a
whole from its first.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from gptcli.encodings import LOST_HINT, lost_bytes, without_bom
from gptcli.errors import InputError, install_hint
from gptcli.evals.formats.files import (
    JsonNode,
    Row,
    content_suffix,
    first_bytes,
    json_document,
    line_id,
    numbered_lines,
    read_bytes,
    read_whole_text,
)
from gptcli.text.compression import MissingPackageError
from gptcli.text.csv_rows import CsvRows
from gptcli.toml_json import parse_json

PARQUET, ARROW, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
LIST_KEYS = ("data", "Data", "rows")  # of the list of rows in a JSON object
PART = re.compile(r"-(\d+)-of-(\d+)(?=\.)")


def part_files(path: Path) -> list[Path]:
    """Return all files of a table that begins with `path`; a later part stands for itself.

    Raises InputError if a part is missing.
    """
    found = PART.search(path.name)
    if found is None or int(found[1]) != 0:
        return [path]
    parts = [
        path.with_name(
            f"{path.name[: found.start(1)]}{n:0{len(found[1])}d}{path.name[found.end(1) :]}"
        )
        for n in range(int(found[2]))
    ]
    if missing := [part for part in parts if not part.is_file()]:
        raise InputError(
            f"the table has {found[2]} files, of which {missing[0].name} is missing", where=path
        )
    return parts


def table_rows(path: Path) -> Iterator[JsonNode]:
    """Yield the rows of a table, each a JSON object with its place.

    Raises InputError if the file is missing, damaged or no table.
    """
    for part in part_files(path):
        yield from _rows(part)


def _rows(path: Path) -> Iterator[JsonNode]:
    start = first_bytes(path)
    if start.startswith((PARQUET, ARROW, ARROW_STREAM)):
        return _arrow_rows(path, start)
    text = without_bom(start).lstrip()
    if text.startswith(b"["):
        return _list_rows(json_document(path), "")
    return _object_rows(path) if text.startswith(b"{") else _csv_rows(path)


def _object_rows(path: Path) -> Iterator[JsonNode]:
    """Yield the rows of JSON lines, or of one JSON object with a list of rows."""
    lines = ((where, line) for where, line in numbered_lines(path) if line.strip())
    (where, line), second = next(lines), next(lines, None)
    try:
        first = JsonNode(parse_json(line.encode(), where), where)
    except InputError as error:  # not JSON lines: one object over several lines, or broken
        try:
            first, second = json_document(path), None
        except InputError:
            raise error from None
    if second is None:
        key = _list_key(first.value)
        yield from _list_rows(first if key is None else JsonNode(first.value, str(path)), key)
        return
    for where, line in chain([second], lines):
        yield first
        value = parse_json(line.encode(), where)
        if not isinstance(value, dict):
            raise InputError("not a JSON object", where=where)
        first = JsonNode(value, where)
    yield first


def _list_key(value: object) -> str | None:
    """Return the key of the list of rows in the one object of a file, if it has one."""
    if not isinstance(value, dict):
        return None
    keys = [key for key in LIST_KEYS if isinstance(value.get(key), list)]
    return keys[0] if keys and all(isinstance(one, dict) for one in value[keys[0]]) else None


def _list_rows(node: JsonNode, key: str | None) -> Iterator[JsonNode]:
    """Yield the rows in a list, the one under `key`; the object itself if `key` is None."""
    if key is None:
        if not isinstance(node.value, dict):
            raise InputError("not a JSON object", where=node.where)
        yield node
        return
    rows = (
        node.nodes(key)
        if key
        else [JsonNode(value, f"{node.where}[{n}]") for n, value in enumerate(node.value)]
    )
    for row in rows:
        if not isinstance(row.value, dict):
            raise InputError("not a JSON object", where=row.where)
        inside = row.value.get("row")  # as the hub's dataset viewer exports them
        yield JsonNode(inside, row.where) if isinstance(inside, dict) else row


def _csv_rows(path: Path) -> Iterator[JsonNode]:
    """Yield the rows of a table with a header; a cell that is a JSON list or object is read as one."""
    texts = enumerate(line + "\n" for _, line in numbered_lines(path))
    blank, header = next(((n, line) for n, line in texts if line.strip()), (0, ""))
    tabs = content_suffix(path) == ".tsv" or ("\t" in header and "," not in header)
    lines = chain([header], (line for _, line in texts))
    try:
        rows = CsvRows(lambda _: next(lines, ""), "\t" if tabs else ",")
    except csv.Error as error:
        raise InputError(f"its header is not valid CSV: {error}", where=path) from None
    if twice := [name for name, times in Counter(rows.header).items() if times > 1]:
        raise InputError(
            f"its header names the column {twice[0]!r} {rows.header.count(twice[0])} times",
            where=f"{path}:{blank + 1}",
        )
    for row in rows:
        where = f"{path}:{blank + row.line}"
        if row.problem:
            raise InputError(row.problem, where=where)
        cells = zip(rows.header, row.cells, strict=True)
        yield JsonNode({name: _cell(text, where) for name, text in cells}, where)


def _cell(text: str, where: str) -> Any:
    if not text.startswith(("[", "{")) or not text.endswith(("]", "}")):
        return text
    try:
        return parse_json(text.encode(), where)
    except InputError:
        return text


def _arrow_rows(path: Path, start: bytes) -> Iterator[JsonNode]:
    """Yield the rows of Parquet or Arrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError(
            f"reading {'.parquet' if start.startswith(PARQUET) else '.arrow'} needs the package "
            "pyarrow",
            where=path,
            hint=install_hint("pyarrow"),
        ) from None
    data = io.BytesIO(read_bytes(path))
    number = 0
    try:
        if start.startswith(PARQUET):
            table = pyarrow.parquet.ParquetFile(data, page_checksum_verification=True)
            batches = table.iter_batches(1024)
        elif start.startswith(ARROW):
            file = pyarrow.ipc.open_file(data)
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
        else:
            batches = iter(pyarrow.ipc.open_stream(data))
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                if what := next(filter(None, map(lost_bytes, _strings(row))), ""):
                    raise InputError(what, where=f"{path}:{number}", hint=LOST_HINT)
                yield JsonNode(row, f"{path}:{number}")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        what = str(error).splitlines()[0]
        raise InputError(
            f"the file is damaged or cut short: {what}", where=f"{path}:{number + 1}"
        ) from None


def _strings(value: object) -> Iterator[str]:
    """Yield the strings in a cell, a row or a list of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def is_table(path: Path) -> bool:
    """Return True if a file is a table of items, and not lines of text or a text."""
    if path.is_dir() or content_suffix(path) == ".txt":
        return False
    if content_suffix(path) in (".jsonl", ".json", ".csv", ".tsv"):
        return True
    start = first_bytes(path)
    return start.startswith((PARQUET, ARROW, ARROW_STREAM, b"{", b"[{"))


class PlacedRow(Row):
    """A row that knows its place in its file, for messages."""

    where: str
    """Place, "file:line"."""


def read_table(path: Path) -> Iterator[Row]:
    """Read a table unchanged; "id" defaults to file:line."""
    for node in table_rows(path):
        row = PlacedRow({"id": line_id(node.where), **node.value})
        row.where = node.where
        yield row


def read_lines(path: Path) -> Iterator[Row]:
    """Read a text per line, or per row of a table; blank ones are skipped."""
    texts = _texts(path) if is_table(path) else numbered_lines(path)
    for where, text in texts:
        if text.strip():
            yield {"id": line_id(where), "text": text.rstrip("\r\n")}


def read_text(path: Path) -> Iterator[Row]:
    """Read the whole file as one running text.

    In the hub's exports of WikiText and the Penn Treebank a row is a line: an empty row of WikiText
    was " \\n", and the spaces around a sentence of the Penn Treebank are missing.
    """
    if not is_table(path):
        yield {"id": path.name, "text": read_whole_text(path)}
        return
    yield {"id": path.name, "text": "".join(_line(text) for _, text in _texts(path))}


def _line(text: str) -> str:
    if text.endswith("\n"):
        return text
    return f" {text} \n" if text else " \n"


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    for node in table_rows(path):
        yield node.where, node.text("sentence" if node.has("sentence") else "text")
