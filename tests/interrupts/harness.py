"""Starts commands, presses Ctrl-C at some moment, and judges how they end and what they leave.

A command is either started as a user would, so that its imports are among the moments, or run in a
fork of this process, which has imported everything: a hundred times the work for the same time.
"""

from __future__ import annotations

import fcntl
import os
import pty
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import termios
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from gptcli.files import is_lock
from tests.faults.commands import leftovers
from tests.faults.harness import forked, preload
from tests.interrupts.commands import Pressed, prepare
from tests.waiting import HANG_S

ROOT = Path(__file__).parents[2]
# seconds within which a user sees an answer: counted, but a loaded machine may take longer
SOON = 2.0
MARK = "GPT_TEST_INTERRUPT"  # in the environment of all that a command starts
ALARMS = re.compile(
    r"Traceback|this is a bug|Aborted|core dumped|Fatal|terminate called|Exception ignored|leaked|resource_tracker|Error"
)
SILENT = ("prompt back", "finished")


@dataclass(slots=True)
class Result:
    """Result of one signal."""

    command: str
    moment: float
    """Seconds after the command could answer it."""
    how: str
    end: str
    """interrupted, stopped (after finishing something), finished (it was done), prompt back; early:
    it was done before the signal.
    """
    seconds: float
    """From the signal to the end."""
    broken: list[str] = field(default_factory=list)
    words: str = ""


class Started:
    """A command that runs in a process group of its own, its streams in files of `folder`; or at a
    terminal.
    """

    def __init__(
        self, words: list[str], folder: Path, *, fresh: bool, terminal: bool = False
    ) -> None:
        self.folder, self.terminal, self.shown = folder, -1, b""
        if terminal:
            self.terminal, slave = pty.openpty()
            self.modes = termios.tcgetattr(slave)
        (folder / "tmp").mkdir(exist_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._become(words, fresh, slave if terminal else -1)
            except BaseException:
                traceback.print_exc()
            os._exit(70)
        self.slave = slave if terminal else -1
        self.code: int | None = None
        while self.ended() is None and not self._answers():
            time.sleep(0.001)

    def _become(self, words: list[str], fresh: bool, slave: int) -> None:
        os.setsid()
        os.chdir(self.folder)
        if slave >= 0:
            os.close(self.terminal)  # the terminal goes with the harness
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            streams = [slave, slave, slave]
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            streams = [
                os.open(os.devnull, os.O_RDONLY),
                os.open("out", flags),
                os.open("err", flags),
            ]
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ |= {
            "TMPDIR": str(self.folder / "tmp"),
            MARK: str(os.getpid()),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm",
        }
        tempfile.tempdir = None
        if fresh:
            os.execv(sys.executable, [sys.executable, "-m", "gptcli", *words])
        # those of the harness remember what they were open on
        sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, closefd=False)
        from gptcli.__main__ import main

        sys.argv = ["gpt", *words]
        code = 70
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        sys.stdout.flush()
        os._exit(code)

    def _answers(self) -> bool:
        """Return whether the program handles signals by now; what comes before is Python's own
        start.
        """
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False
        caught = next(
            int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt")
        )
        return bool(caught >> (signal.SIGUSR1 - 1) & 1)

    def ended(self) -> int | None:
        """The exit status; of a signal, its number below zero. None while it runs."""
        self._read()
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._read()
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def _read(self) -> None:
        while self.terminal >= 0 and select.select([self.terminal], [], [], 0)[0]:
            try:
                self.shown += os.read(self.terminal, 1 << 16)
            except OSError:
                return

    def wait(self, seconds: float) -> int | None:
        end = time.monotonic() + seconds
        while self.ended() is None and time.monotonic() < end:
            time.sleep(0.002)
        return self.code

    def words(self) -> str:
        """Return the text that it wrote to stderr, or to its terminal."""
        return (self.shown if self.terminal >= 0 else (self.folder / "err").read_bytes()).decode(
            errors="replace"
        )

    def others(self) -> list[int]:
        """The processes that it started and that still run."""
        mark = f"{MARK}={self.pid}".encode()
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                mine = int(fields[2]) == self.pid or mark in Path(
                    f"/proc/{name}/environ"
                ).read_bytes().split(b"\0")
            except OSError:
                continue
            if mine and fields[0] not in "ZX":
                found.append(int(name))
        return found

    def close(self) -> None:
        for process in self.others():
            os.kill(process, signal.SIGKILL)
        if self.code is None:
            os.waitpid(self.pid, 0)
        if self.terminal >= 0:
            os.close(self.terminal)
            os.close(self.slave)


