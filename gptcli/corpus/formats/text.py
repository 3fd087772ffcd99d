"""Readers of text files and JSON lines, by whole files, lines or paragraphs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import IO, Any

from gptcli.corpus.documents import (
    MAX_DOCUMENT_BYTES,
    Document,
    FileRange,
    Reader,
    bad_document,
    decode_document,
    too_long,
)
from gptcli.encodings import BOM

_SURROGATE = re.compile("[\ud800-\udfff]")


def read_whole(stream: IO[bytes], name: str, part: FileRange) -> Iterator[Document]:
    """Yield the whole file as one document."""
    data = stream.read(MAX_DOCUMENT_BYTES + 1)
    yield decode_document(data, 0, name) if len(data) <= MAX_DOCUMENT_BYTES else too_long(name, 0)


def read_lines(stream: IO[bytes], name: str, part: FileRange) -> Iterator[Document]:
    """Yield each line that is not empty as a document."""
    for number, position, line in _lines(stream, part):
        if part.selects(position) and (line is None or _without_newline(line)):
            where = _line_name(name, number, position)
            yield (
                decode_document(_without_newline(line), position, where)
                if line is not None
                else too_long(where, position)
            )


def read_paragraphs(stream: IO[bytes], name: str, part: FileRange) -> Iterator[Document]:
    """Yield each run of lines between blank lines as a document."""
    paragraph: list[bytes] = []
    size = position = first_line = 0

    def end_paragraph() -> Iterator[Document]:
        if paragraph and part.selects(position):
            where = f"{name}:{first_line}"
            document = (
                decode_document(_without_newline(b"".join(paragraph)), position, where)
                if size <= MAX_DOCUMENT_BYTES
                else too_long(where, position)
            )
            if document.error_kind == "not valid UTF-8":  # report the line, not the paragraph
                offsets = [
                    position + sum(map(len, paragraph[:row])) for row in range(len(paragraph))
                ]
                lines = (
                    decode_document(line, offset, f"{name}:{first_line + row}")
                    for row, (line, offset) in enumerate(zip(paragraph, offsets, strict=True))
                )
                document = next(document for document in lines if document.error_kind)
            yield document
        paragraph.clear()

    for number, line_position, line in _lines(stream, part):
        if line is not None and _is_blank(line):
            yield from end_paragraph()
            continue
        if not paragraph:
            first_line, position, size = number, line_position, 0
        size += MAX_DOCUMENT_BYTES + 1 if line is None else len(line)
        paragraph.append(line if line is not None and size <= MAX_DOCUMENT_BYTES else b"")
    yield from end_paragraph()


def json_lines_reader(field: str) -> Reader:
    """Return a reader of JSON lines that takes the text from `field` and the URL from "url"."""

    def read(stream: IO[bytes], name: str, part: FileRange) -> Iterator[Document]:
        loads = _fastest_json()
        for number, position, line in _lines(stream, part):
            if not part.selects(position):
                continue
            where = _line_name(name, number, position)
            if line is None:
                yield too_long(where, position)
                continue
            if position == 0:
                line = line.removeprefix(BOM)
            try:
                record = loads(line)
            except ValueError:
                if line.isspace() or not line:
                    continue
                record = _standard_json(line, position, where)
                if isinstance(record, Document):
                    yield record
                    continue
            yield _document_of(record, field, where, position)

    return read


def _document_of(record: Any, field: str, where: str, position: int) -> Document:
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        what = f'no "{field}" field that is a string'
        hint = f'a line looks like {{"{field}": "..."}}'
        return bad_document("no text field", what, where, position, hint)
    if found := _SURROGATE.search(text):
        what = (
            f'"{field}" has a lone surrogate (\\u{ord(found[0]):04x}) at character '
            f"{found.start()}: it is not valid Unicode"
        )
        return bad_document("lone surrogate", what, where, position)
    url = record.get("url")
    url = url if isinstance(url, str) and not _SURROGATE.search(url) else ""
    return Document(text, where, position, url)


def _fastest_json() -> Callable[[bytes], Any]:
    try:
        import orjson

        return orjson.loads
    except ImportError:
        return json.loads


def _standard_json(line: bytes, position: int, where: str) -> Any:
    """Parse a line that orjson refused with `json`; return a bad document if it refuses, too.

    `json` accepts NaN and Infinity, and its errors give the column.
    """
    text = decode_document(_without_newline(line), position, where)
    if text.error_kind:
        return text
    try:
        return json.loads(text.text)
    except json.JSONDecodeError as error:
        what = f"not valid JSON at column {error.colno}: {error.msg}"
    except ValueError as error:  # a number of more than 4,300 digits
        what = f"not readable JSON: {error}"
    except RecursionError:
        what = "not readable JSON: nested too deeply"
    return bad_document("not valid JSON", what, where, position)


def _lines(stream: IO[bytes], part: FileRange) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (line number, byte position, line) for each line that begins in the range.

    The number is 0 if the range does not begin at the start of the file, and the line is None if it
    is longer than MAX_DOCUMENT_BYTES. Only \\n ends a line. The stream is at the byte before
    `part.start`: if that is not a newline, a line of the previous range has to be skipped.
    """
    number = position = 0
    if part.start:
        position = part.start - 1 + _skip_line(stream)
    while part.stop is None or position < part.stop:
        line: bytes | None = stream.readline(MAX_DOCUMENT_BYTES + 1)
        if not line:
            return
        length = len(line)
        if length > MAX_DOCUMENT_BYTES and not line.endswith(b"\n"):
            length += _skip_line(stream)
            line = None
        number += not part.start
        yield number, position, line
        position += length


def _skip_line(stream: IO[bytes]) -> int:
    """Skip the rest of a line and return the number of bytes skipped."""
    skipped = 0
    while piece := stream.readline(1 << 20):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def _line_name(name: str, number: int, position: int) -> str:
    return f"{name}:{number}" if number else f"{name}, byte {position}"


def _without_newline(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _is_blank(line: bytes) -> bool:
    """Return True if a line has only whitespace, Unicode's included."""
    return not line.decode("utf-8", "replace").strip()
