"""Reader of web archives: pages of WARC files and texts of WET files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, cast

from gptcli.corpus.documents import (
    MAX_DOCUMENT_BYTES,
    NOT_A_PAGE,
    Document,
    FileRange,
    bad_document,
    decode_document,
    too_long,
)
from gptcli.errors import InputError, install_hint
from gptcli.text.compression import MissingPackageError

RECORD_ENDS = (b"\r\n\r\n", b"\n\n")


def read_warc(stream: Any, name: str, part: FileRange) -> Iterator[Document]:
    """Yield the pages of a WARC file, as HTML, and the texts of a WET file.

    A record that is neither is yielded as a bad document of the kind NOT_A_PAGE. Raises InputError
    if the archive is damaged or cut short.
    """
    try:
        from fastwarc.warc import ArchiveIterator, WarcRecordType
    except ImportError:
        raise MissingPackageError(
            "reading .warc needs the package fastwarc", where=name, hint=install_hint("fastwarc")
        ) from None
    watched = _WatchedStream(stream)
    wanted = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.resource
    records: Any = ArchiveIterator(
        cast("Any", watched), record_types=wanted, parse_http=False, strict_mode=True
    )
    number = -1
    while True:
        try:
            record = next(records, None)
            if record is None:
                break
            number += 1
            if not part.selects(number):
                continue
            yield _record_document(record, f"{name}, record {number}", number)
        except (EOFError, InputError):
            raise
        except (OSError, ValueError, RuntimeError) as error:
            what = f"the archive is damaged after record {number}: {error}"
            raise InputError(what, where=name) from None
    if watched.error is not None:
        raise watched.error
    if number < 0:
        yield bad_document("no records", "the archive has no record of a page or a text", name)
    # fastwarc takes half a header for the end of the archive.
    elif not watched.tail.endswith(RECORD_ENDS):
        raise InputError(f"the archive is cut short after record {number}", where=name)


def _record_document(record: Any, where: str, number: int) -> Document:
    url = record.headers.get("WARC-Target-URI") or ""
    declared = record.content_length
    if declared > MAX_DOCUMENT_BYTES:
        return too_long(where, number)
    record.freeze()  # reads the whole record, so that a truncated one shows
    if record.content_length < declared:
        what = f"{record.content_length} bytes, but its header declares {declared}"
        return bad_document("truncated record", what, where, number)
    if not record.is_http:
        return decode_document(record.reader.read(), number, where, url)
    record.parse_http(auto_decode="all")
    kind = (record.http_content_type or "").lower()
    if record.http_headers.status_code not in (200, None):
        status = f"HTTP status {record.http_headers.status_code}"
        return bad_document(NOT_A_PAGE, status, where, number)
    if kind and "html" not in kind and kind != "text/plain":
        return bad_document(NOT_A_PAGE, f"content of type {kind}", where, number)
    data = record.reader.read()
    if kind == "text/plain":
        return decode_document(data, number, where, url)
    return Document("", where, number, url, html=data)


class _WatchedStream:
    """Stream for fastwarc, which ignores exceptions of the stream that it reads.

    After an exception the stream ends, and `error` keeps the exception.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._position = stream, 0
        self.tail = b""
        """Last four bytes read."""
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes; b"" at the end and after an error."""
        try:
            data = self._stream.read(size)
        except Exception as error:
            self.error = error
            return b""
        self._position += len(data)
        self.tail = (self.tail + data[-4:])[-4:]
        return data

    def tell(self) -> int:
        """Return the number of bytes read."""
        return self._position
