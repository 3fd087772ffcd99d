"""Documents out of files: plain text and JSON lines, each plain, gzip or zstd; one at a time, so memory does not grow with the file.

A document of zero length carries nothing and is skipped. Texts are passed on as they stand: no newline or byte order mark is
changed or dropped inside a document.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gptcli.errors import InputError, UsageError, nearest

DOCUMENTS = ("file", "line", "paragraph")
KNOWN = (".txt", ".jsonl")  # what a folder is searched for; a file named by itself is text whatever its ending
COMPRESSED = (".gz", ".zst")
UNREADABLE = (".parquet", ".arrow", ".warc", ".wet", ".zip", ".tar", ".bz2", ".xz", ".7z", ".pdf", ".bin", ".npy")
STDIN = "-"
ZST_CHUNK = 1 << 12  # compressed bytes decoded at once: few, because every four of them may stand for 128 KiB


@dataclass(frozen=True, slots=True)
class Document:
    text: str
    where: str
    """"file" or "file:line", for messages."""


def find_inputs(inputs: Sequence[str]) -> list[str]:
    """The files that files, folders, globs and "-" name: sorted, each once.

    A folder is searched for .txt and .jsonl at any depth, plain or compressed, names with a leading dot left out. So is what a glob
    matches, unless the glob spells the ending ("src/**/*.py"). Raises InputError where nothing is found.
    """
    found: dict[str, str] = {}  # by real path
    for name in inputs:
        for path in _find(name):
            found.setdefault(path if path == STDIN else os.path.realpath(path), path)
    return sorted(found.values())


def _find(name: str) -> list[str]:
    path = Path(name)
    if name == STDIN:
        return [name]
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))]
        return _known(files, name)
    if path.exists():
        return [name]
    if not glob.has_magic(name):
        raise InputError("no such file or folder", where=name)
    matches = [Path(match) for match in glob.glob(name, recursive=True)]  # noqa: PTH207 (Path.glob refuses absolute patterns)
    files = [match for match in matches if match.is_file()]
    if path.suffix and not glob.has_magic(path.suffix):
        if not files:
            raise InputError("nothing matches", where=name)
        return [str(file) for file in files]
    return _known(files, name)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _known(files: list[Path], where: str) -> list[str]:
    known = [str(file) for file in files if _ending(file)[0] in KNOWN]
    if not known:
        endings = sorted({"".join(_ending(file)) or "no ending" for file in files})
        raise InputError(
            f"no {' or '.join(KNOWN)} file there, plain or compressed" + (f" (only {', '.join(endings[:8])})" if files else ""),
            where=where,
            hint="files of another ending are read as text when they are named, or matched by a glob that spells the ending",
        )
    return known


def _ending(path: Path) -> tuple[str, str]:
    """(".jsonl", ".gz") of a.jsonl.gz; an ending that is absent is empty."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    return (suffixes[-1] if suffixes else ""), compression


def read_documents(path: str, *, documents: str = "file") -> Iterator[Document]:
    """The documents of one file, or of stdin ("-", as text).

    `documents` says what a document of a text file is: the whole "file", a "line" (without its \\n or \\r\\n) or a "paragraph" (lines
    between blank ones, without the last line's ending). A .jsonl file holds one a line, in its "text" field; blank lines are skipped.
    Raises InputError, with file and line or byte, on a file that is missing, empty, cut short, not UTF-8 or not JSON lines.
    """
    if documents not in DOCUMENTS:
        raise UsageError(f"unknown kind of document {documents!r}", where="--documents", hint=nearest(documents, DOCUMENTS))
    ending, _ = _ending(Path(path))
    if ending in UNREADABLE:
        raise InputError(f"{ending} files cannot be read", where=path, hint="convert it to .txt or .jsonl, plain, .gz or .zst")
    return _read(path, _jsonl if ending == ".jsonl" else {"file": _whole, "line": _lines, "paragraph": _paragraphs}[documents])


