"""Progress of reading, in bytes of the inputs as they are stored, from workers to the coordinator.

A worker writes how far it is in its split to a small file in the work folder, twice a second, and
the coordinator adds up the files of the splits that it has handed out: the same way for one
process, several, and those of other machines.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gptcli.corpus.input_splits import InputSplit, NumberedDocument
from gptcli.corpus.inputs import STDIN, fingerprint, watch_reads
from gptcli.corpus.pool import Pool
from gptcli.events import Events

FOLDER = "reading"  # inside the work folder
INTERVAL_S = 0.5

_listeners: list[Callable[[], None]] = []  # of this process, which may be worker and coordinator


@contextlib.contextmanager
def reported(
    work: Path, split: InputSplit, documents: Iterable[NumberedDocument]
) -> Iterator[Iterator[NumberedDocument]]:
    """Return the `documents` of a split, with a record of how far they have been read."""
    path = work / FOLDER / split.name
    done = [0, 0]  # bytes, documents
    written = time.monotonic()

    def write() -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{done[0] // split.part.stripes} {done[1]}")

    def write_sometimes() -> None:
        nonlocal written
        if time.monotonic() - written >= INTERVAL_S:
            write()
            for listener in _listeners:
                listener()
            written = time.monotonic()

    def read(count: int) -> None:
        done[0] += count
        write_sometimes()

    def passed_on() -> Iterator[NumberedDocument]:
        for numbered in documents:
            done[1] += split.part.selects(numbered[1].position)
            write_sometimes()
            yield numbered

    with watch_reads(read):
        yield passed_on()
    write()


class ReadingProgress:
    """Sum of what all workers have read, reported as the progress of a `task`."""

    def __init__(
        self, work: Path, total_bytes: int | None, events: Events, task: str = "read"
    ) -> None:
        self._work, self._total, self._events, self._task = work, total_bytes, events, task
        self._unfinished: dict[str, int] = {}  # name of a split: its size, if that is known
        self._done = [0, 0]  # bytes and documents of finished splits
        self._reported = time.monotonic()
        self._is_short = True  # nothing has been reported

    def hand_out(self, splits: Iterable[InputSplit]) -> Iterator[InputSplit]:
        """Yield the splits, and count what is read of them from now on."""
        for split in splits:
            self._unfinished[split.name] = split_bytes(split)
            yield split

    def finish(self, name: str) -> None:
        """Count a split as read."""
        size = self._unfinished.pop(name, 0)
        done = self._read(name) or (size, 0)  # an earlier attempt has read it
        self._done = [self._done[0] + done[0], self._done[1] + done[1]]
        (self._work / FOLDER / name).unlink(missing_ok=True)
        self.tick()

    def _read(self, name: str) -> tuple[int, int] | None:
        with contextlib.suppress(OSError, ValueError):
            size, documents = (self._work / FOLDER / name).read_text().split()
            return int(size), int(documents)
        return None

    def tick(self) -> None:
        """Report progress if some time has passed."""
        if time.monotonic() - self._reported >= INTERVAL_S:
            self.report()

    def report(self) -> None:
        """Report progress now."""
        running = [found for name in self._unfinished if (found := self._read(name))]
        done, documents = (sum(counts) for counts in zip(self._done, *running, strict=True))
        self._reported, self._is_short = time.monotonic(), False
        total = None if self._total is None else self._total / 1e6
        done_mb = done / 1e6 if total is None else min(done / 1e6, total)
        facts: dict[str, Any] = {"documents": documents} if documents else {}
        self._events.progress(self._task, done_mb, total, "MB", **facts)

    @contextlib.contextmanager
    def during(self, pool: Pool) -> Iterator[None]:
        """Report while `pool` waits for its workers, or is itself the worker."""
        pool.on_wait = self.tick
        _listeners.append(self.tick)
        try:
            yield
        finally:
            _listeners.remove(self.tick)
            pool.on_wait = None
            if not self._is_short:
                self.report()
            self._events.finish(self._task)


def split_bytes(split: InputSplit) -> int:
    """Return the size of a split in bytes of its files; 0 if that is not known."""
    part = split.part
    if part.groups is not None:
        return 0
    sizes = [0 if path == STDIN else fingerprint(path)[0] for path in split.paths]
    if part.stop is not None:
        return min(part.stop, sizes[0]) - part.start
    return sum(sizes) // part.stripes
