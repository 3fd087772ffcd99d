"""Reader of web archives: pages of WARC files and texts of WET files.

A record that is damaged costs no other one: it is counted, and reading continues at the next record
that can be found.
"""

from __future__ import annotations

import contextlib
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from gptcli.corpus.documents import (
    MAX_DOCUMENT_BYTES,
    NOT_A_PAGE,
    PART_OF_RECORD,
    Document,
    FileRange,
    bad_document,
    decode_document,
    too_long,
)
from gptcli.corpus.formats.http_pages import body_document, http_document
from gptcli.text.compression import StreamDamageError

MAX_LINE_BYTES = 1 << 16  # of a header
SKIPPED_BYTES = 1 << 20  # of a record that is too long, at a time
PAGE_SCHEMES = ("http", "https", "ftp", "file", "")
WANTED_TYPES = ("response", "conversion", "resource")
SINGLE_FIELDS = (
    "warc-type", "warc-target-uri", "warc-date", "warc-record-id", "content-type", "content-length",
)  # fmt: skip
OTHER_TYPES = ("warcinfo", "request", "metadata", "revisit", "continuation")
_VERSION = re.compile(rb"WARC/\d\.\d+[ \t]*\r?\n")
# A record that starts inside a block whose length is wrong.
_INNER_RECORD = re.compile(rb"\n(?=WARC/\d\.\d+[ \t]*\r?\n[A-Za-z-]+:)")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BLANK_LINES = (b"\r\n", b"\n")


@dataclass(slots=True)
class _Record:
    """Record of an archive."""

    headers: dict[str, str]
    """Fields of its header, by names in lower case."""
    block: bytes | None
    """Content, or None if it is longer than MAX_DOCUMENT_BYTES."""
    segments: int = 1
    """Number of segments that it consists of."""


class _DamagedRecordError(Exception):
    """The record being read is damaged; `kind` is its error kind, the argument what is wrong."""

    def __init__(self, what: str, kind: str = "damaged record") -> None:
        super().__init__(what)
        self.kind = kind


def read_warc(stream: IO[bytes], name: str, part: FileRange) -> Iterator[Document]:
    """Yield the pages of a WARC file, as HTML, and the texts of a WET file.

    A record that is neither is yielded as a bad document of the kind NOT_A_PAGE, a damaged one as
    one of the kind "damaged record" or "truncated record". A record in segments is read if they
    follow each other; a segment without the others is a bad document of the kind PART_OF_RECORD.
    """
    number = -1
    for number, record in enumerate(_joined(_Archive(stream))):
        if not part.selects(number):
            continue
        where = f"{name}, record {number}"
        if isinstance(record, _DamagedRecordError):
            what = (
                f"{record}"
                if record.kind == PART_OF_RECORD
                else f"the archive is damaged: {record}"
            )
            yield bad_document(record.kind, what, where, number)
        else:
            document = _record_document(record, where, number)
            record.block = None  # is not kept in memory while the document is used
            yield document
    if number < 0 and part.selects(0):
        yield bad_document("no records", "the archive has no record of a page or a text", name)


def _joined(archive: _Archive) -> Iterator[_Record | _DamagedRecordError]:
    """Yield the records of pages and texts, segments joined, and what is wrong with others."""
    first: _Record | None = None  # whose other segments are to come
    alone = _DamagedRecordError("a segment of a record without the others", PART_OF_RECORD)
    while True:
        try:
            record = archive.next_record()
        except _DamagedRecordError as error:
            if first is not None:
                yield alone
            first = None
            yield error
            continue
        kind = "" if record is None else record.headers.get("warc-type", "").lower()
        if record is not None and kind == "continuation":
            if first is None or not _append(first, record):
                yield alone
            elif total := record.headers.get("warc-segment-total-length"):
                yield first if total == str(len(first.block or b"")) else alone
                first = None
        elif record is None or kind in WANTED_TYPES:
            if first is not None:
                yield alone
            if record is None:
                return
            first = record if record.headers.get("warc-segment-number") == "1" else None
            if first is None:
                yield record


