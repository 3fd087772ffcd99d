"""Run the commands in drawn surroundings: environment variables of other programs, another user,
limits, full disks, closed streams, odd paths, linked outputs. Each ends in the right result or in
one message.

    python -m tests.faults.surroundings                 300 combinations over all commands
    python -m tests.faults.surroundings --draws 20      20 of them; --seed draws others
    python -m tests.faults.surroundings train           of one command

Exits 1 where a promise was broken, and shows the combination.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.faults.commands import Command, call, commands
from tests.faults.harness import Harness, Result, changed, forked
from tests.faults.inject import Faults

USER = 12345  # without an entry in the system's list
ENVIRONMENTS: list[dict[str, str | None]] = [
    {"RANK": "1"},
    {"RANK": "", "WORLD_SIZE": ""},
    {"WORLD_SIZE": "2"},
    {"RANK": "0", "WORLD_SIZE": "2"},
    {"RANK": "one", "WORLD_SIZE": "1"},
    {"RANK": "5", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
    {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "99999"},
    {"LOCAL_RANK": "3"},
    {"MASTER_ADDR": "somewhere", "MASTER_PORT": "29500"},
    {"LOCAL_WORLD_SIZE": "0"},
    {"SLURM_PROCID": "1", "SLURM_NTASKS": "4"},
    {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"},
    {"SLURM_STEP_NUM_TASKS": "4", "MASTER_ADDR": "somewhere"},
    {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
    {"TORCHELASTIC_RESTART_COUNT": "x"},
    {"HOME": None, "XDG_CACHE_HOME": None},
    {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent/cache"},
    {"HOME": "", "USER": ""},
    {"TMPDIR": "/nonexistent"},
    {"TMPDIR": ""},
    {"COLUMNS": "0"},
    {"COLUMNS": "many", "LINES": "-1"},
    {"TERM": "dumb", "NO_COLOR": ""},
    {"TERM": None, "LANG": "C", "LC_ALL": "C"},
    {"TZ": "Nowhere/Nothing"},
    {"CXX": "/nonexistent/compiler"},
    {"CUDA_VISIBLE_DEVICES": "7"},
    {"PATH": ""},
    {"WANDB_MODE": "online", "MLFLOW_TRACKING_URI": "http://nowhere.invalid"},
]
NAMES = ["two words", "line\nbreak", "quote'\"", "ünïcode", "a=b,c", "per%cent", "-dash", "x" * 200]
LINKS = {"run": "elsewhere", "shards": "elsewhere"}  # output folders, and files of the same kind
FILES = ("tokenizer.json", "tokens.bin", "out.jsonl", "eval.json", "cost.svg")


def environment(draw: random.Random) -> tuple[str, Callable[[Path], None]]:
    """Draw variables to set, or to unset."""
    values = draw.choice(ENVIRONMENTS)

    def install(folder: Path) -> None:
        for name, value in values.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        tempfile.tempdir = None

    return " ".join(f"{name}={value}" for name, value in values.items()), install


def user(draw: random.Random) -> tuple[str, Callable[[Path], None]]:
    """Draw a user without root's rights, who owns the folder or not.

    Where only root can read this Python, root stays itself, without its rights to others' files.
    """
    owns = draw.random() < 0.7

    def install(folder: Path) -> None:
        if os.getuid() != 0:
            return
        (folder / "log").touch()
        (folder / "log").chmod(0o666)
        if not everybody_reads(Path(os.__file__)):
            for path in [] if owns else [folder, *folder.rglob("*")]:
                os.chown(path, USER, USER, follow_symlinks=False)
            drop_capabilities()
            return
        for path in [folder, *folder.rglob("*")] if owns else []:
            os.chown(path, USER, USER, follow_symlinks=False)
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)

    return f"no root{'' if owns else ', and owns nothing here'}", install


def everybody_reads(file: Path) -> bool:
    """Return whether all users may read a file."""
    return all(path.stat().st_mode & 0o005 == 0o005 for path in file.parents)


def drop_capabilities() -> None:
    """Give up what root may do with the files of others (capset(2), version 3)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def limits(draw: random.Random) -> tuple[str, Callable[[Path], None]]:
    """Draw a limit of the shell's."""
    kind, value = draw.choice(
        [
            ("NOFILE", 48),
            ("NOFILE", 24),
            ("FSIZE", 2000),
            ("FSIZE", 20_000),
            ("CORE", 0),
            ("NPROC", 64),
        ]
    )

    def install(folder: Path) -> None:
        number = getattr(resource, f"RLIMIT_{kind}")
        resource.setrlimit(number, (value, resource.getrlimit(number)[1]))

    return f"limit {kind} {value}", install


def full_disk(draw: random.Random) -> tuple[str, Callable[[Path], None]]:
    """Draw the change of a file from which on the disk is full."""
    at = draw.randint(1, 60)
    return f"full disk at {at}", lambda folder: Faults(folder, "full disk", at).install()


