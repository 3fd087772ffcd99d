"""A small sample of `python -m tests.faults.surroundings`: each command twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.extent import WHOLE

ROOT = Path(__file__).parents[2]


def test_drawn_surroundings_end_in_the_right_result_or_one_message() -> None:
    """In a process of its own: forks of one that has already run threads would hang."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.surroundings", "--draws", "300" if WHOLE else "14"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("0 broken promises")
