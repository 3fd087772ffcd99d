"""Start processes two at a time that build a kernel in one empty cache, and hold what was promised:
each computes the right result, or has no kernel where nothing can be built, and nothing is left
behind. The path has spaces, quotes and letters beyond ASCII.

    python -m tests.kernels.cache              100 starts in each of the surroundings
    python -m tests.kernels.cache --starts 5   of each as many
    python -m tests.kernels.cache killed       one of them

Exits 1 where a promise was broken. Needs Linux or another system with fork, and a C compiler; a
folder of another user is made by root alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gptcli.kernels import build, spell_kernel

LIBRARY = "spell"
"""Kernel that is built: the cache treats all alike, and this one needs neither PyTorch nor long."""

RIGHT, NONE, WRONG = 0, 3, 4
"""Exit codes of a start: the right result, no kernel, and anything else."""
BUILT, NOTHING = "one library", "nothing"
"""Contents of the cache after the starts."""


class Surroundings:
    """Place of a start: a cache that is made anew for it."""

    left: str | None = BUILT
    wanted = RIGHT
    needs_root = False

    def prepare(self, folder: Path) -> None:
        """Make the folder that a cache is in, and set the environment."""
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")

    def cache(self, folder: Path) -> Path:
        """Return the folder of libraries."""
        return folder / "cache" / "gpt" / "kernels"

    def during(self, children: list[int]) -> None:
        """Act while the processes of a start work."""


class NoTemporary(Surroundings):
    """TMPDIR names no folder."""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        os.environ["TMPDIR"] = str(folder / "none")


class Damaged(Surroundings):
    """A library that is truncated, and one for another instruction set, both under sound names."""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        kernels = self.cache(folder)
        kernels.mkdir(parents=True, mode=0o700)
        compiler, source = build._compiler(), build.HERE / f"{LIBRARY}.c"
        assert compiler is not None
        first = build.instruction_sets()[0]
        stem = f"{LIBRARY}-{first}-{build._key(source, compiler, first)}"
        data = self.foreign(folder)
        (kernels / f"{stem}-{build._digest(data)}.so").write_bytes(data)
        (kernels / f"{stem}-{build._digest(data)[::-1]}.so").write_bytes(data[:-99])
        for path in kernels.iterdir():
            path.chmod(0o700)

    left = None  # the foreign one keeps its place beside the sound one

    def foreign(self, folder: Path) -> bytes:
        """Return the bytes of a library that was built for another instruction set."""
        source, compiler = folder / "other.c", build._compiler()
        source.write_text("int forward;\nchar gpt_built_for_another = 1;\n")
        words = [compiler, "-shared", "-fPIC", source, "-o", folder / "other.so"]
        assert os.spawnlp(os.P_WAIT, str(compiler), *map(str, words)) == 0
        return (folder / "other.so").read_bytes()


class OthersCanWrite(Surroundings):
    """A cache that everybody may write to."""

    left = NOTHING

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self.cache(folder).mkdir(parents=True)
        self.cache(folder).chmod(0o777)


class OfAnother(OthersCanWrite):
    """A cache of another user."""

    needs_root = True

    def prepare(self, folder: Path) -> None:
        Surroundings.prepare(self, folder)
        self.cache(folder).mkdir(parents=True, mode=0o755)
        os.chown(self.cache(folder), 65534, 65534)


class NoHome(Surroundings):
    """No HOME, and no cache folder in the environment."""

    left = NOTHING

    def prepare(self, folder: Path) -> None:
        os.environ.pop("XDG_CACHE_HOME", None)
        os.environ["HOME"] = "/proc/none"


class ReadOnlyHome(NoHome):
    """A HOME that cannot be written."""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        os.environ["HOME"] = "/proc/self"


class NoCompiler(Surroundings):
    """No compiler."""

    wanted, left = NONE, NOTHING

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        os.environ["PATH"], os.environ["CC"] = "", ""


class Killed(Surroundings):
    """The first process is killed at a random moment."""

    left = None  # its scratch folder, which a process that is killed cannot remove

    def __init__(self) -> None:
        """Measure how long a start takes, over which the moments are spread."""
        begin = time.monotonic()
        assert broken(Surroundings()) is None
        self.seconds = time.monotonic() - begin

    def during(self, children: list[int]) -> None:
        time.sleep(random.uniform(0, self.seconds))
        os.kill(children[0], signal.SIGKILL)


SURROUNDINGS: dict[str, type[Surroundings]] = {
    "empty": Surroundings,
    "no-tmpdir": NoTemporary,
    "damaged": Damaged,
    "others-can-write": OthersCanWrite,
    "of-another-user": OfAnother,
    "no-home": NoHome,
    "read-only-home": ReadOnlyHome,
    "no-compiler": NoCompiler,
    "killed": Killed,
}


def start() -> int:
    """Spell ids by the kernel, and return RIGHT, NONE or WRONG."""
    spell = spell_kernel.spell_ids(1000)
    if spell is None:
        return NONE
    got = bytes(spell(np.array([7, 999, 0, 25]), np.array([3, 4]), 0, 0))
    return RIGHT if got == b"7 999 0\n25\n" else WRONG


def both(work: Callable[[], int], during: Callable[[list[int]], None]) -> list[int]:
    """Fork two processes that do the same work, and return their exit codes, -9 if killed."""
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            code = WRONG
            with contextlib.suppress(BaseException):
                code = work()
            os._exit(code)
        children.append(child)
    during(children)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def broken(kind: Surroundings) -> str | None:
    """Run one start in a new place, and return what was not as promised; None if all was."""
    saved = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="käsch 'und mehr ") as name:
        folder = Path(name)
        try:
            kind.prepare(folder)
            codes = both(start, kind.during)
            codes += both(start, lambda _: None)[:1]  # a later process finds what they left
        finally:
            os.environ.clear()
            os.environ.update(saved)
        allowed = {kind.wanted} | ({-signal.SIGKILL} if isinstance(kind, Killed) else set())
        if not set(codes) <= allowed or codes[-1] != kind.wanted:
            return f"exit codes {codes}, not {kind.wanted}"
        kernels = kind.cache(folder)
        there = sorted(path.name for path in kernels.iterdir()) if kernels.is_dir() else []
        if kind.left is not None and len(there) != (kind.left == BUILT):
            return f"the cache holds {there}, not {kind.left}"
        for path in kernels.glob("*.so") if there else []:
            if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return f"{path.name} may be written by others"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.cache")
    parser.add_argument("names", nargs="*", choices=[*SURROUNDINGS, []], metavar="NAME")
    parser.add_argument("--starts", type=int, default=100, help="in each of the surroundings")
    options = parser.parse_args()
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        sys.exit("no C compiler here")
    faults = 0
    for name in options.names or SURROUNDINGS:
        kind = SURROUNDINGS[name]()
        if kind.needs_root and os.getuid() != 0:
            print(f"{name}: skipped, only root makes a folder of another user")
            continue
        found = [fault for _ in range(options.starts) if (fault := broken(kind)) is not None]
        print(f"{name}: {options.starts} starts of two, {len(found)} faults", flush=True)
        for fault in found[:3]:
            print(f"    {fault}")
        faults += len(found)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
