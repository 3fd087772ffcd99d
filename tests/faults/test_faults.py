"""A small sample of `python -m tests.faults`: every kind of fault in every command once, in the
middle of its work.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.extent import WHOLE

ROOT = Path(__file__).parents[2]


def test_nothing_is_half_written_lost_or_inexact() -> None:
    """In a process of its own: forks of one that has already run threads would hang."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--each", "8" if WHOLE else "1", "--show"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("0 broken promises")
