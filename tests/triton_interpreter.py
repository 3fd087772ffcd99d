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
import torch


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the root mean square of an error, relative to that of the exact values."""
    assert got.shape == exact.shape
    away = (got.double() - exact.double()).square().mean().sqrt()
    return float(away / exact.double().square().mean().sqrt().clamp(min=1e-30))


def check_errors(
    name: str, got: list[torch.Tensor], pytorch: list[torch.Tensor], exact: list[torch.Tensor]
) -> None:
    """Check that the kernels are at most a tenth further from exact values than PyTorch is.

    The largest ratio of both errors is told to a reader of stderr.
    """
    ratios = []
    for ours, theirs, value in zip(got, pytorch, exact, strict=True):
        ours_away, theirs_away = error(ours, value), error(theirs, value)
        assert ours_away <= 1.1 * theirs_away + 2e-6, (name, ours_away, theirs_away)
        ratios.append((ours_away + 1e-7) / (theirs_away + 1e-7))
    print(f"{name}: errors up to {max(ratios):.2f} of PyTorch's own", file=sys.stderr)


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
