"""What is inside files: text, JSON lines, CSV, Parquet, WARC and WET. Each reader yields every
document it meets, unusable ones flawed.

A reader takes (stream, name, cut): `cut.wants(position)` tells which documents this process is to
read, before they cost anything.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import IO, Any, cast

from gptcli.corpus.documents import NOT_A_PAGE, Document, flawed
from gptcli.corpus.streams import MissingPackageError, ending, opened
from gptcli.encodings import BOM, guess, not_utf8, utf16_without_mark, wrong_encoding
from gptcli.errors import InputError, install_hint
from gptcli.files import temporary_room

# of a document; a longer one is left out, so that one endless line cannot fill the memory
MAX_BYTES = 1 << 28
RECORDS = 1 << 10  # of an archive or table that belong together, as bytes do in a file of lines
_SURROGATE = re.compile("[\ud800-\udfff]")
HINT = "leave it out, or count and skip what is broken with {option:on_error} skip"


@dataclass(frozen=True, slots=True)
class Cut:
    """A part of a file: the documents that begin in [start, stop), and of each `block` positions
    every `stripes`-th block.
    """

    start: int = 0
    stop: int | None = None
    groups: tuple[int, int] | None = None
    """Of a Parquet file the first of its row groups, and the one after the last."""
    stripe: int = 0
    stripes: int = 1
    block: int = 1 << 62

    def wants(self, position: int) -> bool:
        return self.stripes == 1 or position // self.block % self.stripes == self.stripe


WHOLE = Cut()
Reader = Callable[[Any, str, Cut], Iterator[Document]]


def whole(stream: IO[bytes], name: str, cut: Cut) -> Iterator[Document]:
    data = stream.read(MAX_BYTES + 1)
    yield _text(data, 0, name) if len(data) <= MAX_BYTES else _too_long(name, 0)


def lines(stream: IO[bytes], name: str, cut: Cut) -> Iterator[Document]:
    for number, position, line in _lines(stream, cut):
        if cut.wants(position) and (line is None or _bare(line)):
            where = f"{name}:{number}" if number else f"{name}, byte {position}"
            yield (
                _text(_bare(line), position, where)
                if line is not None
                else _too_long(where, position)
            )


def paragraphs(stream: IO[bytes], name: str, cut: Cut) -> Iterator[Document]:
    paragraph: list[bytes] = []
    size = at = first = 0

    def ended() -> Iterator[Document]:
        if paragraph and cut.wants(at):
            where = f"{name}:{first}"
            document = (
                _text(_bare(b"".join(paragraph)), at, where)
                if size <= MAX_BYTES
                else _too_long(where, at)
            )
            if document.flaw == "not valid UTF-8":  # name the very line
                offsets = [at + sum(map(len, paragraph[:row])) for row in range(len(paragraph))]
                each = (
                    _text(line, offset, f"{name}:{first + row}")
                    for row, (line, offset) in enumerate(zip(paragraph, offsets, strict=True))
                )
                document = next(document for document in each if document.flaw)
            yield document
        paragraph.clear()

    for number, position, line in _lines(stream, cut):
        if line is not None and (
            (line.isascii() and not line.strip()) or not line.decode("utf-8", "replace").strip()
        ):
            yield from ended()
            continue
        if not paragraph:
            first, at, size = number, position, 0
        size += MAX_BYTES + 1 if line is None else len(line)
        paragraph.append(line if line is not None and size <= MAX_BYTES else b"")
    yield from ended()


def json_lines(field: str) -> Reader:
    """One document a line, in its `field`; "url" is kept where it is text."""

    def read(stream: IO[bytes], name: str, cut: Cut) -> Iterator[Document]:
        loads = _json_reader()
        for number, position, line in _lines(stream, cut):
            if not cut.wants(position):
                continue
            where = f"{name}:{number}" if number else f"{name}, byte {position}"
            if line is None:
                yield _too_long(where, position)
                continue
            if position == 0:
                line = line.removeprefix(BOM)
            try:
                record = loads(line)
            except ValueError:
                if line.isspace() or not line:
                    continue
                record = _slow_json(line, position, where)
                if isinstance(record, Document):
                    yield record
                    continue
            text = record.get(field) if isinstance(record, dict) else None
            if isinstance(text, str) and (found := _SURROGATE.search(text)):
                what = f'"{field}" holds a lone surrogate (\\u{ord(found[0]):04x}) at character {found.start()}: it is not valid Unicode'
                yield flawed("lone surrogate", what, where, position)
                continue
            if not isinstance(text, str):
                hint = f'a line looks like {{"{field}": "..."}}'
                yield flawed(
                    "no text field",
                    f'no "{field}" field that holds a string',
                    where,
                    position,
                    hint,
                )
                continue
            url = record.get("url")
            yield Document(
                text,
                where,
                position,
                url if isinstance(url, str) and not _SURROGATE.search(url) else "",
            )

    return read


def _json_reader() -> Callable[[bytes], Any]:
    try:
        import orjson

        return orjson.loads
    except ImportError:
        return json.loads


def _slow_json(line: bytes, position: int, where: str) -> Any:
    """What the standard library makes of a line that was refused; a flawed document where it
    refuses it too, with its reason.
    """
    text = _text(_bare(line), position, where)
    if text.flaw:
        return text
    try:
        return json.loads(text.text)
    except json.JSONDecodeError as error:
        return flawed(
            "not valid JSON",
            f"not valid JSON at column {error.colno}: {error.msg}",
            where,
            position,
        )
    except ValueError as error:  # a number of over 4,300 digits
        return flawed("not valid JSON", f"not readable JSON: {error}", where, position)
    except RecursionError:
        return flawed("not valid JSON", "not readable JSON: nested too deeply", where, position)


def table(field: str) -> Reader:
    """CSV with a header line; RFC 4180's quotes."""

    def read(stream: IO[bytes], name: str, cut: Cut) -> Iterator[Document]:
        csv.field_size_limit(MAX_BYTES)
        rows = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline=""))
        header = next(rows, [])
        column = header.index(field) if field in header else None
        at_url = header.index("url") if "url" in header else None
        number = -1
        while True:
            number += 1
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield flawed(
                    "not valid CSV", f"not valid CSV: {error}", f"{name}:{rows.line_num}", number
                )
                continue
            if row is None:
                return
            if not cut.wants(number) or not row:
                continue
            where = f"{name}:{rows.line_num}"
            if column is None or len(row) != len(header):
                what = (
                    f'no column "{field}"'
                    if column is None
                    else f"{len(row)} columns where the header has {len(header)}"
                )
                yield flawed("no text field", what, where, number)
                continue
            url = row[at_url] if at_url is not None else ""
            yield _checked(Document(row[column], where, number, url))

    return read