class Harness:
    """A folder of inputs that are made once, and a fresh copy of them for every signal."""

    def __init__(self, work: Path, seed: int) -> None:
        # before torch is imported: the same sums, in a fork as elsewhere
        os.environ["OMP_NUM_THREADS"] = "1"
        begin = time.monotonic()
        preload()

        self.imports = time.monotonic() - begin
        self.work, self.chance = work, random.Random(seed)
        self.inputs = work / "inputs"
        self.inputs.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        status = forked(lambda: prepare(self.inputs) or 0)  # type: ignore[func-returns-value]
        assert status == 0, (self.inputs / "log").read_text()
        (self.inputs / "log").unlink()
        self.wanted: dict[str, dict[str, str]] = {}
        self.again: dict[str, list[str]] = {}
        self.took: dict[tuple[str, bool], float] = {}

    def undisturbed(self, one: Pressed) -> None:
        """Note what it leaves and how long it takes, with its imports as long as ours took."""
        folder = self._fresh()
        start = Started(one.command.line, folder, fresh=False, terminal=one.on_terminal)
        begin = time.monotonic()
        if one.on_terminal:
            self._converse(start, 1e9)
            os.write(start.terminal, b"\x04")
        code = start.wait(HANG_S)
        took = time.monotonic() - begin
        self.took[one.command.name, False] = took
        self.took[one.command.name, True] = took + self.imports
        assert code == 0, (code, start.words())
        start.close()
        self.wanted[one.command.name] = one.command.outputs(folder)
        self.again[one.command.name] = one.command.again

    def _expect_the_same(self, one: Pressed) -> None:
        """Expect a known command's outputs, and let that command go on with it."""
        same = self.wanted[one.like]
        self.wanted[one.command.name] = {name: same[name] for name in _whole(same)}
        self.again[one.command.name] = self.again[one.like]
        for fresh in (False, True):
            self.took[one.command.name, fresh] = self.took[one.like, fresh] + self.imports

    def press(self, one: Pressed, how: str, *, fresh: bool, again: bool) -> Result:
        """Run it, send the signal at a random moment, and judge."""
        if one.command.name not in self.wanted:
            if one.like in self.wanted:
                self._expect_the_same(one)
            else:
                self.undisturbed(one)
        folder = self._fresh()
        moment = self.chance.random() * self.took[one.command.name, fresh]
        start = Started(one.command.line, folder, fresh=fresh, terminal=one.on_terminal)
        begin = time.monotonic()
        result = Result(one.command.name, moment, how, "early", 0.0)
        try:
            if one.on_terminal:
                self._converse(start, begin + moment)
            while start.ended() is None and time.monotonic() < begin + moment:
                time.sleep(0.001)
            if start.ended() is None:
                self._send(start, how)
                self._judge(one, start, result, again=again)
            else:  # quicker than was thought
                self.took[one.command.name, fresh] = time.monotonic() - begin
        finally:
            start.close()
        return result

    def _converse(self, start: Started, until: float) -> None:
        """Answer two prompts, and leave the third."""
        for prompts in (1, 2, 3):
            while (
                start.ended() is None
                and start.shown.count(b"> ") < prompts
                and time.monotonic() < until
            ):
                time.sleep(0.001)
            if start.ended() is not None or time.monotonic() >= until:
                return
            if prompts < 3:
                os.write(start.terminal, b"one two\n")

    def _send(self, start: Started, how: str) -> None:
        """By the terminal, or as it does: to the group; or to the process alone, or twice."""
        name, _, to = how.partition(" ")
        number = signal.Signals[f"SIG{name}"]
        if start.terminal >= 0 and name == "INT":
            os.write(start.terminal, b"\x03")
        elif to == "alone":
            os.kill(start.pid, number)
        else:
            os.killpg(start.pid, number)
        if to == "twice":
            time.sleep(self.chance.random() * 0.2)
            if start.ended() is None:
                os.killpg(start.pid, number)

    def _judge(self, one: Pressed, start: Started, result: Result, *, again: bool) -> None:
        begin, prompts = time.monotonic(), start.shown.count(b"> ")
        while start.ended() is None and time.monotonic() < begin + HANG_S:
            # a sample was stopped, the session goes on
            if one.on_terminal and start.shown.count(b"> ") > prompts:
                result.end = "prompt back"
                result.seconds = time.monotonic() - begin
                os.write(start.terminal, b"\x04")
                start.wait(HANG_S)
                break
            time.sleep(0.001)
        code, words, broken = start.ended(), start.words(), result.broken
        result.words = words[-3000:]
        result.seconds = result.seconds or time.monotonic() - begin
        said = re.findall(r"^\r?(?:\^C)*\r?gpt: .*", words, re.MULTILINE)
        if code is None:
            broken.append("swallowed")
        elif code == 0 and result.end == "early":
            result.end = "finished"
        elif code == 130:
            result.end = (
                "stopped" if "stopping" in words or "stopped after" in words else "interrupted"
            )
        elif code != 0 or result.end != "prompt back":
            broken.append(f"exit {code}")
        if len(said) != (result.end not in SILENT):
            broken.append(f"{len(said)} messages")
        if alarm := ALARMS.search(words):
            broken.append(alarm[0])
        if result.end == "finished" and "stopping" in words:
            broken.append("said it stops, and went on")
        if code is None:
            return
        end = time.monotonic() + HANG_S
        while (left := start.others()) and time.monotonic() < end:
            time.sleep(0.01)
        if left:
            broken.append("a process stays behind")
        if start.terminal >= 0 and termios.tcgetattr(start.slave)[:4] != start.modes[:4]:
            broken.append("the terminal is not as it was")
        self._look_at_files(one, start.folder, result, again=again)

    def _look_at_files(self, one: Pressed, folder: Path, result: Result, *, again: bool) -> None:
        command, wanted = one.command, self.wanted[one.command.name]
        litter = [
            name
            for name in leftovers(folder)
            if name not in one.kept and not (command.folder and name.startswith(command.folder))
        ]
        litter += _locks(folder)
        litter += [str(path) for path in (folder / "tmp").iterdir()]
        litter += [
            str(path)
            for path in (self.work / "cache").rglob("*")
            if path.is_file() and path.suffix != ".so"
        ]
        if litter:
            result.broken.append(f"left lying about: {litter}")
        try:
            left = command.outputs(folder)
            if wrong := _different(left, wanted):
                result.broken.append(f"half-written: {wrong}")
            if result.end == "finished" and _whole(left) != _whole(wanted):
                result.broken.append("exit 0 without its outputs")
        except (AssertionError, ValueError, OSError) as error:
            result.broken.append(f"half-written: {error}")
        if again and self.again[command.name]:
            then = Started(self.again[command.name], folder, fresh=False)
            if then.wait(HANG_S) != 0:
                result.broken.append(f"it does not go on: {then.words()[-500:]}")
            elif _whole(after := command.outputs(folder)) != _whole(wanted) or _different(
                after, wanted
            ):
                result.broken.append(
                    f"gone on with, and not the undisturbed run's: {_different(after, wanted)}"
                )
            elif command.folder and (litter := leftovers(folder) + _locks(folder)):
                result.broken.append(f"left lying about after it went on: {litter}")
            then.close()

    def _fresh(self) -> Path:
        folder = self.work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.inputs, folder)
        return folder


def _locks(folder: Path) -> list[str]:
    """Those that no process of a command that has ended may hold."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if is_lock(path)]


def _whole(outputs: dict[str, str]) -> set[str]:
    """Return the outputs that must be there at the end: which checkpoints are, depends on where a
    run was stopped.
    """
    return {name for name in outputs if not name.startswith("step-")}


def _different(outputs: dict[str, str], wanted: dict[str, str]) -> list[str]:
    return [name for name, digest in outputs.items() if wanted.get(name, digest) != digest]
