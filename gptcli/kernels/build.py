"""Compilation of the C sources in this folder, on first use, into the user's cache.

No compiled binary is shipped. Every caller has a PyTorch implementation for machines without a
compiler (which torch.compile needs too), for CPUs without the instructions that a source requires
(its `#error`), and for other devices. The libraries run on PyTorch's threads: their calls of OpenMP
are left undefined, and resolve to the runtime that torch has loaded.
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

import torch  # noqa: F401  loads the OpenMP runtime that the libraries use

from gptcli.files import scratch_folder
from gptcli.runtime import processor

HERE = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fopenmp", "-fPIC", "-c")
COMPILERS = ("cc", "gcc", "clang")
COMPILER_TIMEOUT_S = 120


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """Return the library of `name`.c, or None if it cannot be built or loaded here.

    It is built once for each source, compiler and CPU. The file is renamed when it is complete, so
    that several processes may build it at the same time.
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
    """Return the folder of built libraries, or None if there is no safe one.

    The folder must belong to the user, because its contents are executed.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gpt", "kernels")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return (
            folder if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid() else None
        )
    except (OSError, RuntimeError):  # Path.home raises RuntimeError
        return None


def _key(source: Path, compiler: str) -> str:
    """Return a hash of all that a library depends on: sources, flags, compiler and CPU.

    Machines with different CPUs may share a home folder.
    """
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=COMPILER_TIMEOUT_S
    ).stdout
    name, features = processor()
    flags = " ".join((*FLAGS, platform.machine(), *(sorted(features) or [name])))
    sources = [path.read_bytes() for path in (source, *sorted(HERE.glob("*.h")))]
    return hashlib.sha256(b"\0".join((*sources, version, flags.encode()))).hexdigest()[:16]


def _build(source: Path, compiler: str, built: Path) -> None:
    """Compile and link `source` into the library `built`."""
    with scratch_folder(built.parent) as scratch:
        compiled, linked = Path(scratch, "compiled.o"), Path(scratch, "linked.so")
        for command in (
            (*FLAGS, source, "-o", compiled),
            ("-shared", compiled, "-lm", "-o", linked),
        ):
            subprocess.run(
                [compiler, *map(str, command)],
                capture_output=True,
                check=True,
                timeout=COMPILER_TIMEOUT_S,
            )
        linked.replace(built)
