"""Readers of tables, one document a row: CSV and Parquet."""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
from collections.abc import Iterator
from itertools import accumulate
from typing import IO, Any

from gptcli.corpus.documents import (
    BLOCK_RECORDS,
    ZERO_CELL,
    Document,
    FileRange,
    Reader,
    bad_document,
    reject_escaped_bytes,
)
from gptcli.corpus.formats.json_files import field_of
from gptcli.corpus.inputs import file_suffixes, open_input
from gptcli.encodings import lost_bytes
from gptcli.errors import InputError, install_hint
from gptcli.files import temporary_room
from gptcli.numbers import counted
from gptcli.text.compression import MissingPackageError
from gptcli.text.csv_rows import CsvRows

SKIP_HINT = "leave it out, or count and skip what is broken with {option:on_error} skip"


def csv_reader(field: str, delimiter: str = ",") -> Reader:
    """Return a reader of CSV, or of TSV, with a header row: text in the column `field`.

    A row that `CsvRows` finds damaged, or one of other columns than the header's, is a bad document.
    """

    def read(stream: IO[bytes], name: str, part: FileRange) -> Iterator[Document]:
        lines = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
        try:
            rows = CsvRows(lines.readline, delimiter)
        except csv.Error as error:
            raise InputError(f"its header is not valid CSV: {error}", where=name) from None
        header = rows.header
        column_problem = _column_problem(header, field)
        if column_problem and rows.header_lines > 1:
            what = (
                f"its header goes over {counted(rows.header_lines, 'line')}, and has "
                f"{column_problem}"
            )
            raise InputError(what, where=name, hint="close the quote in the first line")
        text_column = header.index(field) if field in header else -1
        url_column = header.index("url") if "url" in header else None
        number = -1
        for row in rows:
            number = row.number
            if not part.selects(number):
                continue
            where = f"{name}:{row.line}"
            if not row.is_valid:
                yield bad_document("not valid CSV", row.problem, where, number, SKIP_HINT)
            elif column_problem or row.problem:
                yield bad_document("no text field", column_problem or row.problem, where, number)
            else:
                url = row.cells[url_column] if url_column is not None else ""
                document = Document(row.cells[text_column], where, number, url)
                yield reject_escaped_bytes(document)
        if number < 0 and column_problem and part.selects(0):
            yield bad_document("no text field", column_problem, name)

    return read


def _column_problem(names: list[str], field: str) -> str:
    """Return what is wrong with the columns of a table, or "" if one of them has the text."""
    if names.count(field) > 1:
        return f"{names.count(field)} columns are called {field}"
    if field not in names:
        return (
            f'no column "{field}" among {", ".join(names[:8])}: '
            "{option:field} names the column of the text"
        )
    return ""


def parquet_reader(field: str) -> Reader:
    """Return a reader of Parquet: text in the string column `field`, BLOCK_RECORDS rows at a time.

    Damaged metadata of the file raise InputError; a damaged row group yields bad documents.
    """

    def read(stream: Any, name: str, part: FileRange) -> Iterator[Document]:
        pyarrow = _import_pyarrow(name)
        try:
            whole = stream if stream.seekable() else seekable_copy(stream)
            file = pyarrow.parquet.ParquetFile(whole, page_checksum_verification=True)
            names = file.schema_arrow.names
            first, last = part.groups or (0, file.num_row_groups)
            group_rows = (file.metadata.row_group(group).num_rows for group in range(last))
            starts = list(accumulate(group_rows, initial=0))  # row number of each row group
            column = field if field in names else field.split(".")[0]
            if what := _column_problem(names, column):
                for row in range(starts[first], starts[last]):
                    yield bad_document("no text field", what, f"{name}, row {row}", row, SKIP_HINT)
                return
            # Two columns called url are read as none.
            columns = [column, *(["url"] if names.count("url") == 1 and column != "url" else [])]
            for group in range(first, last):
                row = starts[group]
                try:
                    for batch in file.iter_batches(
                        BLOCK_RECORDS, row_groups=[group], columns=columns
                    ):
                        yield from _batch_documents(batch, field, name, row)
                        row += len(batch)
                except (pyarrow.ArrowException, OSError) as error:
                    what = f"the row group is damaged: {_damage(error)}"
                    for damaged in range(row, starts[group + 1]):
                        where = f"{name}, row {damaged}"
                        yield bad_document("damaged rows", what, where, damaged, SKIP_HINT)
        # UnicodeDecodeError is raised for column names.
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"the file is damaged: {_damage(error)}", where=name) from None

    return read


def _batch_documents(batch: Any, field: str, name: str, first: int) -> Iterator[Document]:
    """Yield the documents of a batch of rows, the first of which has the number `first`."""
    is_nested = field not in batch.schema.names
    texts = batch.column(field.split(".")[0] if is_nested else field)
    urls = batch.column("url") if "url" in batch.schema.names else None
    for row, number in enumerate(range(first, first + len(texts))):
        where = f"{name}, row {number}"
        try:
            text, url = texts[row].as_py(), urls[row].as_py() if urls is not None else None
            if is_nested:
                text = field_of({field.split(".")[0]: text}, field)
        except UnicodeDecodeError:
            yield bad_document("not valid UTF-8", "not valid UTF-8", where, number)
            continue
        if isinstance(text, str) and (what := lost_bytes(text)):
            yield bad_document(ZERO_CELL, what, where, number)
        elif isinstance(text, str):
            yield Document(text, where, number, url if isinstance(url, str) else "")
        else:
            what = f'"{field}" is {type(text).__name__}, not text'
            yield bad_document("no text field", what, where, number)


def _damage(error: Exception) -> str:
    """Return the first line of an error about a file's content; raise an error of the disk."""
    if getattr(error, "errno", None) is not None:
        raise error
    return str(error).splitlines()[0]


def _import_pyarrow(name: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError(
            "reading .parquet needs the package pyarrow", where=name, hint=install_hint("pyarrow")
        ) from None
    return pyarrow


def seekable_copy(stream: IO[bytes]) -> IO[bytes]:
    """Return a temporary copy of a decompressed stream, deleted when it is closed.

    Parquet and zip are read from their end, and a compressed stream cannot seek.
    """
    copy = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    with temporary_room("the file, decompressed"):
        shutil.copyfileobj(stream, copy, 1 << 20)
        copy.seek(0)
    return copy


def row_group_bytes(path: str) -> list[int]:
    """Return the compressed size of each row group of a Parquet file.

    The list is empty if the file is damaged: its reader raises the error later.
    """
    pyarrow = _import_pyarrow(path)
    with open_input(path) as stream:
        try:
            metadata = pyarrow.parquet.read_metadata(stream)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
            return []
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        return [
            sum(group.column(column).total_compressed_size for column in range(group.num_columns))
            for group in groups
        ]


def parquet_rows(path: str) -> int | None:
    """Return the number of rows of a Parquet file, or None if it is damaged or compressed again."""
    if file_suffixes(path)[1]:
        return None
    pyarrow = _import_pyarrow(path)
    with open_input(path) as stream:
        try:
            return int(pyarrow.parquet.read_metadata(stream).num_rows)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
            return None
