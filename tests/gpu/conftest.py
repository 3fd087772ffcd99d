"""Rehearsals, each in a process of its own, and each only once."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
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
def rehearse(tmp_path_factory: pytest.TempPathFactory) -> Rehearse:
    """Return a function that runs a command of `tests.gpu.rehearsal` and returns its report.

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
                path.write_text(_run(command, words))
        report: dict[str, Any] = json.loads(path.read_text())
        return report

    return run


def _run(command: str, options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.rehearsal", command, options],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]
