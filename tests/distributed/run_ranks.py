"""Run a program on two processes that communicate with gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

START = """
import sys
import torch
import torch.distributed as dist

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
store = dist.FileStore(folder + "/store", 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
"""


def run_ranks(program: str, folder: Path) -> None:
    """Run `program` as ranks 0 and 1 of 2, with `rank`, `torch` and `dist` defined.

    `folder` is empty; it receives the file through which the processes find each other. Fails with
    the output of a process that fails.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START + program, str(rank), str(folder)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