def parquet(field: str) -> Reader:
    """A document a row, in a column of strings; rows are read a few at a time."""

    def read(stream: Any, name: str, cut: Cut) -> Iterator[Document]:
        pyarrow = _pyarrow(name)
        try:
            file = pyarrow.parquet.ParquetFile(_on_disk(stream) if ending(name)[1] else stream)
            names = file.schema_arrow.names
            first, last = cut.groups or (0, file.num_row_groups)
            ends = list(
                accumulate(
                    (file.metadata.row_group(group).num_rows for group in range(last)), initial=0
                )
            )
            if field not in names:
                for row in range(ends[first], ends[last]):
                    yield flawed(
                        "no text field",
                        f'no column "{field}" among {", ".join(names[:8])}',
                        f"{name}, row {row}",
                        row,
                        HINT,
                    )
                return
            columns = [column for column in (field, "url") if column in names]
            for group in range(first, last):
                number = ends[group]
                try:
                    for batch in file.iter_batches(RECORDS, row_groups=[group], columns=columns):
                        yield from _rows(batch, field, name, number)
                        number += len(batch)
                except (pyarrow.ArrowException, OSError) as error:
                    what = f"the row group is damaged: {_damage(error)}"
                    for row in range(number, ends[group + 1]):
                        yield flawed("damaged rows", what, f"{name}, row {row}", row, HINT)
        except (
            pyarrow.ArrowException,
            OSError,
            UnicodeDecodeError,
        ) as error:  # the last: in the names of columns
            raise InputError(f"the file is damaged: {_damage(error)}", where=name) from None

    return read


def _rows(batch: Any, field: str, name: str, first: int) -> Iterator[Document]:
    """The documents of some rows of a table; `first`: the number of the first row."""
    texts = batch.column(field)
    urls = batch.column("url") if "url" in batch.schema.names else None
    for row, number in enumerate(range(first, first + len(texts))):
        where = f"{name}, row {number}"
        try:
            text, url = texts[row].as_py(), urls[row].as_py() if urls is not None else None
        except UnicodeDecodeError:
            yield flawed("not valid UTF-8", "not valid UTF-8", where, number)
            continue
        if isinstance(text, str):
            yield Document(text, where, number, url if isinstance(url, str) else "")
        else:
            yield flawed(
                "no text field", f'"{field}" is {type(text).__name__}, not text', where, number
            )


def _damage(error: Exception) -> str:
    """What is wrong with a file. Raises the error where it is the disk's."""
    if getattr(error, "errno", None) is not None:
        raise error
    return str(error).splitlines()[0]


