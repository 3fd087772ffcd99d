"""A file that is written past the system's page cache, where the system allows it.

What a checkpoint holds nobody reads soon. Through the cache, every page of it is allocated, copied
and later written back by the kernel, on the cores that train, and pushes out the shards, which are
read again and again.
"""

from __future__ import annotations

import mmap
import os
from io import FileIO
from pathlib import Path
from types import TracebackType

SIZE = 4 << 20  # bytes of a write
ALIGNED = 4096  # what place and length of such writes are multiples of


class DirectFile:
    """For writing from front to back; whole and on disk once the block it is opened for ends."""

    def __init__(self, path: Path) -> None:
        try:
            self.file = FileIO(path, "wb", opener=_past_the_cache)
        except OSError:  # not every file system can
            self.file = FileIO(path, "wb")
        self.room = memoryview(mmap.mmap(-1, SIZE))  # which begins on a page
        self.held = self.size = 0

    def write(self, data: memoryview) -> None:
        while data:
            part = data[: SIZE - self.held]
            self.room[self.held : self.held + len(part)] = part
            self.held += len(part)
            self.size += len(part)
            data = data[len(part) :]
            if self.held == SIZE:
                self._hand_over(SIZE)

    def _hand_over(self, length: int) -> None:
        left = self.room[:length]
        while left:
            left = left[self.file.write(left) :]
        self.held = 0

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self.file:
            if error is None:
                self._hand_over(-(-self.held // ALIGNED) * ALIGNED)
                self.file.truncate(self.size)
                os.fsync(self.file.fileno())


def _past_the_cache(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o666)