def _read(path: str, read: Callable[[IO[bytes], str], Iterator[Document]]) -> Iterator[Document]:
    name = "stdin" if path == STDIN else path
    with _opened(path, name) as stream:
        if not stream.peek(1):
            raise InputError("the file is empty" if path != STDIN else "nothing came in", where=name)
        for document in read(stream, name):
            if document.text:
                yield document


def _whole(stream: IO[bytes], name: str) -> Iterator[Document]:
    yield Document(_decoded(stream.read(), 0, name), name)


def _lines(stream: IO[bytes], name: str) -> Iterator[Document]:
    for number, line in _text_lines(stream, name):
        yield Document(_bare(line), f"{name}:{number}")


def _paragraphs(stream: IO[bytes], name: str) -> Iterator[Document]:
    paragraph: list[str] = []
    first = 1
    for number, line in _text_lines(stream, name):
        if line.strip():
            first = first if paragraph else number
            paragraph.append(line)
        elif paragraph:
            yield Document(_bare("".join(paragraph)), f"{name}:{first}")
            paragraph = []
    if paragraph:
        yield Document(_bare("".join(paragraph)), f"{name}:{first}")


def _jsonl(stream: IO[bytes], name: str) -> Iterator[Document]:
    for number, line in _text_lines(stream, name):
        where = f"{name}:{number}"
        if number == 1:
            line = line.removeprefix("\ufeff")
        if not line.strip():
            continue
        try:
            record: Any = json.loads(_bare(line))
        except json.JSONDecodeError as error:
            raise InputError(f"not valid JSON at column {error.colno}: {error.msg}", where=where) from None
        except (ValueError, RecursionError) as error:  # a number of over 4,300 digits; brackets a thousand deep
            raise InputError(f"not readable JSON: {error}", where=where) from None
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise InputError('no "text" field that holds a string', where=where, hint='a line looks like {"text": "..."}')
        if "\\ud" in line.lower() and any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError('"text" holds a lone surrogate (\\ud...): it is not valid Unicode', where=where)
        yield Document(text, where)


def _text_lines(stream: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line, its ending kept. Lines end at \\n alone."""
    offset = 0
    for number, line in enumerate(stream, 1):
        yield number, _decoded(line, offset, f"{name}:{number}")
        offset += len(line)


def _bare(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _decoded(data: bytes, offset: int, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not valid UTF-8 at byte {offset + error.start}", where=where) from None


@contextlib.contextmanager
def _opened(path: str, name: str) -> Iterator[io.BufferedReader]:
    """The file's bytes, decompressed; broken compression becomes an InputError wherever in the block it shows."""
    compression = _ending(Path(path))[1]
    damaged: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    with contextlib.ExitStack() as stack:
        try:
            if path == STDIN:
                stream: Any = sys.stdin.buffer
            elif compression == ".gz":
                stream = io.BufferedReader(stack.enter_context(gzip.open(path)))
            else:
                stream = stack.enter_context(open(path, "rb"))
        except FileNotFoundError:
            raise InputError("no such file", where=name) from None
        if compression == ".zst":
            zstandard = _zstandard(name)
            stream = io.BufferedReader(_ZstReader(stream, zstandard.ZstdDecompressor(max_window_size=1 << 31)))
            damaged = (EOFError, zstandard.ZstdError)
        try:
            yield stream
        except damaged as error:
            what = "the file is cut short" if isinstance(error, EOFError) else "the file is damaged"
            raise InputError(f"{what}: {error}", where=name) from None


def _zstandard(where: str) -> Any:
    try:
        import zstandard
    except ImportError:
        raise InputError("reading .zst needs the package zstandard", where=where, hint="pip install 'gptcli[data]'") from None
    return zstandard


class _ZstReader(io.RawIOBase):
    """Decompresses any number of zstd frames, and raises EOFError where the last one is not whole (zstandard's own reader does not)."""

    def __init__(self, file: IO[bytes], decompressor: Any) -> None:
        self._file = file
        self._decompressor = decompressor
        self._frame: Any = None  # the frame being read
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._file.read(ZST_CHUNK)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("its zstd stream ends early")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._output = memoryview(self._frame.decompress(self._input))
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count
