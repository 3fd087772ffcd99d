"""Fuzz the readers, each in a process of its own.

    python -m tests.fuzz                            every reader for 20 s of CPU
    python -m tests.fuzz --seconds 60 warc parquet  two of them for a minute each
    python -m tests.fuzz --inputs 100               every reader with 100 inputs, the same on any machine
    python -m tests.fuzz --crashes DIR              leave the files of every crash there

Exits 1 where one crashed.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.fuzz.engine import Target, files_in, fuzz, in_child, lay
from tests.fuzz.targets import targets


def session(target: Target, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    found, seed, crashes = (
        fuzz(target, work, options.seconds, options.seed, options.inputs),
        options.seed,
        options.crashes,
    )
    for number, (where, (text, files)) in enumerate(found.crashes.items()):
        if crashes is not None:
            lay(crashes / f"{target.name} {seed} {number}".replace(" ", "-"), files)
            (crashes / f"{target.name} {seed} {number}.txt".replace(" ", "-")).write_text(
                f"{where}\n{text}", errors="replace"
            )
    return {
        "runs": found.runs,
        "kept": found.kept,
        "lines": found.lines,
        "seconds": found.seconds,
        "crashes": list(found.crashes),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--inputs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crashes", type=Path)
    options = parser.parse_args()
    if options.seconds is None:
        options.seconds = 20.0 if options.inputs is None else math.inf
    known = {target.name: target for target in targets()}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no reader {unknown[0]!r}: one of {', '.join(known)}")
    print(f"{'reader':<22}{'inputs':>9}{'CPU s':>8}{'kept':>6}{'lines':>7}  crashes")
    inputs, seconds, crashes = 0, 0.0, 0
    for name in options.names or known:
        with TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as work:
            row = in_child(partial(session, known[name], Path(work), options))
            if "died" in row:
                print(f"{name:<22}  died with {row['died']}", flush=True)
                crashes += 1
                if options.crashes is not None:
                    lay(
                        options.crashes / f"{name}-died".replace(" ", "-"),
                        files_in(Path(work) / "in"),
                    )
                continue
        inputs, seconds, crashes = (
            inputs + row["runs"],
            seconds + row["seconds"],
            crashes + len(row["crashes"]),
        )
        print(
            f"{name:<22}{row['runs']:>9,}{row['seconds']:>8.1f}{row['kept']:>6}{row['lines']:>7}  {'; '.join(row['crashes']) or 0}",
            flush=True,
        )
    print(f"{'all':<22}{inputs:>9,}{seconds:>8.1f}{'':>13}  {crashes}")
    return int(crashes > 0)


if __name__ == "__main__":
    sys.exit(main())
