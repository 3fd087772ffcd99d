"""Press Ctrl-C at random moments of every command, and hold what was promised: exit 130, one line,
nothing half-written or left behind.

    python -m tests.interrupts                                200 moments of each command
    python -m tests.interrupts --moments 20 --fresh 5 train   20 of one, 5 of them from its first import on
    python -m tests.interrupts eval=9 train=20/5              of each as many
    python -m tests.interrupts --signal TERM --show           another signal, with the words of every command that broke a promise

Half of the signals go to the process group, as a terminal's do, half to the process alone; --twice
sends each a second time. Exits 1 where a promise was broken. Needs Linux's /proc.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

ENDS = ("interrupted", "stopped", "prompt back", "finished")
FAULTS = ("swallowed", "Traceback", "Aborted")


def main() -> int:
    from tests.interrupts.commands import commands
    from tests.interrupts.harness import SOON, Harness, Result

    parser = argparse.ArgumentParser(prog="python -m tests.interrupts")
    parser.add_argument("names", nargs="*", metavar="NAME[=MOMENTS[/FRESH]]")
    parser.add_argument("--moments", type=int, default=200, help="of each command")
    parser.add_argument(
        "--fresh",
        type=int,
        default=40,
        help="how many of them in a newly started program, its imports included",
    )
    parser.add_argument(
        "--again", type=int, default=4, help="go on with every so-many-th one, and compare"
    )
    parser.add_argument("--signal", default="INT", choices=("INT", "TERM", "HUP", "USR1"))
    parser.add_argument("--twice", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    known = {one.command.name: one for one in commands()}
    asked = [word.partition("=")[::2] for word in options.names or known]
    if unknown := [name for name, _ in asked if name not in known]:
        parser.error(f"no such command: {', '.join(unknown)}")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    results: list[Result] = []
    columns = ("moments", *ENDS, *FAULTS, "otherwise", f"over {SOON:g} s", "slowest")
    print(f"{'command':<18}" + "".join(f"{name:>12}" for name in columns))
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as work:
        harness = Harness(Path(work), options.seed)
        for name, counts in asked:
            all_, _, new = counts.partition("/")
            moments, fresh = int(all_ or options.moments), int(new or options.fresh)
            found: list[Result] = []
            tries = 0
            while len(found) < moments and tries < 20 * moments:
                to = "twice" if options.twice else ("group", "alone")[len(found) % 2]
                again = tries % options.again == 0
                how = f"{options.signal} {to}"
                result = harness.press(known[name], how, fresh=len(found) < fresh, again=again)
                tries += 1
                if result.end != "early" or result.broken:
                    found.append(result)
                    if result.broken and options.show:
                        print(
                            f"\n{result.command}, {result.how} at {result.moment:.3f} s: {result.broken}\n{result.words}",
                            flush=True,
                        )
            ends, words = Counter(one.end for one in found), [" ".join(one.broken) for one in found]
            faults = [sum(fault in text for text in words) for fault in FAULTS]
            others = sum(
                bool(text) and not any(fault in text for fault in FAULTS) for text in words
            )
            late = sum(one.seconds > SOON and one.end != "stopped" for one in found)
            row = [
                len(found),
                *(ends[end] for end in ENDS),
                *faults,
                others,
                late,
                f"{max(one.seconds for one in found):.1f} s",
            ]
            print(
                f"{found[0].command:<18}" + "".join(f"{number:>12}" for number in row), flush=True
            )
            results += found
    broken = sum(bool(one.broken) for one in results)
    print(f"{len(results)} signals, {broken} broken promises")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
