"""Compilation of the C sources in this folder, on first use, into the user's cache.

No compiled binary is shipped. Every caller has a PyTorch implementation for machines without a
compiler (which torch.compile needs too) and for other devices. The libraries run on PyTorch's
threads: their calls of OpenMP are left undefined, and resolve to the runtime that torch has loaded.

One source serves every processor. It is compiled for one of INSTRUCTION_SETS, the fastest that this
processor has and the compiler knows; GPT_KERNELS names a slower one, or "off". A file of the cache
is named after its source, instruction set, a hash of all that it was made from, and the hash of
its own bytes: a damaged file, or one that was made for another machine, is not loaded but replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import stat
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from gptcli.errors import UsageError, nearest
from gptcli.files import scratch_folder
from gptcli.runtime import has_fast_bf16, processor

HERE = Path(__file__).parent
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fopenmp", "-fPIC", "-Wno-psabi", "-c")
ONE_THREAD = ("bpe", "spell")
"""Libraries that use no threads, and so work without PyTorch."""
COMPILERS = ("cc", "gcc", "clang")
COMPILER_TIMEOUT_S = 120
LIMIT, OFF = "GPT_KERNELS", "off"
"""Environment variable that limits the instruction set, and its value for no kernels at all."""

_AVX2 = {
    "avx2": "-mavx2",
    "fma": "-mfma",
    "f16c": "-mf16c",
    "bmi1": "-mbmi",
    "bmi2": "-mbmi2",
    "popcnt": "-mpopcnt",
}
_AVX512 = _AVX2 | {f"avx512{part}": f"-mavx512{part}" for part in ("f", "bw", "cd", "dq", "vl")}
_AVX512_VNNI = _AVX512 | {"avx512_vnni": "-mavx512vnni"}
_AVX512_BF16 = _AVX512_VNNI | {"avx512_bf16": "-mavx512bf16"}
_AVX512_FMA = _AVX512_BF16 | {"avx512_bf16": "-mavx512bf16 -DWIDEN"}
_AMX = _AVX512_BF16 | {
    "amx_tile": "-mamx-tile",
    "amx_bf16": "-mamx-bf16",
    "amx_int8": "-mamx-int8",
}
INSTRUCTION_SETS: dict[str, dict[str, str]] = {
    "amx": _AMX,
    "avx512-bf16": _AVX512_BF16,
    "avx512-fma": _AVX512_FMA,
    "avx512-vnni": _AVX512_VNNI,
    "avx512": _AVX512,
    "avx2": _AVX2,
    "neon": {"asimd": ""},
}
"""Instruction sets, the fastest first: the processor's features that each needs, as the system
names them, and the compiler's flags for them. "avx512-fma" rounds by the instructions for bf16, and
multiplies in fp32: it comes before "avx512-bf16" where these multiply more slowly.
"""


class Library(ctypes.CDLL):
    """Loaded library of one source."""

    instructions: str
    """Name of the instruction set that it was built for."""


def instruction_sets() -> list[str]:
    """Return the instruction sets of this processor, the fastest first, as GPT_KERNELS limits them.

    Raises UsageError if its value is not the name of one, or "off".
    """
    here = _features()
    found = [name for name, needs in INSTRUCTION_SETS.items() if needs.keys() <= here]
    if "avx512-bf16" in found and not has_fast_bf16():
        found.remove("avx512-bf16")
        found.insert(found.index("avx512-fma") + 1, "avx512-bf16")
    limit = os.environ.get(LIMIT) or None
    if limit is None or limit in found:
        return found[found.index(limit) if limit else 0 :]
    if limit != OFF:
        known = [*INSTRUCTION_SETS, OFF]
        hint = (
            f"this processor has {', '.join(found) or 'none of them'}"
            if limit in known
            else nearest(limit, known)
        )
        raise UsageError(f"the environment variable {LIMIT} is {limit!r}", hint=hint)
    return []


def has_triton() -> bool:
    """Return whether kernels for GPUs can be built and started, and GPT_KERNELS is not "off".

    Triton needs a C compiler and Python's headers to build what starts them.
    """
    return os.environ.get(LIMIT) != OFF and _triton_starts()


@functools.cache
def _triton_starts() -> bool:
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return importlib.util.find_spec("triton") is not None and headers and _compiler() is not None


@functools.cache
def _features() -> set[str]:
    """Return the processor's features, as the system names them; empty if it does not say."""
    if platform.machine() in ("arm64", "aarch64"):
        return {"asimd"}  # part of every 64-bit ARM
    return set(processor()[1])


@functools.cache
def library(name: str) -> Library | None:
    """Return the library of `name`.c, or None if it cannot be built or loaded here.

    Raises UsageError if GPT_KERNELS has an impossible value.
    """
    sets, compiler = instruction_sets(), _compiler()
    if compiler is None:
        return None
    if name not in ONE_THREAD:
        import torch  # noqa: F401  loads the OpenMP runtime that the library uses
    for instructions in sets:
        if isinstance(_failed.get(compiler), subprocess.TimeoutExpired):
            break  # the next call would hang as long
        try:
            return _load_anywhere(HERE / f"{name}.c", compiler, instructions)
        except (OSError, subprocess.SubprocessError) as error:
            _failed[compiler] = error
    return None


_failed: dict[str, Exception] = {}
"""Last failure of a compiler."""


def _first_error(failure: Exception) -> str:
    """Return one line about why a compiler failed: its own first error, if it printed one."""
    if isinstance(failure, subprocess.TimeoutExpired):
        return f"it took more than {failure.timeout:g} s"
    output = failure.stderr if isinstance(failure, subprocess.CalledProcessError) else b""
    lines = [line for line in (output or b"").decode(errors="replace").splitlines() if line.strip()]
    of_error = [line for line in lines if "error" in line]
    return (of_error or lines or [str(failure)])[0].strip()


