"""Kill an evaluation at random moments, resume it, and compare with an uninterrupted evaluation.

    python kill_and_resume.py KILLS ARGUMENTS OF gpt eval...

Writes to the current folder and prints the number of records at each kill. Modules are imported
once; each evaluation is a process forked from this one.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from typer.testing import CliRunner

from gptcli.cli import build_app

MAX_TRIES_PER_KILL = 4  # attempts per kill


def evaluate(argv: list[str], name: str, *words: str) -> None:
    argv = ["eval", *argv, "-o", f"{name}.json", *words]
    assert CliRunner().invoke(build_app(argv), argv, catch_exceptions=False).exit_code == 0


def killed(argv: list[str], lines: int, after: float) -> bool:
    """Return True if an evaluation was killed `after` seconds from when it had this many records.

    Returns False if it ended before.
    """
    child = os.fork()
    if child == 0:
        evaluate(argv, "killed")
        os._exit(0)
    ended, status = 0, 0
    while not ended and left() < lines:
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def left() -> int:
    """Return the number of record lines of the killed evaluation."""
    return sum(path.read_bytes().count(b"\n") for path in Path().glob("killed.records/[!.]*"))


def made(name: str) -> list[bytes]:
    """Return the report and every file of the records folder."""
    return [
        Path(f"{name}.json").read_bytes(),
        *(path.read_bytes() for path in sorted(Path(f"{name}.records").iterdir())),
    ]


def forget(name: str) -> None:
    Path(f"{name}.json").unlink(missing_ok=True)
    shutil.rmtree(f"{name}.records", ignore_errors=True)


def main(kills: int, argv: list[str]) -> None:
    evaluate(argv, "whole")
    expected = made("whole")
    begin = time.perf_counter()
    evaluate(argv, "whole", "--force")
    seconds = time.perf_counter() - begin
    whole = sum(part.count(b"\n") for part in expected[1:])
    moments = random.Random(0)
    late = 0
    lines: list[int] = []
    while len(lines) < kills:
        forget("killed")
        # a delay alone would end before the first record on a busy machine
        aim = moments.randrange(whole)
        if not killed(argv, aim, moments.uniform(0, seconds / (whole if aim else 2))):
            late += 1
            assert late < MAX_TRIES_PER_KILL * kills
            continue
        lines.append(left())
        evaluate(argv, "killed", "--resume")
        assert made("killed") == expected, f"kill {len(lines)} left {lines[-1]} lines"
    print(f"{late} too late; lines of records that were left: {lines}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
