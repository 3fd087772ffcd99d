"""Compressed streams of any size, decompressed as they are read: gzip, zstd, bzip2, xz and
lz4.

A compressed file is a sequence of members, also called frames, as archives of web pages are: one
member a record. Where a member is damaged or cut short, reading raises `StreamDamageError`, once;
reading on continues with the next member. Most readers end there. The reader of WARC counts the
record that is lost and goes on.
"""

from __future__ import annotations

import bz2
import io
import lzma
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from gptcli.errors import InputError, install_hint

BUFFER_BYTES = 1 << 16
OUTPUT_BYTES = 1 << 17  # decompressed at a time, so that a small file cannot fill the memory
# Compressed bytes of zstd decoded at a time: few, because four of them may expand to 128 KiB.
ZSTD_INPUT_BYTES = 1 << 12
HELD_BYTES = 1 << 17  # more than the header of a gzip member can skip
SNIFFED_BYTES = 1 << 16  # looked at to recognize a format
TAPE_BLOCK_BYTES = (
    1 << 24
)  # more than a block of a tape may have, up to whose end zeros are padding


MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh", ".xz": b"\xfd7zXZ",
         ".lz4": b"\x04\x22\x4d\x18"}  # fmt: skip
"""First bytes of a compressed file, by its suffix."""


class MissingPackageError(InputError):
    """Error for a file that needs a package which is not installed.

    The file itself is not at fault, so `--on-error skip` does not skip it.
    """


class StreamDamageError(InputError):
    """Error for a place where a compressed stream is damaged; it can be read on behind it."""


@dataclass(frozen=True, slots=True)
class _Codec:
    """Compression of which a file has any number of members."""

    name: str
    """Name for messages."""
    magic: bytes
    """First bytes of a file."""
    open: Callable[[], Any]
    """Function that returns an object with `decompress`, `eof` and `unused_data`."""
    start: re.Pattern[bytes]
    """Start of a member, as exactly as it can be told from other data."""
    errors: tuple[type[Exception], ...]
    """Exceptions for damaged data."""
    input_bytes: int = BUFFER_BYTES
    """Compressed bytes decoded at a time."""


def _zstd(where: str) -> _Codec:
    try:
        import zstandard
    except ImportError:
        raise MissingPackageError(
            "reading .zst needs the package zstandard", where=where, hint=install_hint("zstandard")
        ) from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    start = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)
    errors = (zstandard.ZstdError,)
    return _Codec(
        "zstd", MAGIC[".zst"], decompressor.decompressobj, start, errors, ZSTD_INPUT_BYTES
    )


