"""Documents inside files: text, JSON lines, JSON, CSV, TSV, Parquet, WARC, WET, HTML, tar and zip.

`find_format` chooses a format: the one asked for, or the one that the suffix of the file names, or
else the one that its first bytes look like. `scan` runs its reader over the file or a range of it,
one document at a time, so that memory does not grow with the file. Text is passed on unchanged: no
newline or byte order mark inside a document is removed.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from gptcli.corpus.documents import (
    EMPTY_FILE,
    NON_FATAL_ERRORS,
    WHOLE_FILE,
    Document,
    FileRange,
    Reader,
    bad_document,
    extract_text,
)
from gptcli.corpus.formats.archives import tar_reader, zip_reader
from gptcli.corpus.formats.json_files import (
    json_file_values,
    json_lines_reader,
    json_reader,
)
from gptcli.corpus.formats.recognize import DISGUISES, FORMATS, FormatName, recognize
from gptcli.corpus.formats.tables import csv_reader, parquet_reader
from gptcli.corpus.formats.text import DocumentKind as DocumentKind
from gptcli.corpus.formats.text import read_html, text_reader
from gptcli.corpus.formats.warc import read_warc
from gptcli.corpus.inputs import (
    KNOWN_SUFFIXES,
    STDIN,
    file_suffixes,
    fingerprint,
    is_url,
    open_input,
)
from gptcli.encodings import MAGIC
from gptcli.errors import InputError, UsageError, nearest
from gptcli.text.compression import SNIFFED_BYTES, StreamDamageError
from gptcli.toml_json import parse_json

DOCUMENT_KINDS: tuple[DocumentKind, ...] = get_args(DocumentKind)
"""Parts of a text file that can be one document."""
INPUT_FORMATS = ("auto", *FORMATS)
"""Values of the option input_format."""
SUFFIX_FORMATS: dict[str, FormatName] = {
    **KNOWN_SUFFIXES,
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".md", ".markdown", ".rst", ".tex", ".text"), "text"),
}
"""Format that the suffix of a file names."""
UNSUPPORTED_SUFFIXES = (
    ".arrow", ".br", ".7z", ".rar", ".npy", ".npz", ".safetensors",
    ".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".xls", ".xlsx", ".xml",
)  # fmt: skip
ARCHIVES = ("tar", "zip")
"""Formats with files inside."""
TEXT_ALONE = ("text", "jsonl", *ARCHIVES)
"""Formats in which `<|endoftext|>` can divide documents."""


def read_documents(
    path: str,
    *,
    documents: DocumentKind = "file",
    field: str = "text",
    input_format: str = "auto",
    eot_in_text: bool = False,
    left_out: Counter[str] | None = None,
    recognized: Callable[[FormatName], None] | None = None,
) -> Iterator[Document]:
    """Yield the documents of one file, or of stdin ("-"), that have any text; white space is text.

    What is no document, such as a picture in an archive, or has no text is counted in `left_out` by
    its kind; without `left_out`, an empty file is an error. `recognized` is called with the format
    that the bytes were recognized as, if no name tells it.

    `documents` says which part of a text file is one document: the whole "file", a "line" (without
    its \\n or \\r\\n) or a "paragraph" (lines between blank lines). Other formats take the text
    from the column or field `field`. Raises InputError, with file and line or byte, if the file is
    missing, empty, cut short, not UTF-8 or otherwise broken.
    """
    reader = find_reader(
        path, documents, field, input_format, eot_in_text=eot_in_text, recognized=recognized
    )
    return _readable(scan(path, reader), left_out)


def _readable(documents: Iterator[Document], counts: Counter[str] | None) -> Iterator[Document]:
    left_out = Counter[str]() if counts is None else counts
    for document in documents:
        kind = document.error_kind
        if document.error is not None and (
            kind not in NON_FATAL_ERRORS or (kind == EMPTY_FILE and counts is None)
        ):
            raise document.error
        if document.html is not None:
            document.text = extract_text(document.take_page(), charset=document.charset)
        if document.text:
            yield document
        else:
            left_out[kind or "without text"] += 1


def find_format(path: str, input_format: str = "auto") -> FormatName | None:
    """Return the format of a file; None for standard input or a pipe, recognized as it is read.

    A file that is named as text is what its bytes look like, as it is on standard input; of a URL,
    the name decides. Its reader reports text that looks like another format.

    Raises InputError if the format cannot be read or the file is missing, UsageError if
    `input_format` is not one of INPUT_FORMATS.
    """
    if input_format not in INPUT_FORMATS:
        raise UsageError(
            f"unknown format {input_format!r}",
            field="input_format",
            code="unknown_input_format",
            hint=nearest(input_format, INPUT_FORMATS),
        )
    suffix, _ = file_suffixes(path)
    if input_format in FORMATS:
        return input_format
    if suffix in UNSUPPORTED_SUFFIXES:
        raise InputError(
            f"{suffix} files cannot be read",
            where=path,
            hint="convert it to .txt, .jsonl or .parquet, plain or compressed by gzip, zstd, bzip2, "
            "xz or lz4; if the name is wrong, say what it is with {option:input_format}",
        )
    named = SUFFIX_FORMATS.get(suffix)
    is_told = named is not None and (named != "text" or is_url(path))
    if path == STDIN or (not is_told and not is_url(path) and Path(path).is_fifo()):
        return None
    if named is not None and is_told:
        return named
    return _recognized(path, suffix, fingerprint(path))


def named_as_text(paths: Iterable[str], input_format: str = "auto") -> str:
    """Return a line that says which of the files are named as text and read as something else; ""
    if none.
    """
    found: dict[FormatName, list[str]] = {}
    for path in paths if input_format == "auto" else ():
        if path != STDIN and SUFFIX_FORMATS.get(file_suffixes(path)[0]) == "text":
            format_name = find_format(path)
            if format_name not in (None, "text"):
                found.setdefault(format_name, []).append(path)
    return "; ".join(
        f"{names[0]}{f' and {len(names) - 1:,} more' if len(names) > 1 else ''} looks like "
        f"{DISGUISES[kind]} and is read as such: {{option:input_format}} text reads it as it stands"
        for kind, names in found.items()
    )


@lru_cache(maxsize=1 << 16)
def _recognized(path: str, suffix: str, stamp: object) -> FormatName:
    """Return the format of the first bytes of a file; `stamp` is a key of the cache."""
    with open_input(path) as stream:
        try:
            head = stream.peek(SNIFFED_BYTES)
        except StreamDamageError:  # its reader says where
            head = b""
    found = recognize(head)
    if suffix == ".json":
        return found if found == "jsonl" else "json"
    return found


def undivided(documents: str, formats: Collection[FormatName | None]) -> str:
    """Return a line that says that `documents` divides nothing, because no input is text; "" if it
    does.

    `formats` are those of the inputs, None for one that is not known yet.
    """
    if documents == "file" or documents not in DOCUMENT_KINDS or {"text", None} & {*formats}:
        return ""
    kinds = " and ".join(sorted(DISGUISES.get(str(kind), str(kind).upper()) for kind in formats))
    return f"{{option:documents}} {documents} has no effect: it divides text, and the inputs are {kinds}"


def find_reader(
    path: str,
    documents: DocumentKind,
    field: str = "text",
    input_format: str = "auto",
    *,
    eot_in_text: bool = False,
    recognized: Callable[[FormatName], None] | None = None,
) -> Reader:
    """Return the reader for the format of `path`.

    `recognized` as in `read_documents`.
    With `eot_in_text`, documents end where a text or a JSON line spells `<|endoftext|>`. Raises
    InputError if the format cannot be read, UsageError if `documents` is not one of
    DOCUMENT_KINDS, or if the format has no place for `eot_in_text`.
    """
    if documents not in DOCUMENT_KINDS:
        raise UsageError(
            f"unknown kind of document {documents!r}",
            field="documents",
            code="unknown_documents",
            hint=nearest(documents, DOCUMENT_KINDS),
        )
    found = find_format(path, input_format)
    # A name is not proof: text that is JSON, HTML or binary is reported.
    is_asked = input_format != "auto"

    def member_reader(name: str, head: bytes) -> Reader | str:
        """Return the reader of a file inside an archive, or why it is left out."""
        suffix = file_suffixes(name)[0]
        is_archive = recognize(head) in ARCHIVES
        if suffix in UNSUPPORTED_SUFFIXES or is_archive or SUFFIX_FORMATS.get(suffix) in ARCHIVES:
            return "an archive inside the archive" if is_archive else f"a {suffix} file"
        if is_asked and input_format not in ARCHIVES:
            return of(find_format(name, input_format) or "text")
        known = SUFFIX_FORMATS.get(suffix)
        if known == "text":
            known = recognize(head)
        elif known is None:
            if b"\0" in head or head.startswith(tuple(MAGIC)):
                return "not text"
            known = recognize(head)
            if suffix == ".json":
                known = "jsonl" if known == "jsonl" else "json"
        if eot_in_text and known not in TEXT_ALONE:
            return f"{known}, in which <|endoftext|> divides nothing"
        return of(known)

    def of(name: FormatName) -> Reader:
        if eot_in_text and name not in TEXT_ALONE:
            raise UsageError(
                f"{{option:eot_in_text}} divides text and JSON lines, not {name}", where=path
            )
        readers: dict[FormatName, Reader] = {
            "jsonl": json_lines_reader(field, eot_in_text=eot_in_text),
            "json": json_reader(field),
            "csv": csv_reader(field),
            "tsv": csv_reader(field, "\t"),
            "parquet": parquet_reader(field),
            "warc": read_warc,
            "html": read_html,
            "tar": tar_reader(member_reader),
            "zip": zip_reader(member_reader),
        }
        return readers.get(name) or text_reader(
            documents, eot_in_text=eot_in_text, is_asked=is_asked
        )

    if found is not None:
        return of(found)

    def read_recognized(stream: Any, name: str, part: FileRange) -> Iterator[Document]:
        kind = recognize(stream.peek(SNIFFED_BYTES))
        if recognized is not None:
            recognized(kind)
        return of(kind)(stream, name, part)

    return read_recognized


def scan(path: str, reader: Reader, part: FileRange = WHOLE_FILE) -> Iterator[Document]:
    """Yield every document of a file, or of a range of it, unreadable ones included.

    Raises InputError if the file cannot be opened or its stream breaks off.
    """
    name = "stdin" if path == STDIN else path
    with open_input(path, start=max(part.start - 1, 0)) as stream:
        content: Any = stream
        try:
            is_empty = not stream.peek(1)
        except StreamDamageError as error:  # some readers look behind it
            is_empty, content = False, io.BufferedReader(_DamagedStart(stream, error))
        if is_empty:
            if not part.start and part.selects(0):
                what = "standard input is empty" if path == STDIN else "the file is empty"
                yield bad_document(EMPTY_FILE, what, name)
            return
        yield from reader(content, name, part)


class _DamagedStart(io.RawIOBase):
    """Stream whose start is damaged: the first read raises the error, once more."""

    def __init__(self, stream: io.BufferedReader, error: StreamDamageError) -> None:
        self._stream = stream
        self._error: StreamDamageError | None = error

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`. Raises StreamDamageError where the stream is damaged."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._stream.readinto1(buffer)


def is_splittable(path: str, documents: DocumentKind, input_format: str = "auto") -> bool:
    """Return True if a byte range of the file can be read without the bytes before it."""
    if path == STDIN or file_suffixes(path)[1]:
        return False
    return has_lines(path, documents, input_format)


def has_lines(path: str, documents: DocumentKind, input_format: str = "auto") -> bool:
    """Return True if each line of the file, decompressed, is a document or none."""
    found = find_format(path, input_format)
    return found == "jsonl" or (found == "text" and documents == "line")


def read_json_values(path: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) for each line of a JSON lines file that is not blank, or each value of a
    JSON file or of its array.

    Raises InputError on the first one that is not JSON.
    """
    with open_input(path) as stream:
        if find_format(path) == "json":
            yield from json_file_values(stream, path)
            return
        for number, line in enumerate(stream, 1):
            if line.strip():
                where = f"{path}:{number}"
                yield where, parse_json(line, where)
