"""Faults of the system, injected into this process where Python asks it for something: one at the
Nth operation on a watched folder.

Operations are raw writes, fsync, rename, mkdir and deletions (`changes`), and raw reads (`reads`).
What libraries do by themselves (memory maps, safetensors' reader, numpy's tofile) does not pass
through here; the fsync and the rename that end each of their files do.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptcli.files import PARTIAL, is_lock

CHANGES = ("fsync", "replace", "rename", "mkdir", "unlink", "remove", "rmdir")
KINDS = {  # what is counted for each kind of fault
    "full disk": "changes",
    "kill": "changes",
    "torn file": "changes",
    "power cut": "changes",
    "failing read": "reads",
    "slow read": "reads",
    "clock": "changes",
}
HELD = "held"  # where it is noted what was whole when the fault struck
YEAR = 365 * 86400.0


class Faults:
    """Counts operations on files below `folder`, and lets the fault of this `kind` happen at number
    `at`, from 1 (0: never).
    """

    def __init__(self, folder: Path, kind: str, at: int) -> None:
        self.folder, self.kind, self.at = str(folder), kind, at
        self.counts = {"changes": 0, "reads": 0}
        self.struck = False
        self.synced: dict[int, int] = {}
        """By inode of each file written: the size that is surely on disk."""

    def install(self) -> None:
        """Patch this process. Files that are open already stay as they are."""
        io.open = builtins.open = self._open
        for name in CHANGES:
            setattr(os, name, self._counting(getattr(os, name), name))

    def operations(self) -> int:
        """Return the number of operations that a fault of this kind could strike."""
        return self.counts[KINDS[self.kind]]

    def _counting(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            watched = name == "fsync" or self._inside(arguments[0])
            if watched and self._strikes("changes"):
                self._strike(None, b"", frees=name in ("unlink", "remove", "rmdir"))
            result = call(*arguments, **options)
            if name == "fsync":
                stat = os.fstat(arguments[0])
                self.synced[stat.st_ino] = stat.st_size
            return result

        return counted

    def _open(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if isinstance(file, int) or not self._inside(file):
            return OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Raw(self, os.fspath(file), mode.replace("b", "").replace("t", ""), opener)
        if "r" not in mode:
            self.synced.setdefault(os.fstat(raw.fileno()).st_ino, raw.tell() if "a" in mode else 0)
        if buffering == 0:
            return raw
        if "+" in mode:
            buffered: Any = io.BufferedRandom(raw)
        else:
            buffered = io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)
        return (
            buffered
            if "b" in mode
            else io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)
        )

    def _inside(self, file: Any) -> bool:
        try:
            return os.path.abspath(os.fspath(file)).startswith(self.folder)  # noqa: PTH100 (Path's own calls are patched)
        except TypeError:
            return False

    def _strikes(self, counted: str) -> bool:
        if KINDS[self.kind] != counted:
            return False
        self.counts[counted] += 1
        if self.kind == "full disk":  # it stays full
            return 0 < self.at <= self.counts[counted]
        return self.counts[counted] == self.at

    def _told(self) -> None:
        """The fault strikes now: note which files are whole, in a file of that name."""
        if not self.struck:
            self.struck = True
            names = (
                os.path.join(where, name)  # noqa: PTH118 (as below)
                for where, _, names in os.walk(self.folder)
                for name in names
            )
            # one of several workers that are struck at the same time
            with (
                contextlib.suppress(FileExistsError),
                OPEN(f"{self.folder}/{HELD}", "x") as file,
            ):
                file.writelines(
                    f"{name}\0" for name in names if not (PARTIAL in name or is_lock(Path(name)))
                )

    def _strike(self, raw: _Raw | None, data: Any, *, frees: bool = False) -> None:
        self._told()
        half = memoryview(data)[: len(data) // 2]
        if self.kind == "full disk":
            if not frees:
                if raw is not None and self.counts["changes"] == self.at:
                    io.FileIO.write(raw, half)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "torn file":
            if raw is not None:
                io.FileIO.write(raw, half)
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "power cut":
            if raw is not None:
                io.FileIO.write(raw, half)
            self._lose_unsynced()
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "clock":
            back = time.time
            time.time = lambda: back() - YEAR
            time.time_ns = lambda: int(time.time() * 1e9)

    def _lose_unsynced(self) -> None:
        """Remove half of what no fsync has brought to disk, of every file."""
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(folder, name)  # noqa: PTH118 (as above)
                stat = os.stat(path)  # noqa: PTH116
                if (safe := self.synced.get(stat.st_ino)) is not None and stat.st_size > safe:
                    os.truncate(path, safe + (stat.st_size - safe) // 2)


class _Raw(io.FileIO):
    """An unbuffered file whose reads and writes can fail."""

    def __init__(self, faults: Faults, path: str, mode: str, opener: Any) -> None:
        super().__init__(path, mode, opener=opener)
        self.faults = faults

    def write(self, data: Any) -> int:
        if self.faults._strikes("changes"):
            self.faults._strike(self, memoryview(data).cast("B"))
        return super().write(data)

    def readinto(self, buffer: Any) -> int:
        self._reading()
        # and in small pieces from then on, as sockets and pipes give them
        if self.faults.kind == "slow read" and self.faults.struck:
            return super().readinto(memoryview(buffer)[: max(1, len(buffer) // 2)]) or 0
        return super().readinto(buffer) or 0

    def readall(self) -> bytes:
        self._reading()
        return super().readall()

    def read(self, size: int | None = -1) -> bytes:
        self._reading()
        return super().read(-1 if size is None else size) or b""

    def _reading(self) -> None:
        if self.faults._strikes("reads"):
            self.faults._told()
            if self.faults.kind == "slow read":
                time.sleep(0.05)
            else:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.name))


OPEN = open
