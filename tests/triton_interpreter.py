"""Comparisons in Triton's interpreter, each in a process of its own.

Triton reads TRITON_INTERPRET when it is imported. A module of tests that compares kernels is a
program as well, which prints that they are equal.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


def check_in_interpreter(module: str) -> None:
    """Run a module of tests in the interpreter; skip if Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (the extra dev has it for Linux on x86-64)")
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"