def umask(draw: random.Random) -> tuple[str, Callable[[Path], None]]:
    """Draw the permissions of new files."""
    mask = draw.choice([0o000, 0o027, 0o077])
    return f"umask {mask:03o}", lambda folder: (os.umask(mask), None)[1]


def streams(draw: random.Random) -> tuple[str, Callable[[Path], None]]:
    """Draw a standard stream that is closed or of another encoding."""
    which = draw.choice(["no stdin", "stdin is a folder", "ascii output"])

    def install(folder: Path) -> None:
        if which == "no stdin":
            os.close(0)
        elif which == "stdin is a folder":
            os.dup2(os.open(folder, os.O_RDONLY), 0)
        else:
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]

    return which, install


def signals(draw: random.Random) -> tuple[str, Callable[[Path], None]]:
    """Draw a signal that is ignored or blocked."""
    number = draw.choice([signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGUSR1])
    blocked = draw.random() < 0.3

    def install(folder: Path) -> None:
        if blocked:
            signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        else:
            signal.signal(number, signal.SIG_IGN)

    return f"{number.name} {'blocked' if blocked else 'ignored'}", install


def linked(draw: random.Random) -> tuple[str, Callable[[Path], None]]:
    """Make the output a link, to something that is there or is not."""
    there = draw.random() < 0.5

    def install(folder: Path) -> None:
        (folder / "elsewhere").mkdir()
        for name, target in LINKS.items():
            (folder / "elsewhere" / name).mkdir()
            (folder / name).symlink_to(Path(target, name))
        for name in FILES if not there else ():
            (folder / name).symlink_to(Path("elsewhere", name))

    return f"linked outputs{'' if there else ', of files too'}", install


AXES = [environment, environment, user, limits, full_disk, umask, streams, signals, linked]


class Surroundings(Harness):
    """Runs commands in drawn surroundings, and judges them as after a fault."""

    def draw(self, command: Command, seed: str) -> Result:
        """Run a command in the surroundings of a seed."""
        draw = random.Random(seed)
        axes = [axis(draw) for axis in draw.sample(AXES, draw.choice([1, 2, 2, 3]))]
        name = draw.choice(["run", "run", *NAMES])
        result = Result(command.name, "; ".join([*(what for what, _ in axes), repr(name)]), 0)
        folder, wanted = self._fresh_at(name), self.wanted[command.name]

        def work() -> int:
            # that one last: it takes the right to do the others
            for _, install in sorted(axes, key=lambda axis: axis[0].startswith("no root")):
                install(folder)
            return call(command.line, folder)

        status = forked(work)
        log = folder / "log"
        result.words = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        result.refused, result.done = int(status in (1, 2)), int(status == 0)
        result.died = int(status < 0)
        if (
            status not in (0, 1, 2)
            or "this is a bug" in result.words
            or "Traceback" in result.words
        ):
            result.broken = f"exit {status} without a clear message"
        elif status != 0 and "gpt: " not in result.words:
            result.broken = f"exit {status} without a message"
        elif changed(folder / "in", self.inputs / "in"):
            result.lost, result.broken = 1, "an input was changed"
        else:
            self._judge(command, folder, wanted, status, result)
        return result

    def _fresh_at(self, name: str) -> Path:
        folder = self.work / "drawn" / name
        shutil.rmtree(self.work / "drawn", ignore_errors=True)
        shutil.copytree(self.inputs, folder)
        self.work.chmod(0o755)
        folder.parent.chmod(0o755)
        (folder / "log").unlink(missing_ok=True)
        return folder


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.surroundings")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chosen = [
        command
        for command in commands()
        if not command.workers and (not options.names or command.name in options.names)
    ]
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as work:
        Path(work).chmod(0o755)
        harness = Surroundings(Path(work))
        for command in chosen:
            harness.count(command, "kill")
        for number in range(options.draws):
            command = chosen[number % len(chosen)]
            result = harness.draw(command, f"{options.seed} {number}")
            counts += Counter(done=result.done, refused=result.refused, died=result.died)
            if result.broken:
                counts["broken"] += 1
                print(f"{number} {result.command}: {result.kind}\n  {result.broken}")
                print("  " + "\n  ".join(result.words.splitlines()[-6:]), flush=True)
    if os.getuid() == 0 and not everybody_reads(Path(os.__file__)):
        print(
            "another user id: not tried, as only root can read this Python; root without its rights"
        )
    print(
        f"{options.draws} combinations: {counts['done']} done, {counts['refused']} refused with a "
        f"message, {counts['died']} ended by a signal, {counts['broken']} broken promises"
    )
    return int(counts["broken"] > 0)


if __name__ == "__main__":
    sys.exit(main())
