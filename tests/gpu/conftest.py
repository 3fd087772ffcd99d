"""Rehearsals, each in a fork of its own, and each only once."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import HANG_S

ROOT = Path(__file__).parents[2]
Rehearse = Callable[..., dict[str, Any]]


def missing() -> str | None:
    """Return what a rehearsal needs and this machine lacks."""
    if sys.platform != "linux":
        return "Triton is published for Linux only"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (the extra dev has it for Linux on x86-64)"
    if shutil.which("g++") is None:
        return "no g++, which builds the CUDA device that is not there"
    import torch

    return "this PyTorch has CUDA itself" if torch.backends.cuda.is_built() else None


@pytest.fixture(scope="session")
def rehearse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearse]:
    """Yield a function that runs a command of `tests.gpu.rehearsal` and returns its report.

    Each runs once, whichever worker of pytest-xdist asks first: the others wait for its report.
    """
    if reason := missing():
        pytest.skip(reason)
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "gpu-rehearsals"
    shared.mkdir(exist_ok=True)

    def run(command: str, **options: Any) -> dict[str, Any]:
        words = json.dumps(options, sort_keys=True)
        path = shared / f"{command}-{hashlib.sha256(words.encode()).hexdigest()[:16]}.json"
        with open(path.with_suffix(".lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                answer(server, command, options, path)
        report: dict[str, Any] = json.loads(path.read_text())
        return report

    with subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.rehearsal", "serve"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as server:  # fmt: skip
        yield run


def answer(
    server: subprocess.Popen[str], command: str, options: dict[str, Any], path: Path
) -> None:
    """Have the server write a report to `path`; fail with its traceback, or if it hangs."""
    assert server.stdin is not None
    assert server.stdout is not None
    partial = path.with_suffix(".partial")
    server.stdin.write(json.dumps([command, options, str(partial)]) + "\n")
    ready, _, _ = select.select([server.stdout], [], [], HANG_S)
    if not ready:
        server.kill()
    failed = server.stdout.readline() if ready else "hangs"
    assert failed == "0\n", partial.read_text()[-3000:] if partial.exists() else failed
    partial.replace(path)
