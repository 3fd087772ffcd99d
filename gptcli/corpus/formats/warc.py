"""Reader of web archives: pages of WARC files and texts of WET files.

A record that is damaged costs no other one: it is counted, and reading continues at the next record
that can be found. HTTP bodies are decoded here, not on the way, because crawlers store bodies that
are not encoded as their header says.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from gptcli.corpus.documents import (
    EMPTY_FILE,
    MAX_DOCUMENT_BYTES,
    NOT_A_PAGE,
    UNDECODABLE_BODY,
    Document,
    FileRange,
    bad_document,
    decode_document,
    decode_page,
    too_long,
)
from gptcli.corpus.inputs import MissingPackageError
from gptcli.corpus.streams import StreamDamageError
from gptcli.encodings import BOMS, MAGIC
from gptcli.errors import install_hint

MAX_LINE_BYTES = 1 << 16  # of a header
SKIPPED_BYTES = 1 << 20  # of a record that is too long, at a time
PAGE_SCHEMES = ("http", "https", "ftp", "file", "")
WANTED_TYPES = ("response", "conversion", "resource")
_VERSION = re.compile(rb"WARC/\d\.\d+[ \t]*\r?\n")
# A record that starts inside a block whose length is wrong.
_INNER_RECORD = re.compile(rb"\n(?=WARC/\d\.\d+[ \t]*\r?\n[A-Za-z-]+:)")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([^\s\"';,]+)", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_BLANK_LINES = (b"\r\n", b"\n")


@dataclass(frozen=True, slots=True)
class _Record:
    """Record of an archive."""

    headers: dict[str, str]
    """Fields of its header, by names in lower case."""
    block: bytes | None
    """Content, or None if it is longer than MAX_DOCUMENT_BYTES."""


class _DamagedRecordError(Exception):
    """The record being read is damaged; `kind` is its error kind, the argument what is wrong."""

    def __init__(self, what: str, kind: str = "damaged record") -> None:
        super().__init__(what)
        self.kind = kind


def read_warc(stream: IO[bytes], name: str, part: FileRange) -> Iterator[Document]:
    """Yield the pages of a WARC file, as HTML, and the texts of a WET file.

    A record that is neither is yielded as a bad document of the kind NOT_A_PAGE, a damaged one as
    one of the kind "damaged record" or "truncated record".
    """
    archive = _Archive(stream)
    number = -1
    while True:
        try:
            record = archive.next_record()
        except _DamagedRecordError as error:
            number += 1
            if part.selects(number):
                where = f"{name}, record {number}"
                yield bad_document(error.kind, f"the archive is damaged: {error}", where, number)
            continue
        if record is None:
            break
        if record.headers.get("warc-type", "").lower() not in WANTED_TYPES:
            continue
        number += 1
        if part.selects(number):
            yield _record_document(record, f"{name}, record {number}", number)
    if number < 0 and part.selects(0):
        kind, what = "no records", "the archive has no record of a page or a text"
        if archive.is_empty:
            kind, what = EMPTY_FILE, "the file is empty"
        yield bad_document(kind, what, name)


class _Archive:
    """Records of an archive, one after another."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._pending = b""  # bytes to read before those of the stream
        self._damage: _DamagedRecordError | None = None  # found behind a whole record
        self._is_lost = False  # between damage and the start of the next record
        self.is_empty = True
        """True if the stream had no byte."""

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
            self.is_empty = False
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
            if text[0] in " \t" and last:
                headers[last] += " " + text.strip()
                continue
            last, colon, value = text.partition(":")
            last = last.strip().lower()
            if not colon:
                raise _DamagedRecordError(f"its header has the line {text.strip()[:40]!r}")
            headers[last] = value.strip()
        return headers

    def _check_end(self, block: bytes) -> None:
        """Read the blank lines after a block, up to the next record or the end.

        Raises _DamagedRecordError if there is something else: the length in the header is wrong.
        """
        blank = 0
        while (line := self._readline()) in _BLANK_LINES:
            blank += 1
        self._pending = line + self._pending
        if not line and not blank:
            self._is_lost = True
            what = "the archive is cut short after this record"
            self._damage = _DamagedRecordError(what, "truncated record")
        elif line and not _VERSION.fullmatch(line):
            self._return_inner(block)
            self._is_lost = True
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
        return _body_document(record.block, content_type, where, number, url)
    if not (record.block.startswith(b"HTTP/") or content_type.startswith("application/http")):
        return bad_document(NOT_A_PAGE, f"not HTTP: {content_type}", where, number)
    return _http_document(record.block, where, number, url)


