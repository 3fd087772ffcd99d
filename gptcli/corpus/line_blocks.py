"""Blocks of lines: what a compressed file of lines is divided into when workers share it.

One process decompresses the file, once, and writes the bytes of each block to a file in the work
folder; the worker that reads it deletes it. Unlike a message between processes, a file takes no
memory of either, however long a line is, and reaches the machines of a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from gptcli.corpus.documents import MAX_DOCUMENT_BYTES
from gptcli.corpus.input_splits import InputSplit
from gptcli.text.compression import StreamDamageError

READ_BYTES = 1 << 20


def write_line_blocks(
    stream: BufferedReader, split: InputSplit, folder: Path
) -> Iterator[InputSplit]:
    """Write the blocks of a stream of lines to `folder`; yield the split of each.

    A block has the lines that begin in `split.part.block` bytes. Raises StreamDamageError after the
    whole lines before the damage.
    """
    start = lines = 0
    rest = b""
    while rest or stream.peek(1):
        part = replace(split.part, start=start, lines_before=lines, is_handed_out=False)
        path = folder / f"lines-{split.source:03d}-{split.first:06x}-{start:010x}"
        block = replace(split, part=part, lines=path)
        damage: StreamDamageError | None = None
        with open(path, "wb") as file:
            cutter = _Cutter(file, start, (start // split.part.block + 1) * split.part.block)
            try:
                rest = cutter.copy(stream, rest)
            except StreamDamageError as error:
                damage = error
                cutter.drop_last_line()
        if cutter.lines or damage is None:
            yield block
        if damage is not None:
            raise damage
        start, lines = cutter.position, lines + cutter.lines


class _Cutter:
    """Copy of the lines of a stream that begin before a border.

    A line of the block before comes first, as in a range of a file: `lines` skips it.
    """

    def __init__(self, file: BinaryIO, start: int, border: int) -> None:
        self._file, self._border, self.position = file, border, start
        self._whole = file.write(b"\n") if start else 0  # size of the file up to a line's end
        self.lines = 0
        """Number of line ends copied."""

    def copy(self, stream: BufferedReader, rest: bytes) -> bytes:
        """Copy `rest` and what follows in the stream; return the bytes behind the last line."""
        while data := rest or stream.read1(READ_BYTES):
            rest = b""
            cut = 0
            if self.position + len(data) >= self._border:
                cut = data.find(b"\n", max(self._border - 1 - self.position, 0)) + 1
            self._write(data[:cut] if cut else data)
            if cut:
                return data[cut:]
        return b""

    def _write(self, data: bytes) -> None:
        # The last line is too long already: its reader does not need the rest of it.
        if self.position - self._border <= MAX_DOCUMENT_BYTES:
            at = self._file.tell()
            self._file.write(data)
            if b"\n" in data:
                self._whole = at + data.rindex(b"\n") + 1
        self.position += len(data)
        self.lines += data.count(b"\n")

    def drop_last_line(self) -> None:
        """Drop the line that is not whole."""
        self._file.truncate(self._whole)