def compiler_failure() -> str | None:
    """Return the compiler that builds no kernel here, and why; None if it does, or there is none.

    The linear layers stand for all of them.
    """
    loaded, compiler = library("linear"), _compiler()
    if loaded is not None or compiler is None or compiler not in _failed:
        return None
    return f"{compiler}: {_first_error(_failed[compiler])}"


def _load_anywhere(source: Path, compiler: str, instructions: str) -> Library:
    """Return a library from the cache, or else built for this process alone: without a safe folder,
    on a full disk, and on one that files may not be executed from.
    """
    if (folder := cache_folder()) is not None:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return _load(folder, source, compiler, instructions)
    with scratch_folder() as folder:
        return _load(folder, source, compiler, instructions)


@functools.cache
def instruction_set() -> str | None:
    """Return the instruction set that the kernels of this process are built for; None without any.

    The linear layers stand for all of them.
    """
    loaded = library("linear")
    return None if loaded is None else loaded.instructions


def can_be_built() -> bool:
    """Return whether there is a compiler, and an instruction set to build kernels for."""
    return _compiler() is not None and bool(instruction_sets())


def lack_compiler() -> bool:
    """Return whether kernels could run here, and only the compiler is missing."""
    return _compiler() is None and bool(instruction_sets())


def _compiler() -> str | None:
    names = (os.environ.get("CC") or "cc", *COMPILERS)
    return next(filter(None, map(shutil.which, names)), None)


def cache_folder() -> Path | None:
    """Return the folder of built libraries, or None if there is no safe one.

    Its contents are executed: it belongs to the user alone, and nobody else can replace it by
    writing to a folder above it.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gpt", "kernels")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = folder.resolve()
        writable = os.access(folder, os.W_OK)
        return folder if writable and _is_own(folder) and not _can_be_replaced(folder) else None
    except (OSError, RuntimeError):  # Path.home raises RuntimeError
        return None


def _is_own(path: Path) -> bool:
    """Return whether a file or folder belongs to the user, and nobody else may write to it."""
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _can_be_replaced(folder: Path) -> bool:
    """Return whether other users may rename a folder above: everybody, or another group.

    In folders such as /tmp, only the owner of an entry can (their sticky bit).
    """
    for parent in folder.parents:
        found = parent.stat()
        others = found.st_mode & stat.S_IWOTH
        group = found.st_mode & stat.S_IWGRP and found.st_gid not in (0, os.getgid())
        if (others or group) and not found.st_mode & stat.S_ISVTX:
            return True
    return False


def _load(folder: Path, source: Path, compiler: str, instructions: str) -> Library:
    """Return the library of a source from the folder, built first if there is no sound one.

    Raises OSError if it cannot be loaded, SubprocessError if it cannot be compiled.
    """
    stem = f"{source.stem}-{instructions}-{_key(source, compiler, instructions)}"
    for built in _sound(folder, stem):
        with contextlib.suppress(OSError):
            return _open(built, instructions)
    return _open(_build(source, compiler, instructions, folder, stem), instructions)


def _sound(folder: Path, stem: str) -> Iterator[Path]:
    """Yield the libraries of this name whose bytes have the hash in it; remove the others."""
    for path in sorted(folder.glob(f"{stem}-*.so")):
        if path.is_symlink() or not path.is_file() or not _is_own(path):
            continue
        if path.name == f"{stem}-{_digest(path.read_bytes())}.so":
            yield path
        else:
            path.unlink(missing_ok=True)


def _open(path: Path, instructions: str) -> Library:
    """Load a library. Raises OSError if it cannot be loaded, or is for other instructions."""
    loaded = Library(str(path))
    try:
        found = ctypes.c_char.in_dll(loaded, f"gpt_built_for_{instructions.replace('-', '_')}")
    except ValueError:
        raise OSError(f"{path} was not built for {instructions}") from None
    del found
    loaded.instructions = instructions
    return loaded


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _key(source: Path, compiler: str, instructions: str) -> str:
    """Return a hash of all that a library is made from: sources, flags, compiler and processor."""
    flags = " ".join((*FLAGS, platform.machine(), *_flags(instructions)))
    sources = [path.read_bytes() for path in (source, *sorted(HERE.glob("*.[ch]")))]
    return _digest(b"\0".join((*sources, _version(compiler), flags.encode())))


@functools.cache
def _version(compiler: str) -> bytes:
    """Return what the compiler says of itself. Raises SubprocessError if it fails."""
    return subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=COMPILER_TIMEOUT_S
    ).stdout


def _flags(instructions: str) -> list[str]:
    return " ".join(INSTRUCTION_SETS[instructions].values()).split()


def _build(source: Path, compiler: str, instructions: str, folder: Path, stem: str) -> Path:
    """Compile and link `source` in the folder, and return the library.

    It gets its name when it is complete, so that several processes may build it at the same time.
    """
    with scratch_folder(folder) as scratch:
        compiled, mark, linked = (Path(scratch, name) for name in ("c.o", "mark.c", "linked.so"))
        mark.write_text(f"char gpt_built_for_{instructions.replace('-', '_')} = 1;\n")
        for command in (
            (*FLAGS, *_flags(instructions), source, "-o", compiled),
            ("-shared", "-fPIC", compiled, mark, "-lm", "-o", linked),
        ):
            subprocess.run(
                [compiler, *map(str, command)],
                capture_output=True,
                check=True,
                timeout=COMPILER_TIMEOUT_S,
                env={**os.environ, "TMPDIR": str(scratch)},
            )
        built = folder / f"{stem}-{_digest(linked.read_bytes())}.so"
        linked.chmod(0o700)
        linked.replace(built)
    return built
