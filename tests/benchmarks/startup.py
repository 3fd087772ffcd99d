"""Waiting time for `gpt --help` and `gpt cost`, beside an interpreter that does
nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 10


def median(*words: str) -> float:
    """Median wall seconds of the whole process, one warm-up first."""
    times = []
    for _ in range(RUNS + 1):
        begin = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def run() -> None:
    bare = median("-c", "pass")
    print(f"python -c pass         {bare * 1e3:6.0f} ms")
    for words, limit in (
        (["--help"], 150),
        (["cost", "--size", "175B"], 250),
        (["train", "--help"], 250),
    ):
        took = median("-m", "gptcli", *words)
        print(
            f"gpt {' '.join(words):<18} {took * 1e3:6.0f} ms   {took / bare:4.1f} x bare python   limit {limit} ms"
        )
