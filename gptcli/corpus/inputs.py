"""Input files: their suffixes, fingerprints and bytes, of files, URLs and standard input."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from gptcli.corpus.snapshots import refuse_snapshots, snapshot_of
from gptcli.errors import GptError, InputError, RunError, install_hint
from gptcli.text.compression import (
    BUFFER_BYTES,
    START_BYTES,
    MissingPackageError,
    compression_of,
    decompressed,
)

STDIN = "-"
COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".lz4")
SHORT_SUFFIXES = {
    ".tgz": (".tar", ".gz"),
    ".tbz2": (".tar", ".bz2"),
    ".tbz": (".tar", ".bz2"),
    ".txz": (".tar", ".xz"),
    ".tzst": (".tar", ".zst"),
}
"""Suffixes that stand for two."""
KNOWN_SUFFIXES: dict[str, Any] = {
    ".txt": "text",
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), "jsonl"),
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    **dict.fromkeys((".warc", ".wet"), "warc"),
    ".tar": "tar",
    ".zip": "zip",
}
"""Suffixes that a folder is searched for, with their formats; other files can be named."""
REMOTE_REQUESTS = 16  # at the same time
REMOTE_ATTEMPTS = 3


@lru_cache(maxsize=1 << 16)
def file_suffixes(path: str) -> tuple[str, str]:
    """Return (kind, compression), such as (".jsonl", ".gz"); a missing suffix is ""."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes[-2:]]
    if suffixes and suffixes[-1] in SHORT_SUFFIXES:
        return SHORT_SUFFIXES[suffixes[-1]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES else ""
    return (suffixes[-1] if suffixes else ""), compression


def is_url(path: str) -> bool:
    """Return True if `path` has a protocol, as in s3://bucket/file."""
    return "://" in path


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL and the path inside it.

    Raises InputError if the protocol is unknown or a package is missing.
    """
    try:
        import fsspec
    except ImportError:
        raise MissingPackageError(
            "reading URLs needs the package fsspec", where=url, hint=install_hint("fsspec")
        ) from None
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:  # HTTPFileSystem requires "requests" ...; Install s3fs to ...
        packages = re.findall(r'"(\w+)"', str(error)) or re.findall(r"[Ii]nstall (\w+)", str(error))
        if not packages:
            raise InputError(str(error), where=url) from None
        raise MissingPackageError(
            f"reading it needs {' and '.join(packages)}",
            where=url,
            hint=" ".join([install_hint(packages[0]), *packages[1:]]),
        ) from None
    except ValueError as error:
        raise InputError(str(error), where=url) from None


@contextlib.contextmanager
def filesystem_errors(url: str) -> Iterator[None]:
    """Translate errors of an fsspec client: InputError if the URL is wrong, else RunError.

    The exceptions of different clients have no common base class.
    """
    try:
        yield
    except (GptError, FileNotFoundError):
        raise
    except ValueError as error:
        raise InputError(str(error), where=url) from error
    except Exception as error:
        raise RunError(f"cannot be reached: {error}", where=url) from error


def fingerprint(path: str) -> tuple[int, str]:
    """Return the size of a file in bytes and a string that changes with its content.

    `--resume` compares it. A URL is asked once in a process. Raises InputError if there is no such
    file, RunError if a URL cannot be reached.
    """
    try:
        if is_url(path):
            if (snapshot := snapshot_of(path)) is not None:
                return snapshot.warc_bytes, snapshot.name
            return _remote_fingerprint(path)
        # a build asks ten times for each of its files, which may be millions; a Path takes longer
        stat = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    return stat.st_size, str(stat.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _remote_fingerprint(url: str) -> tuple[int, str]:
    fs, inside = open_filesystem(url)
    for attempt in range(1, REMOTE_ATTEMPTS + 1):
        try:
            with filesystem_errors(url):
                return int(fs.size(inside)), str(fs.ukey(inside))
        except RunError:
            if attempt == REMOTE_ATTEMPTS:
                raise
            time.sleep(2.0 ** (attempt - 1))
    raise AssertionError("unreachable")


def fingerprints(paths: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Return the fingerprint of each file, those of URLs asked for in parallel."""
    _remote_fingerprint.cache_clear()
    remote = [path for path in paths if is_url(path) and snapshot_of(path) is None]
    with ThreadPoolExecutor(REMOTE_REQUESTS) as pool:
        list(pool.map(_remote_fingerprint, remote))
    return {path: fingerprint(path) for path in paths}


def open_raw(path: str) -> Any:
    """Open a file or URL as it is stored. Raises InputError if there is no such file."""
    try:
        if is_url(path):
            refuse_snapshots([path])
            fs, inside = open_filesystem(path)
            with filesystem_errors(path):
                return fs.open(inside, "rb")
        return open(path, "rb", BUFFER_BYTES)
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None


_watchers: list[Callable[[int], None]] = []


@contextlib.contextmanager
def watch_reads(watcher: Callable[[int], None]) -> Iterator[None]:
    """Call `watcher` with the number of bytes, as stored, of each read from inputs opened here."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


class _Watched(io.RawIOBase):
    """Stream that tells the watchers how many bytes are read from it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        # Does not wait for more than is there: a pipe may be slow.
        self._readinto = getattr(stream, "readinto1", None) or stream.readinto

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True if the stream can seek."""
        return bool(self._stream.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position and return it."""
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        """Return the position."""
        return int(self._stream.tell())

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what is there, and tell the watchers."""
        count = int(self._readinto(buffer))
        for watcher in _watchers:
            watcher(count)
        return count


@contextlib.contextmanager
def open_input(path: str, *, start: int = 0) -> Iterator[io.BufferedReader]:
    """Open a file for reading, decompressed, at byte `start`.

    Standard input is decompressed if it begins like a compressed file. Raises InputError, also
    inside the `with` block, if the file is missing, damaged or cut short.
    """
    name = "stdin" if path == STDIN else path
    compression = file_suffixes(path)[1]
    with contextlib.ExitStack() as stack:
        stream: Any = sys.stdin.buffer if path == STDIN else stack.enter_context(open_raw(path))
        if _watchers:
            stream = io.BufferedReader(_Watched(stream), BUFFER_BYTES)
        elif not hasattr(stream, "peek"):
            stream = io.BufferedReader(stream, BUFFER_BYTES)
        if path == STDIN:
            compression = compression_of(stream.peek(START_BYTES))
        if compression:
            stream = decompressed(stream, compression, name)
        if start:
            stream.seek(start)
        yield stream
