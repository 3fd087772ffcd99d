"""Waiting in tests: for something to happen, never for a time to pass.

A limit in a test only ends what hangs, so that a busy machine never fails a correct program.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

HANG_S = 900.0  # seconds without an answer after which a process counts as hung


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen[str] | None = None
) -> None:
    """Return once `condition()` is true.

    Raises AssertionError after HANG_S seconds, or as soon as `process` has ended without it.
    """
    end = time.monotonic() + HANG_S
    while not condition():
        ended = process is not None and process.poll() is not None
        assert not ended or condition(), (
            f"the process ended first, with {process and process.returncode}"
        )
        assert time.monotonic() < end, f"still waiting after {HANG_S:.0f} s"
        time.sleep(0.01)
