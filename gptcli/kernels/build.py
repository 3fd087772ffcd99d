"""C beside the package, built by the machine's own compiler when it is first wanted, and kept in
the user's cache.

Nothing compiled is installed, and nothing needs these libraries: every caller has a form in
PyTorch, which runs where there is no compiler (torch.compile needs one too), where the CPU lacks
what the source asks for (its `#error`), and on other devices. Threads are PyTorch's: OpenMP's calls
are left open in what is built, and resolve to the runtime that torch has loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch  # noqa: F401  its OpenMP runtime must be there before a library that uses it

from gptcli.files import scratch_folder

HERE = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fopenmp", "-fPIC", "-c")
COMPILERS = ("cc", "gcc", "clang")
PATIENCE = 120  # seconds for a compiler


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """`name`.c of this folder, ready to be called; None where it cannot be built or does not run
    here.

    It is built once for each source, compiler and CPU, and takes its name only when it is whole, so
    that processes may build it at once.
    """
    compiler = next(
        filter(None, map(shutil.which, (os.environ.get("CC") or "cc", *COMPILERS))), None
    )
    if compiler is None:
        return None
    source = HERE / f"{name}.c"
    try:
        with contextlib.ExitStack() as stack:
            folder = cache_folder() or stack.enter_context(scratch_folder())
            built = folder / f"{name}-{_key(source, compiler)}.so"
            if not built.exists():
                _build(source, compiler, built)
            return ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError):
        return None


def cache_folder() -> Path | None:
    """Where libraries are kept: the user's own, since what lies there is run. None where there is
    no such place.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gpt", "kernels")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return (
            folder if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid() else None
        )
    except (OSError, RuntimeError):  # no home is a RuntimeError
        return None


def _key(source: Path, compiler: str) -> str:
    """What the built library depends on: the source and all headers, how it is built, by whom, and
    for which CPU.
    """
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=PATIENCE
    ).stdout
    how = " ".join((*FLAGS, platform.machine(), _features()))
    sources = [path.read_bytes() for path in (source, *sorted(HERE.glob("*.h")))]
    return hashlib.sha256(b"\0".join((*sources, version, how.encode()))).hexdigest()[:16]


def _features() -> str:
    """The CPU's, as far as the system tells: machines may share a home."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


def _build(source: Path, compiler: str, built: Path) -> None:
    with scratch_folder(built.parent) as scratch:
        compiled, linked = Path(scratch, "compiled.o"), Path(scratch, "linked.so")
        for command in (
            (*FLAGS, source, "-o", compiled),
            ("-shared", compiled, "-lm", "-o", linked),
        ):
            subprocess.run(
                [compiler, *map(str, command)], capture_output=True, check=True, timeout=PATIENCE
            )
        linked.replace(built)
