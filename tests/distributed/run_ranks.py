"""Run a program on two processes that communicate with gloo."""

from __future__ import annotations

from pathlib import Path

from tests.fork_server import python
from tests.waiting import HANG_S

# the processes are forks of one that has imported torch; if one fails, the others are ended
LAUNCH = """
import os, signal, sys, traceback

program, folder, hang_s = sys.argv[1:]
ranks = set()
for rank in range(2):
    if (child := os.fork()) == 0:
        signal.alarm(int(hang_s))
        try:
            exec(compile(program, "program", "exec"), {"rank": rank, "folder": folder})
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    ranks.add(child)
failed = False
while ranks:
    child, status = os.wait()
    ranks.discard(child)
    if status and not failed:
        failed = True
        for other in ranks:
            os.kill(other, signal.SIGKILL)
sys.exit(failed)
"""
START = """
import sys
import torch
import torch.distributed as dist

torch.set_num_threads(1)
store = dist.FileStore(folder + "/store", 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
"""


def run_ranks(program: str, folder: Path) -> str:
    """Run `program` as ranks 0 and 1 of 2, with `rank`, `folder`, `torch` and `dist` defined; return
    what it writes to stderr.

    `folder` is empty; it receives the file through which the processes find each other. Fails with
    the output of a process that fails.
    """
    done = python(
        "-c",
        LAUNCH,
        START + program,
        folder,
        f"{HANG_S:.0f}",
        cwd=Path(__file__).parents[2],
        env={"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stderr.decode()
