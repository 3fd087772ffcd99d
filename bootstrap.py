"""Create .venv, the environment in which the Makefile runs its commands, and repair it if needed.

Usage: python bootstrap.py base|dev [--this-python]

The script prints nothing if there is nothing to do. It replaces an environment that cannot work:
one that is incomplete or was moved, whose Python was removed or upgraded, or whose installation was
interrupted. A finished environment has a .venv/ready.json, which is written last. `--this-python`
requires the Python that runs this file; without it, an environment with another Python is kept.

TORCH_INDEX, if set, is the URL of the package index from which PyTorch is installed.
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
import signal
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

# Download size and disk space of torch 2.13 and the other packages on Linux, by build; None means
# that torch is installed already.
SIZES = {
    ("CPU", "base"): ("240 MB", "1.1 GB"),
    ("CPU", "dev"): ("650 MB", "2.6 GB"),
    ("CUDA", "base"): ("2.8 GB", "4.8 GB"),
    ("CUDA", "dev"): ("3.0 GB", "5.6 GB"),
    (None, "dev"): ("410 MB", "1.5 GB"),
}
NO_CPU_BUILD = """\
PyTorch's CPU build could not be installed. pip installs the CUDA build instead, which is much
larger and pays off only with an NVIDIA GPU. To get the CPU build, stop this and name PyTorch's
index of CPU wheels, which its "Start Locally" page shows for pip and CPU:
  make TORCH_INDEX=ADDRESS"""


def main(arguments: list[str]) -> None:
    """Set up the environment that `arguments` ask for."""
    extra, this_python = arguments[0], "--this-python" in arguments
    if is_ready(extra, this_python):
        return
    with one_at_a_time():
        if is_ready(extra, this_python):  # another make has set it up meanwhile
            return
        make_environment(this_python)
        install(extra)


def say(text: str) -> None:
    """Print to stderr at once."""
    print(text, file=sys.stderr, flush=True)


def stop(text: str) -> NoReturn:
    """Print to stderr and exit with code 1."""
    say(text)
    raise SystemExit(1)


# --- the existing environment ---


def is_ready(extra: str, this_python: bool) -> bool:
    """Return whether .venv is complete for `extra`, by the record of its last installation."""
    try:
        record = json.loads(READY.read_text(encoding="utf-8"))
        covered = record["extra"] in (extra, "dev") and record["requirements"] == requirements()
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return covered and fault(this_python) is None


def requirements() -> str:
    """Return a hash of the files that determine which packages are installed."""
    files = (ROOT / "pyproject.toml", LOCK)
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def fault(this_python: bool) -> str | None:
    """Return why the existing .venv cannot be used, or None if it can."""
    version = python_version()
    if version is None:
        return "its Python was removed"
    if UNFINISHED.exists():
        return "its installation was interrupted"
    if not (VENV / "bin" / "activate").exists():
        return "it is incomplete"
    if not (VENV / "lib" / f"python{version}").is_dir():
        return f"its Python was upgraded to {version}"
    scripts = [path.read_text(encoding="utf-8", errors="replace") for path in VENV.glob("bin/pip*")]
    if any(f"{VENV}/bin/" not in text and f"{VENV.resolve()}/bin/" not in text for text in scripts):
        return "it was moved from another folder"
    if this_python and version != "{}.{}".format(*sys.version_info):
        return f"it has Python {version}, not the requested one"
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
    """Return whether .venv is a virtual environment, so that it is safe to delete."""
    if VENV.is_symlink() or not VENV.is_dir():
        return False
    return (VENV / "pyvenv.cfg").exists() or {path.name for path in VENV.iterdir()} <= {
        UNFINISHED.name
    }


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Lock the repository's folder, so that two makes do not set up .venv at the same time."""
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another make to finish setting up .venv.")
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(folder)


# --- the environment ---


def make_environment(this_python: bool) -> None:
    """Create .venv if it is missing or cannot be used; remove it again if that fails."""
    if os.path.lexists(VENV):
        reason = fault(this_python)
        if reason is None:
            add_pip()
            return
        if not is_environment():
            stop(f"{VENV} is not a virtual environment, so it is not replaced: move it away.")
        say(f"Replacing .venv: {reason}.")
        shutil.rmtree(VENV)
    base = getattr(sys, "_base_executable", None) or sys.executable
    if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
        stop(
            f"{base} cannot create an environment: its module venv or ensurepip is missing.\n"
            "  On Debian and Ubuntu: sudo apt install python3-venv\n"
            "  or use another Python: make PYTHON=python3.12"
        )
    say(f"Setting up .venv with Python {platform.python_version()} ({base}).")
    try:
        VENV.mkdir()
        UNFINISHED.touch()
        if run_alone([base, "-m", "venv", str(VENV)]):
            stop(f"{base} could not create an environment. Use another: make PYTHON=python3.12")
    except BaseException:
        shutil.rmtree(VENV, ignore_errors=True)
        raise


