"""Inject faults into the commands, one at a time, and hold what was promised: whole or not at all,
resumed exactly, nothing lost.

    python -m tests.faults                     some 1,600 faults over all commands
    python -m tests.faults --each 20 train     20 of each kind in one of them
    python -m tests.faults --show              every fault that broke a promise, with the command's last words

Each run is a fork of this process, which has imported what they need; where a command starts
workers, one of those is killed. Exits 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.faults.commands import commands
from tests.faults.harness import LOST, Harness, Result

OUTCOMES = ("refused", "died", "done", "half", "lost", "inexact")
KINDS = ("full disk", "kill", "torn file", "power cut", "failing read", "slow read", "clock")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("names", nargs="*")
    parser.add_argument(
        "--each",
        type=int,
        default=32,
        help="faults of each kind in each command, spread over its operations",
    )
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    results: list[Result] = []
    print(
        f"{'command':<18}{'fault':<13}"
        + "".join(f"{name:>11}" for name in ("operations", "injected", *OUTCOMES))
    )
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    ) as name:
        harness = Harness(Path(name))
        for command in commands():
            if options.names and command.name not in options.names:
                continue
            for kind in (LOST,) if command.workers else KINDS:
                operations, found = harness.spread(command, kind, options.each)
                results += found
                row = [
                    operations,
                    len(found),
                    *(sum(getattr(one, outcome) for one in found) for outcome in OUTCOMES),
                ]
                print(
                    f"{command.name:<18}{kind:<13}" + "".join(f"{number:>11}" for number in row),
                    flush=True,
                )
    broken = [one for one in results if one.broken]
    for one in broken if options.show else []:
        print(f"\n{one.command}, {one.kind} at {one.at}: {one.broken}\n{one.words}")
    print(f"{len(results)} faults, {len(broken)} broken promises")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
