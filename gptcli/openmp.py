"""Threads of OpenMP, PyTorch's pool on a CPU: how long they spin before they sleep."""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
import time
from collections.abc import Callable

from gptcli.errors import UsageError

SPIN_ENVIRONMENT = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
"""Longest time for which OpenMP threads spin between two parallel regions: rounds of GNU's runtime,
a quarter to half a millisecond, and milliseconds of LLVM's and Intel's. By default they spin ten
and 200 times as long."""
WATCH_INTERVAL_S = 0.25
"""Time between two looks at the processor's other work."""
BUSY_CORES = 0.25
"""Cores beyond those of the machine that all work together asks for, above which it is busy."""


def set_spin_environment() -> None:
    """Let OpenMP threads spin for a short time only; effective if torch has not been imported yet.

    What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in SPIN_ENVIRONMENT.items():
            os.environ.setdefault(name, value)


def check_thread_environment() -> None:
    """Raise UsageError for an OMP_NUM_THREADS that OpenMP would answer with a line of its own, and
    ignore.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.strip() and not re.fullmatch(
        r"\s*\+?0*[1-9]\d{0,8}\s*(,\s*\+?0*[1-9]\d{0,8}\s*)*", given
    ):
        raise UsageError(
            f"OMP_NUM_THREADS is {given!r}, not a number of threads",
            hint="set this environment variable to one, such as 2, or unset it for all cores",
        )


class SpinWatcher(threading.Thread):
    """Thread that lets OpenMP's threads sleep at once while other processes need the processor.

    Between two parallel regions a thread spins, which on a quiet machine saves the time of waking
    it up. On a busy machine it spends the time slice in which it could have worked: the other
    thread of the same process is waiting for its own, and small steps take 3 to 60 times as long.
    GNU's runtime spins a hundred rounds only while it has more threads than cores, so a second team
    of threads, which sleep, is all that it takes; it is dissolved when the machine is quiet again.
    Sums are split as before: results do not change.
    """

    def __init__(self, threads: int, parallel: Callable[[int], None]) -> None:
        """Watch for a process of `threads` threads; `parallel` starts a team of that many here."""
        super().__init__(name="gpt-spin-watcher", daemon=True)
        self.threads, self.parallel = threads, parallel
        self.cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.release: threading.Event | None = None
        """Set to dissolve the second team; None while there is none."""

    def run(self) -> None:
        """Look at the processor's other work until the process ends."""
        before = self.used_seconds()
        while before is not None:
            time.sleep(WATCH_INTERVAL_S)
            now = self.used_seconds()
            if now is None:
                break
            elapsed, busy, own = (b - a for a, b in zip(before, now, strict=True))
            before = now
            others = max(0.0, busy - own) / elapsed
            self.set_busy(others + self.threads > len(self.cores) + BUSY_CORES)

    def used_seconds(self) -> tuple[float, float, float] | None:
        """Return the clock, and the seconds that our cores have worked: for all, and for us.

        None where the system does not say, which is everywhere but on Linux.
        """
        try:
            with open("/proc/stat", encoding="ascii") as file:
                rows = [line.split() for line in file if line.startswith("cpu")]
            own = os.times()
            wanted = {f"cpu{core}" for core in self.cores}
            # user, nice, system, idle, iowait, irq, softirq, steal
            ticks = sum(
                sum(map(int, row[1:4])) + sum(map(int, row[6:9]))
                for row in rows
                if row[0] in wanted
            )
            return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), own.user + own.system
        except (OSError, ValueError):
            return None

    def set_busy(self, busy: bool) -> None:
        """Hold a second team of threads if `busy`, else dissolve it."""
        if busy and self.release is None:
            self.release = threading.Event()
            threading.Thread(target=self.hold_team, args=(self.release,), daemon=True).start()
        elif not busy and self.release is not None:
            self.release.set()
            self.release = None

    def hold_team(self, release: threading.Event) -> None:
        """Start a team that makes more threads than cores, and keep it until `release`.

        The runtime ends a team together with the thread that has started it.
        """
        self.parallel(len(self.cores) - self.threads + 2)
        release.wait()


@functools.cache
def watch_spinning() -> SpinWatcher | None:
    """Start the process's `SpinWatcher`; return None where nothing spins or nothing can be done.

    That is with one thread, without GNU's OpenMP, and if OMP_WAIT_POLICY says what threads do.
    """
    import ctypes

    import torch

    threads = torch.get_num_threads()
    if threads == 1 or "OMP_WAIT_POLICY" in os.environ:
        return None
    if sys.platform != "linux" or not hasattr(symbols := ctypes.CDLL(None), "GOMP_parallel"):
        return None
    start, body = symbols.GOMP_parallel, symbols.omp_get_level  # a function without effects
    watcher = SpinWatcher(threads, lambda count: start(body, None, count, 0))
    watcher.start()
    return watcher
