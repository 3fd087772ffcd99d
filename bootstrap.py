"""Make .venv, the environment that the Makefile's commands run in, and keep it right.

Usage: python bootstrap.py base|dev [--this-python]

Quiet if there is nothing to do. An environment that cannot work (half made, moved with its folder,
its Python removed or upgraded, its installation cut off) is made anew. A finished one is known by
what .venv/ready.json records, which is written last. `--this-python` asks for the Python that runs
this file; without it an environment of another Python is kept.

TORCH_INDEX, if it is set, is the address of a package index to take PyTorch from.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
READY = VENV / "ready.json"
UNFINISHED = VENV / "unfinished"  # there while something is being installed, and after a kill
LOCK = ROOT / "requirements.lock"
PIP = [str(PYTHON), "-m", "pip", "--disable-pip-version-check"]
TORCH = "lib/python*/site-packages/torch-*.dist-info"
PAUSE_S = 10

# What torch 2.13 and the rest take on Linux, by build: to download, and on disk. None: torch is
# there.
SIZES = {
    ("CPU", "base"): ("240 MB", "1.1 GB"),
    ("CPU", "dev"): ("450 MB", "1.9 GB"),
    ("CUDA", "base"): ("2.8 GB", "4.8 GB"),
    ("CUDA", "dev"): ("3.0 GB", "5.6 GB"),
    (None, "dev"): ("210 MB", "0.8 GB"),
}
NO_CPU_BUILD = """\
PyTorch's CPU build could not be had. pip takes the CUDA build instead, which is of no use without
an NVIDIA GPU. To have the CPU build, stop this and give the address of PyTorch's index of CPU
wheels, which its "Start Locally" page shows for pip and CPU: make TORCH_INDEX=ADDRESS"""


def main(arguments: list[str]) -> None:
    """Set up what `arguments` ask for."""
    extra, this_python = arguments[0], "--this-python" in arguments
    if is_ready(extra, this_python):
        return
    with one_at_a_time():
        if is_ready(extra, this_python):  # another make has done it meanwhile
            return
        make_environment(this_python)
        install(extra)


def say(text: str) -> None:
    """Print to stderr at once."""
    print(text, file=sys.stderr, flush=True)


def stop(text: str) -> NoReturn:
    """Print to stderr, and end with exit code 1."""
    say(text)
    raise SystemExit(1)


# --- what is there ---


def is_ready(extra: str, this_python: bool) -> bool:
    """Tell whether .venv holds what `extra` asks for, by what was recorded when it was finished."""
    try:
        record = json.loads(READY.read_text(encoding="utf-8"))
        covered = record["extra"] in (extra, "dev") and record["requirements"] == requirements()
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return covered and fault(this_python) is None


def requirements() -> str:
    """Return a hash of what is to be installed."""
    files = (ROOT / "pyproject.toml", LOCK)
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def fault(this_python: bool) -> str | None:
    """Say why the .venv that is there cannot be used, or None."""
    version = python_version()
    if version is None:
        return "its Python is gone"
    if UNFINISHED.exists():
        return "its installation was cut off"
    if not (VENV / "bin" / "activate").exists():
        return "it is half made"
    if not (VENV / "lib" / f"python{version}").is_dir():
        return f"its Python is {version} now"
    scripts = [path.read_text(encoding="utf-8", errors="replace") for path in VENV.glob("bin/pip*")]
    if any(f"{VENV}/bin/" not in text and f"{VENV.resolve()}/bin/" not in text for text in scripts):
        return "it was made in another folder"
    if this_python and version != "{}.{}".format(*sys.version_info):
        return f"it has Python {version}, not the one asked for"
    return None


def python_version() -> str | None:
    """Return the version of .venv's Python, as in 3.11, or None if it does not run."""
    program = "import sys; print('{}.{}'.format(*sys.version_info))"
    try:
        done = subprocess.run(
            [str(PYTHON), "-I", "-c", program], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def is_environment() -> bool:
    """Tell whether .venv was made as an environment, so that nothing is lost with it."""
    if VENV.is_symlink() or not VENV.is_dir():
        return False
    return (VENV / "pyvenv.cfg").exists() or {path.name for path in VENV.iterdir()} <= {
        UNFINISHED.name
    }


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the repository's folder, so that two makes at once do not build one environment."""
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another make that sets up .venv.")
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(folder)


# --- the environment ---


def make_environment(this_python: bool) -> None:
    """Make .venv if it is not there or cannot be used. Leaves none behind that is half made."""
    if os.path.lexists(VENV):
        reason = fault(this_python)
        if reason is None:
            add_pip()
            return
        if not is_environment():
            stop(f"{VENV} is not an environment that can be made anew: move it away.")
        say(f".venv is made anew: {reason}.")
        shutil.rmtree(VENV)
    base = getattr(sys, "_base_executable", None) or sys.executable
    if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
        stop(
            f"{base} cannot make an environment: its modules venv and ensurepip are not all there.\n"
            "  On Debian and Ubuntu: sudo apt install python3-venv\n"
            "  or name another Python: make PYTHON=python3.12"
        )
    say(f"Setting up .venv with Python {platform.python_version()} ({base}).")
    try:
        VENV.mkdir()
        UNFINISHED.touch()
        if subprocess.run([base, "-m", "venv", str(VENV)], check=False).returncode:
            stop(
                f"{base} could not make an environment. Name another Python: make PYTHON=python3.12"
            )
    except BaseException:
        shutil.rmtree(VENV, ignore_errors=True)
        raise


def add_pip() -> None:
    """Give pip to an environment that was made without it, as uv makes them."""
    if subprocess.run([*PIP, "--version"], capture_output=True, check=False).returncode == 0:
        return
    if subprocess.run(
        [str(PYTHON), "-m", "ensurepip"], capture_output=True, check=False
    ).returncode:
        stop(f"{VENV} has no pip, and none could be added: move it away.")


def install(extra: str) -> None:
    """Install the packages of `extra` at the versions of requirements.lock, then record it."""
    READY.unlink(missing_ok=True)
    UNFINISHED.touch()
    build = install_torch()
    if (build, extra) in SIZES:
        download, disk = SIZES[build, extra]
        what = f"PyTorch's {build} build and the rest" if build else "what the tests need"
        say(
            f"Installing {what}: about {download} to download, less what pip has kept, {disk} on disk."
        )
    pip("-e", f"{ROOT}[dev]" if extra == "dev" else str(ROOT))
    record = {"extra": extra, "requirements": requirements()}
    partial = VENV / "ready.partial"
    partial.write_text(json.dumps(record) + "\n", encoding="utf-8")
    partial.replace(READY)
    UNFINISHED.unlink()


def pip(*arguments: str) -> None:
    """Install with pip, in silence unless someone watches."""
    quiet = [] if sys.stderr.isatty() else ["-q"]
    if subprocess.run(
        [*PIP, "install", *quiet, "-c", str(LOCK), *arguments], check=False
    ).returncode:
        UNFINISHED.unlink(missing_ok=True)  # pip puts back what it had begun; the next make goes on
        stop("The packages could not be installed; pip says why above. make tries again.")


# --- which build of PyTorch ---


def install_torch() -> str | None:
    """Install PyTorch if pip would choose a build that is wrong for this machine.

    Returns the build that there will be, CPU or CUDA; None if there was one already.
    """
    if has_torch():
        return None
    index = os.environ.get("TORCH_INDEX")
    if index:
        say(f"Taking PyTorch from {index}")
        pip("--no-deps", "--index-url", index, "torch")
    elif pip_takes_cuda() and not has_nvidia_driver() and not install_cpu_torch():
        say(NO_CPU_BUILD)
        if sys.stderr.isatty():
            time.sleep(PAUSE_S)
    return "CUDA" if pip_takes_cuda() else "CPU"


def has_torch() -> bool:
    return any(VENV.glob(TORCH))


def has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def pip_takes_cuda() -> bool:
    """Tell whether the PyTorch that is there, or that pip would take, asks for CUDA's libraries."""
    metadata = list(VENV.glob(f"{TORCH}/METADATA"))
    if metadata:
        needed = re.findall(
            r"^Requires-Dist: (.*)", metadata[0].read_text(encoding="utf-8"), re.MULTILINE
        )
    else:
        command = [
            "install",
            "-q",
            "--dry-run",
            "--no-deps",
            "--report",
            "-",
            "-c",
            str(LOCK),
            "torch",
        ]
        done = subprocess.run(
            [*PIP, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
        )
        try:
            (torch,) = json.loads(done.stdout)["install"]
        except ValueError:
            return False  # the installation will say what is wrong
        needed = torch["metadata"].get("requires_dist", [])
    return any(name.startswith(("nvidia-", "cuda-")) for name in needed)


def install_cpu_torch() -> bool:
    """Install PyTorch's CPU build by uv, which knows the index that has it. Tell whether it
    could.
    """
    pin = next(
        line for line in LOCK.read_text(encoding="utf-8").splitlines() if line.startswith("torch==")
    )
    say("No NVIDIA driver here: taking PyTorch's CPU build, by uv.")
    with tempfile.TemporaryDirectory() as folder:
        uv = shutil.which("uv")
        if uv is None:
            fetched = subprocess.run([*PIP, "install", "-q", "--target", folder, "uv"], check=False)
            uv = str(Path(folder, "bin", "uv"))
            if fetched.returncode:
                return False
        command = [
            uv,
            "pip",
            "install",
            "--python",
            str(PYTHON),
            "--torch-backend",
            "cpu",
            "--no-deps",
            pin,
        ]
        return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