def _http_document(block: bytes, where: str, number: int, url: str) -> Document:
    """Return the document of an HTTP response: status line, header and body."""
    head, body = _split_header(block)
    status, *lines = head.decode("latin-1").splitlines() or [""]
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        key = name.strip().lower()
        fields[key] = f"{fields[key]}, {value.strip()}" if key in fields else value.strip()
    code = re.match(r"\S+\s+(\d{3})\b", status)
    if code is not None and code[1] != "200":
        return bad_document(NOT_A_PAGE, f"HTTP status {code[1]}", where, number)
    content_type = fields.get("content-type", "")
    if not _is_text_type(content_type):
        return bad_document(NOT_A_PAGE, f"content of type {content_type}", where, number)
    if "chunked" in fields.get("transfer-encoding", "").lower():
        body = _without_chunks(body)
    try:
        body = _decoded(body, fields.get("content-encoding", ""), where)
    except ValueError as error:
        return bad_document(UNDECODABLE_BODY, str(error), where, number)
    return _body_document(body, content_type, where, number, url)


def _split_header(block: bytes) -> tuple[bytes, bytes]:
    """Return the HTTP header and the body, which a blank line separates."""
    found = re.search(rb"\r?\n\r?\n", block)
    return (block, b"") if found is None else (block[: found.start()], block[found.end() :])


def _is_text_type(content_type: str) -> bool:
    """Return True if a content type is HTML or plain text, or is not given."""
    kind = content_type.split(";")[0].split(",")[0].strip().lower()
    return not kind or "html" in kind or kind == "text/plain"


def _body_document(body: bytes, content_type: str, where: str, number: int, url: str) -> Document:
    """Return a page, or the text of plain text; a bad document if it is neither."""
    if not _is_text_type(content_type):
        return bad_document(NOT_A_PAGE, f"content of type {content_type}", where, number)
    if found := next((what for magic, what in MAGIC.items() if body.startswith(magic)), ""):
        return bad_document(NOT_A_PAGE, f"looks like {found}", where, number)
    charset = found_charset[1] if (found_charset := _CHARSET.search(content_type)) else ""
    if content_type.split(";")[0].strip().lower() == "text/plain":
        return Document(decode_page(body, charset, is_html=False), where, number, url)
    return Document("", where, number, url, html=body, charset=charset)


def _without_chunks(body: bytes) -> bytes:
    """Return a chunked body as a whole; a body that is not chunked, as it is.

    What follows a broken chunk is left as it stands.
    """
    pieces, at = [], 0
    while found := _CHUNK_SIZE.match(body, at):
        size, start = int(found[1], 16), found.end()
        stop = start + size
        if not size:
            at = len(body)
            break
        if stop < len(body) and not body.startswith((b"\r\n", b"\n"), stop):
            break
        pieces.append(body[start:stop])
        at = stop + (2 if body.startswith(b"\r\n", stop) else 1)
    return b"".join(pieces) + body[at:] if pieces or at else body


def _decoded(body: bytes, encodings: str, where: str) -> bytes:
    """Return a body without its content encodings, those that it really has.

    Raises ValueError if the body is neither encoded as its header says nor plain.
    """
    for encoding in reversed(encodings.lower().split(",")):
        decode = _DECODERS.get(encoding.strip().strip("\"'"))
        if decode is None:
            continue  # identity, none, a character set
        decoded = decode(body, where)
        if decoded is not None:
            body = decoded
        elif not _is_plain(body):
            raise ValueError(f"the body is neither plain nor readable as {encoding.strip()}")
    return body


def _is_plain(body: bytes) -> bool:
    """Return True if a body may be text: no control characters, or a mark of UTF-16."""
    head = body[:1024]
    return head.startswith(tuple(BOMS)) or not re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", head)


def _inflate(body: bytes, bits: int) -> bytes | None:
    """Return the inflated body, as far as it goes if it is cut short; None if it is no such data.

    A body may have several gzip members.
    """
    pieces: list[bytes] = []
    while body:
        member = zlib.decompressobj(bits)
        try:
            pieces.append(member.decompress(body, MAX_DOCUMENT_BYTES))
        except zlib.error:
            return None
        body = member.unused_data if bits == 31 else b""
        if not body.startswith(b"\x1f\x8b"):
            break
    return b"".join(pieces) if pieces else None


def _gunzip(body: bytes, where: str) -> bytes | None:
    return _inflate(body, 31) if body.startswith(b"\x1f\x8b") else None


def _undeflate(body: bytes, where: str) -> bytes | None:
    """Decode "deflate", which is a zlib stream by the standard and a bare one by custom."""
    found = _inflate(body, 15)
    return _inflate(body, -15) if found is None and not _is_plain(body) else found


def _unzstd(body: bytes, where: str) -> bytes | None:
    if not body.startswith(b"\x28\xb5\x2f\xfd"):
        return None
    try:
        import zstandard
    except ImportError:
        raise _missing("zstandard", "zstd", where) from None
    try:
        return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj().decompress(body)
    except zstandard.ZstdError:
        return None


def _unbrotli(body: bytes, where: str) -> bytes | None:
    try:
        import brotli
    except ImportError:
        raise _missing("brotli", "br", where) from None
    try:
        return brotli.decompress(body)
    except brotli.error:
        return None


def _missing(package: str, encoding: str, where: str) -> MissingPackageError:
    what = f"decoding pages with Content-Encoding {encoding} needs the package {package}"
    return MissingPackageError(what, where=where, hint=install_hint(package))


_DECODERS = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _undeflate,
    "zstd": _unzstd,
    "br": _unbrotli,
}