def _append(first: _Record, record: _Record) -> bool:
    """Add a segment to those of a record before it; return False if it is not the next one."""
    is_next = record.headers.get("warc-segment-origin-id") == first.headers.get(
        "warc-record-id", ""
    ) and record.headers.get("warc-segment-number") == str(first.segments + 1)
    if not is_next or record.block is None or first.block is None:
        return False
    if len(first.block) + len(record.block) > MAX_DOCUMENT_BYTES:
        first.block = None
        return False
    first.block, first.segments = first.block + record.block, first.segments + 1
    return True


class _Archive:
    """Records of an archive, one after another."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._pending = b""  # bytes to read before those of the stream
        self._damage: _DamagedRecordError | None = None  # found behind a whole record
        self._is_lost = False  # between damage and the start of the next record

    def next_record(self) -> _Record | None:
        """Return the next record, or None at the end.

        Raises _DamagedRecordError, once for each stretch of damage, and then can be called again.
        """
        if self._damage is not None:
            damage, self._damage = self._damage, None
            raise damage
        try:
            if not self._find_start():
                return None
            headers = self._read_header()
            kind = headers.get("warc-type", "")
            if kind.lower() not in (*WANTED_TYPES, *OTHER_TYPES):
                raise _DamagedRecordError(f"a record of the type {kind[:40]!r}")
            length = headers.get("content-length", "")
            if not re.fullmatch(r"[0-9]{1,18}", length):
                raise _DamagedRecordError(f"its length is {length!r}")
            if int(length) > MAX_DOCUMENT_BYTES:
                self._skip(int(length))
                return _Record(headers, None)
            block = self._read(int(length))
            if len(block) < int(length):
                self._return_inner(block)
                what = f"{len(block)} bytes, but its header declares {length}"
                raise _DamagedRecordError(what, "truncated record")
        except StreamDamageError as error:
            self._is_lost = True
            raise _DamagedRecordError(error.what) from None
        except _DamagedRecordError:
            self._is_lost = True
            raise
        try:
            self._check_end(block)
        except StreamDamageError as error:  # behind the record, which is whole
            self._is_lost = True
            self._damage = _DamagedRecordError(error.what)
        return _Record(headers, block)

    def _find_start(self) -> bool:
        """Read to the version line of the next record; return False at the end.

        Raises _DamagedRecordError if other bytes come first, unless damage was found before them.
        """
        is_junk = False
        while line := self._readline():
            if _VERSION.fullmatch(line):
                if is_junk and not self._is_lost:
                    self._pending = line + self._pending
                    raise _DamagedRecordError("bytes between two records")
                self._is_lost = False
                return True
            if inner := _VERSION.search(line):
                self._pending = line[inner.start() :] + self._pending
            is_junk |= line not in _BLANK_LINES
        if is_junk and not self._is_lost and not self._is_first:
            self._is_lost = True
            raise _DamagedRecordError("bytes behind the last record")
        return False

    _is_first = True

    def _read_header(self) -> dict[str, str]:
        """Return the fields of a header, and read the blank line after it."""
        self._is_first = False
        headers: dict[str, str] = {}
        last = ""
        while (line := self._readline()) not in _BLANK_LINES:
            if not line.endswith(b"\n"):
                kind = "damaged record" if line else "truncated record"
                raise _DamagedRecordError("its header is cut short", kind)
            if _VERSION.fullmatch(line):
                self._pending = line + self._pending
                raise _DamagedRecordError("its header is cut short", "truncated record")
            text = line.decode("utf-8", "replace")
            if _CONTROL.search(line):
                raise _DamagedRecordError(f"its header has the line {text.strip()[:40]!r}")
            if text[0] in " \t" and last:
                headers[last] += " " + text.strip()
                continue
            name, colon, value = text.partition(":")
            last = name.strip().lower()
            if not colon or not re.fullmatch(r"[\w-]+", last, re.ASCII):
                raise _DamagedRecordError(f"its header has the line {text.strip()[:40]!r}")
            if last in headers and last in SINGLE_FIELDS:  # the second is the next record's
                raise _DamagedRecordError(f"its header has two fields {last}")
            headers[last] = value.strip()
        return headers

    def _check_end(self, block: bytes) -> None:
        """Read the blank lines after a block, up to the next record or the end.

        Raises _DamagedRecordError if there is something else: the length in the header is wrong.
        """
        blank: deque[bytes] = deque(maxlen=4)
        while (line := self._readline()) in _BLANK_LINES:
            blank.append(line)
        self._pending = line + self._pending
        if not line and len(blank) < 2:
            self._is_lost = True
            what = "the archive is cut short after this record"
            self._damage = _DamagedRecordError(what, "truncated record")
        elif line and not _VERSION.fullmatch(line):
            # The block may end inside the first lines of the next record, or between them. Damage
            # in the line after them is part of what is reported here.
            with contextlib.suppress(StreamDamageError):
                self._pending += self._stream.readline(MAX_LINE_BYTES)
            self._pending = b"".join(blank) + self._pending
            self._return_inner(block)
            self._is_lost = True
            raise _DamagedRecordError("its length is not that in its header")
        elif _has_taken(block, b"".join(blank)):
            raise _DamagedRecordError("its length is not that in its header")

    def _return_inner(self, block: bytes) -> None:
        """Continue with the record that starts inside a block, if there is one."""
        if inner := _INNER_RECORD.search(b"\n" + block + self._pending[:MAX_LINE_BYTES]):
            self._pending = block[inner.end() - 1 :] + self._pending

    def _skip(self, length: int) -> None:
        """Skip a block that is too long, up to its end or to a record inside it."""
        tail = b""
        while length and (data := self._read(min(length, SKIPPED_BYTES))):
            length -= len(data)
            if inner := _INNER_RECORD.search(tail + data):
                self._pending = (tail + data)[inner.end() :] + self._pending
                return
            tail = data[-256:]

    def _readline(self) -> bytes:
        if not self._pending:
            return self._stream.readline(MAX_LINE_BYTES)
        end = self._pending.find(b"\n") + 1
        if end:
            line, self._pending = self._pending[:end], self._pending[end:]
            return line
        line, self._pending = self._pending, b""
        return line + self._stream.readline(MAX_LINE_BYTES)

    def _read(self, size: int) -> bytes:
        if not self._pending:
            return self._stream.read(size)
        data, self._pending = self._pending[:size], self._pending[size:]
        return data if len(data) == size else data + self._stream.read(size - len(data))


def _has_taken(block: bytes, blank: bytes) -> bool:
    """Return True if a block goes on into the blank lines after it, of which `blank` is left."""
    return any(
        block.endswith(end[:size]) and blank == end[size:]
        for end in (b"\r\n\r\n", b"\n\n")
        for size in range(1, len(end) + 1)
    )


def _record_document(record: _Record, where: str, number: int) -> Document:
    """Return the document of a record, or a bad one."""
    if record.block is None:
        return too_long(where, number)
    url = record.headers.get("warc-target-uri", "").removeprefix("<").removesuffix(">").strip()
    content_type = record.headers.get("content-type", "")
    scheme = url.partition(":")[0].lower() if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url) else ""
    if scheme not in PAGE_SCHEMES:
        return bad_document(NOT_A_PAGE, f"not a page: {url[:80]}", where, number)
    kind = record.headers["warc-type"].lower()
    if kind == "conversion":
        return decode_document(record.block, number, where, url)
    if kind == "resource":
        return body_document(record.block, content_type, where, number, url)
    if not (record.block.startswith(b"HTTP/") or content_type.startswith("application/http")):
        return bad_document(NOT_A_PAGE, f"not HTTP: {content_type}", where, number)
    return http_document(record.block, where, number, url)
