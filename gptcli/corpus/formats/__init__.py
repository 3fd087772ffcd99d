"""Documents inside files: text, JSON lines, CSV, Parquet, WARC and WET.

`find_reader` chooses a reader by the suffix of a file, and `scan` runs it over the file or a range
of it, one document at a time, so that memory does not grow with the file. Text is passed on
unchanged: no newline or byte order mark inside a document is removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

from gptcli.corpus.documents import (
    EMPTY_FILE,
    NOT_A_PAGE,
    WHOLE_FILE,
    Document,
    FileRange,
    Reader,
    bad_document,
    extract_text,
)
from gptcli.corpus.formats.tables import csv_reader, parquet_reader
from gptcli.corpus.formats.text import json_lines_reader, read_lines, read_paragraphs, read_whole
from gptcli.corpus.formats.warc import read_warc
from gptcli.corpus.inputs import STDIN, file_suffixes, open_input
from gptcli.errors import InputError, UsageError, nearest
from gptcli.toml_json import parse_json

DocumentKind = Literal["file", "line", "paragraph"]
DOCUMENT_KINDS: tuple[DocumentKind, ...] = get_args(DocumentKind)
"""Parts of a text file that can be one document."""
UNSUPPORTED_SUFFIXES = (
    ".arrow", ".zip", ".tar", ".bz2", ".xz", ".7z", ".rar", ".npy",
    ".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".xls", ".xlsx",
)  # fmt: skip


def read_documents(
    path: str, *, documents: DocumentKind = "file", field: str = "text"
) -> Iterator[Document]:
    """Yield the documents of one file, or of stdin ("-"), that have any text.

    `documents` says which part of a text file is one document: the whole "file", a "line" (without
    its \\n or \\r\\n) or a "paragraph" (lines between blank lines). Other formats take the text
    from the column or field `field`. Raises InputError, with file and line or byte, if the file is
    missing, empty, cut short, not UTF-8 or otherwise broken.
    """
    reader = find_reader(path, documents, field)
    return _readable(scan(path, reader))


def _readable(documents: Iterator[Document]) -> Iterator[Document]:
    for document in documents:
        if document.error is not None and document.error_kind != NOT_A_PAGE:
            raise document.error
        if document.html is not None:
            document.text = extract_text(document.html)
        if document.text:
            yield document


def find_reader(path: str, documents: DocumentKind, field: str = "text") -> Reader:
    """Return the reader for the suffix of `path`.

    Raises InputError if the format cannot be read, UsageError if `documents` is not one of
    DOCUMENT_KINDS.
    """
    if documents not in DOCUMENT_KINDS:
        raise UsageError(
            f"unknown kind of document {documents!r}",
            field="documents",
            code="unknown_documents",
            hint=nearest(documents, DOCUMENT_KINDS),
        )
    kind, _ = file_suffixes(path)
    if kind in UNSUPPORTED_SUFFIXES:
        raise InputError(
            f"{kind} files cannot be read",
            where=path,
            hint="convert it to .txt, .jsonl or .parquet; .gz and .zst are fine",
        )
    by_suffix: dict[str, Reader] = {
        ".jsonl": json_lines_reader(field),
        ".csv": csv_reader(field),
        ".parquet": parquet_reader(field),
        ".warc": read_warc,
        ".wet": read_warc,
    }
    by_kind: dict[str, Reader] = {
        "file": read_whole,
        "line": read_lines,
        "paragraph": read_paragraphs,
    }
    return by_suffix.get(kind, by_kind[documents])


def scan(path: str, reader: Reader, part: FileRange = WHOLE_FILE) -> Iterator[Document]:
    """Yield every document of a file, or of a range of it, unreadable ones included.

    Raises InputError if the file cannot be opened or its stream breaks off.
    """
    name = "stdin" if path == STDIN else path
    with open_input(path, start=max(part.start - 1, 0)) as stream:
        if not stream.peek(1):
            if not part.start:
                what = "standard input is empty" if path == STDIN else "the file is empty"
                yield bad_document(EMPTY_FILE, what, name)
            return
        yield from reader(stream, name, part)


def is_splittable(path: str, reader: Reader, documents: DocumentKind) -> bool:
    """Return True if a byte range of the file can be read without the bytes before it."""
    kind, compression = file_suffixes(path)
    return (
        path != STDIN
        and not compression
        and (kind == ".jsonl" or (documents == "line" and reader is read_lines))
    )


def read_json_values(path: str) -> Iterator[tuple[str, Any]]:
    """Yield ("file:line", value) for each line of a JSON lines file that is not blank.

    Raises InputError on the first line that is not JSON.
    """
    with open_input(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                where = f"{path}:{number}"
                yield where, parse_json(line, where)
