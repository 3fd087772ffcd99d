"""Runs commands in forks of a process that has imported all they need, lets a fault happen, and
judges what is left.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests import forked_workers
from tests.faults.commands import Command, call, leftovers, prepare
from tests.faults.inject import HELD, KINDS, Faults
from tests.faults.lost import LostWorker
from tests.waiting import HANG_S

LOST = "lost worker"


@dataclass(slots=True)
class Result:
    """Result of one fault; the counts are 0 or 1."""

    command: str
    kind: str
    at: int
    broken: str = ""
    """The promise that was, in words."""
    words: str = ""
    """The command's last ones."""
    refused: int = 0
    """It said what was wrong and exited 1 or 2."""
    died: int = 0
    done: int = 0
    """It came through."""
    half: int = 0
    lost: int = 0
    inexact: int = 0


class Harness:
    """A folder of inputs that are made once, and a fresh copy of them for every fault."""

    def __init__(self, work: Path) -> None:
        preload()
        self.work = work
        self.inputs = work / "inputs"
        self.inputs.mkdir()
        status = forked(lambda: prepare(self.inputs) or 0)  # type: ignore[func-returns-value]
        assert status == 0, (self.inputs / "log").read_text()
        self.wanted: dict[str, dict[str, str]] = {}
        """Fingerprints that an undisturbed run leaves, by command."""
        self.ranks: dict[str, dict[str, int]] = {}
        """Operations of each rank, by command with workers."""
        self.counted: dict[tuple[str, str], int] = {}
        """Number of operations of an undisturbed run, by command and kind."""
        self.has_workers = False

    def spread(self, command: Command, kind: str, most: int) -> tuple[int, list[Result]]:
        """Up to `most` faults of a kind, evenly over the operations of one run; how many operations
        those are.
        """
        operations = self.count(command, kind)
        numbers = (
            sorted({1 + (2 * step + 1) * operations // (2 * most) for step in range(most)})
            if operations
            else []
        )
        return operations, [self.inject(command, kind, at) for at in numbers]

    def count(self, command: Command, kind: str) -> int:
        """Run it undisturbed; how many operations a fault of this kind could strike."""
        if kind == LOST and not self.has_workers:
            forked_workers.start()
            self.has_workers = True
        if command.like in self.ranks:
            self.ranks[command.name] = self.ranks[command.like]
            self.wanted[command.name] = self.wanted[command.like]
            return sum(self.ranks[command.name].values())
        counted = (command.name, KINDS.get(kind, kind))
        if counted not in self.counted:
            self.counted[counted] = self._count(command, kind)
        return self.counted[counted]

    def _count(self, command: Command, kind: str) -> int:
        folder = self._fresh()
        told = folder / "count"
        faults = LostWorker(folder, "", 0) if kind == LOST else Faults(folder, kind, 0)
        status = forked(lambda: self._run(command.line, folder, faults, told))
        assert status == 0, (folder / "log").read_text()
        self.wanted[command.name] = command.outputs(folder)
        assert self.wanted[command.name], command.name
        if isinstance(faults, LostWorker):
            self.ranks[command.name] = faults.operations()
            return sum(self.ranks[command.name].values())
        return int(told.read_text())

    def inject(self, command: Command, kind: str, at: int) -> Result:
        result, folder = Result(command.name, kind, at), self._fresh()
        wanted = self.wanted[command.name]
        faults = (
            LostWorker(folder, *self._worker(command, at))
            if kind == LOST
            else Faults(folder, kind, at)
        )
        status = forked(lambda: self._run(command.line, folder, faults, None))
        result.words = (
            (folder / "log").read_text(errors="replace")[-2000:]
            if (folder / "log").exists()
            else ""
        )
        result.refused, result.died, result.done = (
            int(status in (1, 2)),
            int(status < 0),
            int(status == 0),
        )
        if "this is a bug" in result.words or status not in (0, 1, 2, -signal.SIGKILL):
            result.broken = f"exit {status} without a clear message"
        elif kind in ("slow read", "clock") and status != 0:
            result.broken = f"exit {status} of a fault that should not matter"
        elif changed(folder / "in", self.inputs / "in"):
            result.lost, result.broken = 1, "an input was changed"
        else:
            self._judge(command, folder, wanted, status, result)
        return result

    def _worker(self, command: Command, at: int) -> tuple[str, int]:
        """The rank, and the operation of its own, that number `at` of all workers' operations
        is.
        """
        for rank, count in self.ranks[command.name].items():
            if at <= count:
                return rank, at
            at -= count
        raise IndexError(at)

    def _judge(
        self, command: Command, folder: Path, wanted: dict[str, str], status: int, result: Result
    ) -> None:
        try:
            left = command.outputs(folder)
        except (AssertionError, ValueError, OSError) as error:
            result.half, result.broken = 1, f"half-written: {error}"
            return
        if wrong := [name for name, digest in left.items() if wanted.get(name, digest) != digest]:
            result.half, result.broken = (
                1,
                f"under a final name, and not the undisturbed run's: {wrong}",
            )
            return
        if status == 0 and left.keys() != wanted.keys():
            result.lost, result.broken = 1, f"exit 0 without {sorted(wanted.keys() - left.keys())}"
            return
        held = (folder / HELD).read_text().split("\0")[:-1] if (folder / HELD).exists() else []
        if status != 0 and (gone := [name for name in held if not os.path.lexists(name)]):
            result.lost, result.broken = 1, f"was whole, and is gone: {gone}"
            return
        again = forked(lambda: self._run(command.again, folder, None, None))
        words = (folder / "log").read_text(errors="replace")[-2000:]
        if again != 0:
            result.lost, result.broken, result.words = (
                1,
                f"it does not go on: exit {again}",
                f"{result.words}\n--\n{words}",
            )
        elif (after := command.outputs(folder)) != wanted:
            different = [
                name for name in after.keys() | wanted.keys() if after.get(name) != wanted.get(name)
            ]
            result.inexact, result.broken = (
                1,
                f"resumed, and not the undisturbed run's: {sorted(different)}",
            )
        elif command.folder and (litter := leftovers(folder)):
            result.broken = f"left lying about: {litter}"

    def _run(
        self, line: list[str], folder: Path, faults: Faults | LostWorker | None, told: Path | None
    ) -> int:
        if self.has_workers:
            forked_workers.install_in_fork()
        if faults is not None:
            faults.install()
        code = call(line, folder)
        if told is not None and isinstance(faults, Faults):
            told.write_text(str(faults.operations()))
        return code

    def _fresh(self) -> Path:
        folder = self.work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.inputs, folder)
        (folder / "log").unlink(missing_ok=True)
        return folder


def changed(folder: Path, original: Path) -> bool:
    def all_of(where: Path) -> dict[str, str]:
        return {
            str(p.relative_to(where)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(where.rglob("*"))
            if p.is_file()
        }

    return all_of(folder) != all_of(original)


def forked(work: Callable[[], int]) -> int:
    """The exit status of `work` in a fork; of a signal, its number below zero."""
    if (child := os.fork()) == 0:
        signal.alarm(int(HANG_S))
        try:
            os._exit(work())
        except BaseException:
            traceback.print_exc()
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def preload() -> None:
    """Import what the commands import. No thread may be started and no tensor touched here: forks
    would hang on them.
    """
    import torch._dynamo  # noqa: F401

    for module in (
        "gptcli.cli.build_shards",
        "gptcli.cli.cost",
        "gptcli.cli.eval",
        "gptcli.cli.sample",
        "gptcli.cli.tokenize",
        "gptcli.cli.train",
        "gptcli.corpus.build",
        "gptcli.cost.report",
        "gptcli.distributed.launch",
        "gptcli.evals.evaluate",
        "gptcli.evals.report",
        "gptcli.evals.rolling",
        "gptcli.evals.runner",
        "gptcli.evals.suites",
        "gptcli.kernels.installation",
        "gptcli.runs.report",
        "gptcli.sampling.batch",
        "gptcli.trainer.loop",
        "gptcli.trainer.train",
    ):
        importlib.import_module(module)