def _pyarrow(name: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError(
            "reading .parquet needs the package pyarrow", where=name, hint=install_hint("pyarrow")
        ) from None
    return pyarrow


def _on_disk(stream: IO[bytes]) -> IO[bytes]:
    """A copy to seek in, which a compressed file is not for: a table is read from its end. Gone
    when it is closed.
    """
    copy = tempfile.TemporaryFile()  # noqa: SIM115 (whoever reads it closes it)
    with temporary_room("the file, decompressed"):
        shutil.copyfileobj(stream, copy, 1 << 20)
        copy.seek(0)
    return copy


def row_groups(path: str) -> list[int]:
    """The bytes of each row group of a Parquet file, compressed; none where that cannot be read, as
    its reader will tell.
    """
    pyarrow = _pyarrow(path)
    with opened(path) as stream:
        try:
            facts = pyarrow.parquet.read_metadata(stream)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
            return []
        groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
        return [
            sum(group.column(column).total_compressed_size for column in range(group.num_columns))
            for group in groups
        ]


def warc(stream: Any, name: str, cut: Cut) -> Iterator[Document]:
    """The pages of a WARC (to be extracted) and the texts of a WET. What is neither a page nor text
    is counted as such.
    """
    try:
        from fastwarc.warc import ArchiveIterator, WarcRecordType
    except ImportError:
        raise MissingPackageError(
            "reading .warc needs the package fastwarc", where=name, hint=install_hint("fastwarc")
        ) from None
    watched = _Watched(stream)
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
            if not cut.wants(number):
                continue
            yield _page(record, f"{name}, record {number}", number)
        except (EOFError, InputError):
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the archive is damaged after record {number}: {error}", where=name
            ) from None
    if watched.error is not None:
        raise watched.error
    if number < 0:
        yield flawed("no records", "it holds no WARC record of a page or a text", name)
    elif not watched.tail.endswith(
        (b"\r\n\r\n", b"\n\n")
    ):  # which end every record; the reader takes half a header for the end
        raise InputError(f"the archive is cut short after record {number}", where=name)


def _page(record: Any, where: str, number: int) -> Document:
    url = record.headers.get("WARC-Target-URI") or ""
    declared = record.content_length
    if declared > MAX_BYTES:
        return _too_long(where, number)
    record.freeze()  # read it whole, so that one that was cut off shows
    if record.content_length < declared:
        return flawed(
            "truncated record",
            f"{record.content_length} bytes of the {declared} that its header counts",
            where,
            number,
        )
    if not record.is_http:
        return _text(record.reader.read(), number, where, url)
    record.parse_http(auto_decode="all")
    kind = (record.http_content_type or "").lower()
    if record.http_headers.status_code not in (200, None):
        return flawed(NOT_A_PAGE, f"HTTP status {record.http_headers.status_code}", where, number)
    if kind and "html" not in kind and kind != "text/plain":
        return flawed(NOT_A_PAGE, f"content of type {kind}", where, number)
    data = record.reader.read()
    return (
        _text(data, number, where, url)
        if kind == "text/plain"
        else Document("", where, number, url, html=data)
    )


class _Watched:
    """A stream for fastwarc, which takes anything that reads and tells, but not exceptions: this
    one ends, and keeps the exception.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._at = stream, 0
        self.tail = b""
        """How the stream ended."""
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._stream.read(size)
        except Exception as error:
            self.error = error
            return b""
        self._at += len(data)
        self.tail = (self.tail + data[-4:])[-4:]
        return data

    def tell(self) -> int:
        return self._at


def _lines(stream: IO[bytes], cut: Cut) -> Iterator[tuple[int, int, bytes | None]]:
    """Number (0 where the beginning of the file is not known), byte position and bytes of each
    line; None where it is too long.

    Lines end at \\n alone. The stream stands at the byte before `cut.start`.
    """
    number = position = 0
    if cut.start:
        position = cut.start - 1 + _rest_of_line(stream)
    while cut.stop is None or position < cut.stop:
        line: bytes | None = stream.readline(MAX_BYTES + 1)
        if not line:
            return
        length = len(line)
        if length > MAX_BYTES and not line.endswith(b"\n"):
            length += _rest_of_line(stream)
            line = None
        number += not cut.start
        yield number, position, line
        position += length


def _rest_of_line(stream: IO[bytes]) -> int:
    """Skip to the next line; how many bytes that were."""
    skipped = 0
    while piece := stream.readline(1 << 20):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def _bare(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _text(data: bytes, position: int, where: str, url: str = "") -> Document:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = not_utf8(data, error.start, where, start=position)
        return flawed("not valid UTF-8", found.what, where, position, found.hint)
    if (encoding := utf16_without_mark(data)) is not None:
        found = wrong_encoding(
            f"the text looks like {encoding}: every second byte is 0", encoding, where
        )
        return flawed("not valid UTF-8", found.what, where, position, found.hint)
    return Document(text, where, position, url)


def _checked(document: Document) -> Document:
    """The document, flawed where bytes that are no UTF-8 came through as surrogates."""
    if not document.text.isascii() and any(
        "\udc80" <= character <= "\udcff" for character in document.text
    ):
        data = document.text.encode("utf-8", "surrogateescape")
        encoding = guess(data, next(at for at, byte in enumerate(data) if byte >= 0x80))
        found = wrong_encoding(
            "not valid UTF-8" + (f": it looks like {encoding}" if encoding else ""),
            encoding,
            document.where,
        )
        return flawed("not valid UTF-8", found.what, document.where, document.position, found.hint)
    return document


def _too_long(where: str, position: int) -> Document:
    return flawed(
        "too long",
        f"longer than {MAX_BYTES >> 20} MiB, the most a document may be",
        where,
        position,
    )
