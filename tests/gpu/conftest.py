"""Rehearsals, each in a process of its own, two at a time, and each only once."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 900
POOL = ThreadPoolExecutor(max_workers=2)
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
def rehearse() -> Rehearse:
    """Return a function that runs a command of `tests.gpu.rehearsal` and returns its report."""
    if reason := missing():
        pytest.skip(reason)
    return lambda command, **options: submit(command, json.dumps(options)).result()


@functools.cache
def submit(command: str, options: str) -> Future[dict[str, Any]]:
    return POOL.submit(_run, command, options)


def _run(command: str, options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.rehearsal", command, options],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report