def _lz4(where: str) -> _Codec:
    try:
        import lz4.frame
    except ImportError:
        raise MissingPackageError(
            "reading .lz4 needs the package lz4", where=where, hint=install_hint("lz4")
        ) from None
    start = re.compile(rb"\x04\x22\x4d\x18[\x40-\x7f]|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)
    errors = (RuntimeError, EOFError, ValueError)
    return _Codec("lz4", MAGIC[".lz4"], lz4.frame.LZ4FrameDecompressor, start, errors)


_CODECS: dict[str, Callable[[str], _Codec]] = {
    ".gz": lambda _: _Codec(
        "gzip",
        MAGIC[".gz"],
        lambda: zlib.decompressobj(31),
        re.compile(rb"\x1f\x8b\x08[\x00-\x1f]", re.DOTALL),
        (zlib.error,),
    ),
    ".zst": _zstd,
    ".lz4": _lz4,
    ".bz2": lambda _: _Codec(
        "bzip2",
        MAGIC[".bz2"],
        bz2.BZ2Decompressor,
        re.compile(rb"BZh[1-9](?=1AY&SY|\x17rE8P\x90)", re.DOTALL),
        (OSError, ValueError),
    ),
    ".xz": lambda _: _Codec(
        "xz", MAGIC[".xz"], lzma.LZMADecompressor, re.compile(rb"\xfd7zXZ\x00"), (lzma.LZMAError,)
    ),
}
START_BYTES = 10  # enough to recognize the start of a member of any codec


def members(read: Callable[[int], bytes], codec: _Codec) -> Iterator[bytes | str]:
    """Yield the decompressed bytes of all members of a stream.

    Where a member is damaged, what is wrong is yielded as a string; the next bytes are those of the
    next member. `read` returns up to that many compressed bytes, b"" at the end.
    """
    data, member = b"", None
    is_end = is_lost = False  # is_lost: between damage and the start of the next member
    is_start = True  # no member was read
    zeros = 0  # since the last member
    # What was read of the member last: a damaged one may run into those behind it.
    held = deque[bytes](maxlen=1 + HELD_BYTES // codec.input_bytes)
    while True:
        while len(data) < START_BYTES and not is_end and getattr(member, "needs_input", True):
            more = read(codec.input_bytes)
            is_end, data = not more, data + more
            if member is not None:
                held.append(more)
        if member is None:
            if not (is_lost or is_start):
                zeros, data = zeros + len(data), data.lstrip(b"\0")
                zeros -= len(data)
            if len(data) < START_BYTES and not is_end:
                continue
            if zeros and not _is_padding(codec, zeros, is_last=not data):
                yield f"the file is damaged: {zeros:,} zero bytes where {codec.name} data end"
                is_lost = True
            zeros = 0
            if not data and is_end:
                return
            found = codec.start.search(data) if is_lost else codec.start.match(data)
            is_stub = is_end and len(data) < START_BYTES and data[:2] == codec.magic[:2]
            if found is None and not (is_stub and not is_lost):
                if not is_lost:
                    yield f"the file is damaged: not {codec.name} data"
                    is_lost, data = True, data[1:]
                elif is_end:
                    return
                else:
                    data = data[-START_BYTES + 1 :] + (more := read(codec.input_bytes))
                    is_end = not more
                continue
            member, data = codec.open(), data[found.start() if found else 0 :]
            is_lost = is_start = False
            held.clear()
            held.append(data)
        try:
            output, data = _decompressed(codec, member, data)
        except codec.errors as error:
            yield f"the file is damaged: {error}"
            member, is_lost, data = None, True, b"".join(held)[1:]
            continue
        if output:
            yield output
        if member.eof:
            member = None
        elif is_end and not output and not data:
            yield f"the file is cut short: its {codec.name} stream ends early"
            member, is_lost, data = None, True, b"".join(held)[1:]


def _is_padding(codec: _Codec, zeros: int, *, is_last: bool) -> bool:
    """Return True if the standard of the compression allows so many zero bytes behind a member.

    Others are members that were lost. `is_last` is True at the end of the file.
    """
    if codec.name == "xz":
        return zeros % 4 == 0
    return codec.name == "gzip" and is_last and zeros < TAPE_BLOCK_BYTES


def _decompressed(codec: _Codec, member: Any, data: bytes) -> tuple[bytes, bytes]:
    """Return up to about OUTPUT_BYTES of a member, and the compressed bytes that are left."""
    if codec.name == "zstd":  # its input is small instead
        output = member.decompress(data)
    else:
        output = member.decompress(data, OUTPUT_BYTES)
    if member.eof:
        return output, member.unused_data or b""  # lz4 has None
    return output, getattr(member, "unconsumed_tail", b"")  # bzip2 and xz keep it themselves


class _Decompressed(io.RawIOBase):
    """Stream over the bytes that `members` yields."""

    def __init__(self, blocks: Iterator[bytes | str], name: str) -> None:
        self._blocks, self._name = blocks, name
        self._output = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` and return the number of bytes, 0 at the end.

        Raises StreamDamageError where the stream is damaged.
        """
        while not self._output:
            block = next(self._blocks, b"")
            if isinstance(block, str):
                raise StreamDamageError(block, where=self._name)
            if not block:
                return 0
            self._output = memoryview(block)
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count


def decompressed(stream: IO[bytes], compression: str, where: str) -> IO[bytes]:
    """Return what a stream of this compression, a suffix of MAGIC or "" for none, contains.

    Reading it raises StreamDamageError where it is damaged or cut short. `where` names the stream
    in messages. Raises MissingPackageError if a package is needed and not installed.
    """
    if not compression:
        return stream
    codec = _CODECS[compression](where)
    return io.BufferedReader(_Decompressed(members(stream.read, codec), where), BUFFER_BYTES)


def compression_of(head: bytes) -> str:
    """Return the suffix of the compression that a file begins with, or ""."""
    return next((suffix for suffix, magic in MAGIC.items() if head.startswith(magic)), "")