def run_alone(command: list[str]) -> int:
    """Run a command that Ctrl-C does not reach, and return its exit status.

    Ctrl-C ends it here, with the processes that it started and without their tracebacks.
    """
    with subprocess.Popen(command, process_group=0) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            os.killpg(child.pid, signal.SIGKILL)
            raise


def add_pip() -> None:
    """Add pip to an environment that was created without it, for example by uv."""
    if subprocess.run([*PIP, "--version"], capture_output=True, check=False).returncode == 0:
        return
    if subprocess.run(
        [str(PYTHON), "-m", "ensurepip"], capture_output=True, check=False
    ).returncode:
        stop(f"{VENV} has no pip, and pip could not be added: move it away.")


def install(extra: str) -> None:
    """Install the packages of `extra` at the versions of requirements.lock, and record it."""
    READY.unlink(missing_ok=True)
    UNFINISHED.touch()
    build = install_torch()
    if (build, extra) in SIZES:
        download, disk = SIZES[build, extra]
        what = (
            f"PyTorch's {build} build and the other packages"
            if build
            else "the packages for the tests"
        )
        say(
            f"Installing {what}: about {download} to download, less what pip has cached, "
            f"and {disk} on disk."
        )
    # the server and GPT-1's tokenizer, which README shows, are small
    pip("-e", f"{ROOT}[{'dev' if extra == 'dev' else 'serve,gpt1'}]")
    spell_paths_in_ascii()
    record = {"extra": extra, "requirements": requirements()}
    partial = VENV / "ready.partial"
    partial.write_text(json.dumps(record) + "\n", encoding="utf-8")
    partial.replace(READY)
    UNFINISHED.unlink()


def spell_paths_in_ascii() -> None:
    """Write the paths in .pth files as Python in ASCII, if they have other characters.

    Before 3.13, Python reads these files in the encoding of the locale, and does not start if that
    is ASCII, as with LC_ALL=C.
    """
    for file in VENV.glob("lib/python*/site-packages/*.pth"):
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
        if text.isascii():
            continue
        lines = [
            f"import sys; sys.path.append({line!a})" if not line.isascii() else line
            for line in text.splitlines()
        ]
        file.write_text("\n".join(lines) + "\n", encoding="ascii")


def pip(*arguments: str) -> None:
    """Install with pip, quietly unless stderr is a terminal."""
    quiet = [] if sys.stderr.isatty() else ["-q"]
    if subprocess.run(
        [*PIP, "install", *quiet, "-c", str(LOCK), *arguments], check=False
    ).returncode:
        UNFINISHED.unlink(missing_ok=True)  # pip rolls back; the next make continues
        stop("The packages could not be installed; see pip's error above. Run make again to retry.")


# --- which build of PyTorch ---


def install_torch() -> str | None:
    """Install PyTorch if pip would choose a build that does not suit this machine.

    Return the build that will be installed, CPU or CUDA, or None if there is one already.
    """
    if has_torch():
        return None
    index = os.environ.get("TORCH_INDEX")
    if index:
        say(f"Installing PyTorch from {index}")
        pip("--no-deps", "--index-url", index, "torch")
    elif pip_takes_cuda() and not has_nvidia_driver() and not install_cpu_torch():
        say(NO_CPU_BUILD)
        if sys.stderr.isatty():
            time.sleep(PAUSE_S)
    return "CUDA" if pip_takes_cuda() else "CPU"


def has_torch() -> bool:
    """Return whether PyTorch is installed in .venv."""
    return any(VENV.glob(TORCH))


def has_nvidia_driver() -> bool:
    """Return whether this machine has an NVIDIA driver."""
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def pip_takes_cuda() -> bool:
    """Return whether the installed PyTorch, or the one pip would install, requires CUDA."""
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
            return False  # the installation itself will report the error
        needed = torch["metadata"].get("requires_dist", [])
    return any(name.startswith(("nvidia-", "cuda-")) for name in needed)


def install_cpu_torch() -> bool:
    """Install PyTorch's CPU build with uv, which knows its index. Return whether this worked."""
    pin = next(
        line for line in LOCK.read_text(encoding="utf-8").splitlines() if line.startswith("torch==")
    )
    say("No NVIDIA driver was found: installing PyTorch's CPU build with uv.")
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
