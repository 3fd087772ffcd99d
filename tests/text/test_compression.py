"""Compressed streams give back their content, in whatever pieces, and say when they are damaged."""

from __future__ import annotations

import bz2
import gzip
import io
from collections.abc import Callable

import pytest
import zstandard

from gptcli.text.compression import StreamDamageError, decompressed

TEXT = b"".join(b"line %d of a text\n" % number for number in range(5000))
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


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
