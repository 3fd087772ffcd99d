"""Compressed streams of any size, decompressed as they are read."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from typing import IO, Any

from gptcli.errors import InputError, install_hint

# Compressed bytes decoded at a time: few, because four of them may expand to 128 KiB.
ZSTD_INPUT_BYTES = 1 << 12
BUFFER_BYTES = 1 << 16


class DamagedStreamError(OSError):
    """Error for a zstd stream that cannot be decompressed."""


# What reading a compressed stream raises if it is damaged or, EOFError, cut short.
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, DamagedStreamError)


class MissingPackageError(InputError):
    """Error for a file that needs a package which is not installed.

    The file itself is not at fault, so `--on-error skip` does not skip it.
    """


def decompressed(stream: IO[bytes], compression: str, where: str) -> IO[bytes]:
    """Return what a stream of this compression contains: ".gz", ".bz2", ".zst", or "" for none.

    Reading it raises one of DAMAGE, or for bzip2 an OSError, if it is damaged. `where` names the
    stream in messages. Raises MissingPackageError if zstandard is needed and not installed.
    """
    if compression == ".gz":
        return io.BufferedReader(gzip.open(stream), BUFFER_BYTES)  # type: ignore[arg-type]
    if compression == ".bz2":
        return io.BufferedReader(bz2.open(stream), BUFFER_BYTES)
    if compression == ".zst":
        return io.BufferedReader(_ZstdReader(stream, where), BUFFER_BYTES)
    return stream


class _ZstdReader(io.RawIOBase):
    """Stream that decompresses any number of zstd frames.

    Unlike the reader of `zstandard`, it raises EOFError if the last frame is incomplete.
    """

    def __init__(self, file: IO[bytes], where: str) -> None:
        try:
            import zstandard
        except ImportError:
            raise MissingPackageError(
                "reading .zst needs the package zstandard",
                where=where,
                hint=install_hint("zstandard"),
            ) from None
        self._file = file
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame: Any = None  # decompressor of the current frame
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` and return the number of bytes, 0 at the end of the last frame."""
        while not self._output:
            self._input = self._input or self._file.read(ZSTD_INPUT_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("its zstd stream ends early")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            try:
                self._output = memoryview(self._frame.decompress(self._input))
            except self._error as error:
                raise DamagedStreamError(str(error)) from None
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count
