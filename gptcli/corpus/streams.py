"""Bytes out of files and URLs, plain, gzip or zstd; a stream that is cut short or damaged says so
wherever it shows.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gptcli.errors import GptError, InputError, RunError, install_hint

STDIN = "-"
COMPRESSED = (".gz", ".zst")
# compressed bytes decoded at once: few, because every four of them may stand for 128 KiB
ZST_CHUNK = 1 << 12
BUFFER = 1 << 16


class MissingPackageError(InputError):
    """A file cannot be read for want of a package: no fault of the file's, so never skipped with
    the broken ones.
    """


def ending(path: str) -> tuple[str, str]:
    """(".jsonl", ".gz") of a.jsonl.gz; an ending that is absent is empty."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes[-2:]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    return (suffixes[-1] if suffixes else ""), compression


def is_url(path: str) -> bool:
    return "://" in path


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the path in it. Raises InputError where the protocol or
    its package is missing.
    """
    try:
        import fsspec
    except ImportError:
        raise MissingPackageError(
            "reading URLs needs the package fsspec", where=url, hint=install_hint("fsspec")
        ) from None
    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError(str(error), where=url) from None


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """Asking a file system: what its client raises, which has no kind in common, as InputError
    where the URL is wrong, else RunError.
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
    """Size in bytes, and what changes when the content does: for --resume. Raises InputError where
    there is no such file, RunError where a URL cannot be reached."""
    try:
        if is_url(path):
            fs, inside = filesystem(path)
            with reaching(path):
                return int(fs.size(inside)), str(fs.ukey(inside))
        stat = Path(path).stat()
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    return stat.st_size, str(stat.st_mtime_ns)


@contextlib.contextmanager
def opened(path: str, *, start: int = 0) -> Iterator[io.BufferedReader]:
    """The file's bytes from `start` on, decompressed. Raises InputError, wherever in the block it
    shows, on a stream that is not whole.
    """
    name = "stdin" if path == STDIN else path
    compression = ending(path)[1]
    damaged: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    with contextlib.ExitStack() as stack:
        stream: Any = sys.stdin.buffer if path == STDIN else stack.enter_context(_file(path))
        if compression == ".gz":
            stream = io.BufferedReader(stack.enter_context(gzip.open(stream)), BUFFER)
        elif compression == ".zst":
            zstandard = _zstandard(name)
            stream = io.BufferedReader(
                _ZstReader(stream, zstandard.ZstdDecompressor(max_window_size=1 << 31)), BUFFER
            )
            damaged = (EOFError, zstandard.ZstdError)
        elif not hasattr(stream, "peek"):
            stream = io.BufferedReader(stream, BUFFER)
        if start:
            stream.seek(start)
        try:
            yield stream
        except damaged as error:
            what = "the file is cut short" if isinstance(error, EOFError) else "the file is damaged"
            raise InputError(f"{what}: {error}", where=name) from None


def _file(path: str) -> Any:
    try:
        if is_url(path):
            fs, inside = filesystem(path)
            with reaching(path):
                return fs.open(inside, "rb")
        return open(path, "rb", BUFFER)
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None


def _zstandard(where: str) -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingPackageError(
            "reading .zst needs the package zstandard", where=where, hint=install_hint("zstandard")
        ) from None
    return zstandard


class _ZstReader(io.RawIOBase):
    """Decompresses any number of zstd frames, and raises EOFError where the last one is not whole
    (zstandard's own reader does not).
    """

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
