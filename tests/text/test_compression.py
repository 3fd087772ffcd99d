"""Compressed streams give back their content, in whatever pieces, and say when they are damaged."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
from collections.abc import Callable

import pytest
import zstandard

from gptcli.text import compression
from gptcli.text.compression import StreamDamageError, decompressed

TEXT = b"".join(b"line %d of a text\n" % number for number in range(5000))
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".xz": lzma.compress,
}
with contextlib.suppress(ImportError):
    import lz4.frame

    COMPRESS[".lz4"] = lz4.frame.compress


@pytest.mark.parametrize("suffix", COMPRESS)
def test_one_stream_and_several_in_a_row_are_read_whole(suffix: str) -> None:
    compress = COMPRESS[suffix]
    for data in (compress(TEXT), compress(TEXT[:70]) + compress(TEXT[70:])):
        assert decompressed(io.BytesIO(data), suffix, "a").read() == TEXT
        lines = list(decompressed(io.BytesIO(data), suffix, "a"))
        assert lines == TEXT.splitlines(keepends=True)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_damage_is_an_error_wherever_it_is(suffix: str) -> None:
    whole = COMPRESS[suffix](TEXT)
    for size in range(1, len(whole), 97):
        with pytest.raises(StreamDamageError, match=r"cut short|damaged"):
            decompressed(io.BytesIO(whole[:size]), suffix, "a").read()
    with pytest.raises(StreamDamageError, match="damaged"):
        decompressed(io.BytesIO(b"plain text, in no archive"), suffix, "a").read()


def read_on(data: bytes, suffix: str) -> tuple[bytes, int]:
    """Return what can be read of compressed data, and the number of damages on the way."""
    stream, read, damages = decompressed(io.BytesIO(data), suffix, "a"), b"", 0
    assert isinstance(stream, io.BufferedReader)
    while True:
        try:
            piece = stream.read1()
        except StreamDamageError:
            damages += 1
            continue
        if not piece:
            return read, damages
        read += piece


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst", ".xz", ".lz4"])
@pytest.mark.parametrize("size", [1, 4, 600, 70_000])
def test_zeros_are_padding_where_the_standard_says_so(suffix: str, size: int) -> None:
    """Elsewhere they are members that were lost: the data behind them are read all the same."""
    if suffix == ".lz4":
        pytest.importorskip("lz4")
    first, second = (COMPRESS[suffix](data) for data in (TEXT[:70], TEXT[70:]))
    for data, is_padding in (
        (first + second + bytes(size), suffix == ".gz" or (suffix == ".xz" and size % 4 == 0)),
        (first + bytes(size) + second, suffix == ".xz" and size % 4 == 0),
        (bytes(size) + first + second, False),
    ):
        read, damages = read_on(data, suffix)
        assert read == TEXT
        assert damages == (not is_padding)


def test_zeros_longer_than_a_block_of_a_tape_are_no_padding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compression, "TAPE_BLOCK_BYTES", 1 << 17)
    data = gzip.compress(TEXT)
    size = (1 << 17) - 1
    assert decompressed(io.BytesIO(data + bytes(size)), ".gz", "a").read() == TEXT
    with pytest.raises(StreamDamageError, match="131,072 zero bytes"):
        decompressed(io.BytesIO(data + bytes(size + 1)), ".gz", "a").read()


@pytest.mark.parametrize("suffix", [".zst", ".lz4"])
def test_a_frame_to_skip_costs_nothing(suffix: str) -> None:
    if suffix == ".lz4":
        pytest.importorskip("lz4")
    skipped = b"\x52\x2a\x4d\x18" + (20).to_bytes(4, "little") + bytes(20)
    first, second = (COMPRESS[suffix](data) for data in (TEXT[:70], TEXT[70:]))
    data = skipped + first + skipped + second + skipped
    assert decompressed(io.BytesIO(data), suffix, "a").read() == TEXT
    with pytest.raises(StreamDamageError, match="cut short"):
        decompressed(io.BytesIO(data[:-1]), suffix, "a").read()


def test_a_header_that_skips_the_members_behind_it_costs_none_of_them() -> None:
    """A flag of gzip says that fields follow: of up to 64 KiB, or up to a zero byte."""
    members = [gzip.compress(b"member %d\n" % number, mtime=0) for number in range(3000)]
    for at in (1, 2990):
        for flag in (1, 2, 4, 8, 16, 20):
            header = bytearray(members[at])
            header[3] = flag
            data = b"".join([*members[:at], bytes(header), *members[at + 1 :]])
            read, damages = read_on(data, ".gz")
            found = read.splitlines()
            missing = [n for n in range(3000) if n != at and b"member %d" % n not in found]
            assert not missing, (at, flag)
            assert damages == (flag != 1), (at, flag)
