"""A worker that is lost: the kill is laid in the processes that a command starts, not in the
command itself.

The three ways in which the program comes by workers: `gpt train` on several processes starts its
own (gptcli.distributed.launch), so does `gpt build-shards --workers` (gptcli.corpus.pool), and
torchrun starts this module in the program's place.
"""

from __future__ import annotations

import json
import os
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from tests.faults.inject import HELD, Faults

# in the environment that workers inherit: folder, rank and operation of the kill; operation 0 only
# counts them
PLAN = "GPT_TEST_FAULT"
ANY = ""  # the rank of workers that have none


class LostWorker:
    """Kills the worker of this rank at its operation number `at`, from 1 (0: never). Of workers
    without ranks, each that comes to it.
    """

    def __init__(self, folder: Path, rank: str, at: int) -> None:
        self.folder, self.rank, self.at = folder, rank, at

    def install(self) -> None:
        from gptcli.corpus import pool
        from gptcli.distributed import launch

        os.environ[PLAN] = json.dumps([str(self.folder), self.rank, self.at])
        pool._start_worker, launch._child = begin, child  # type: ignore[assignment]

    def operations(self) -> dict[str, int]:
        """After an undisturbed run: how many there were, by rank."""
        counts: dict[str, int] = {}
        for file in sorted(self.folder.glob("count-*")):
            rank = file.name.split("-")[1]
            counts[rank] = max(counts.get(rank, 0), int(file.read_text()))
        return counts


def begin(state: Any) -> None:
    """Program that a worker of build-shards runs first."""
    from gptcli.corpus.pool import _start_worker

    arm()
    _start_worker(state)


def child(*arguments: Any) -> Any:
    """Program that a process of `gpt train` runs."""
    from gptcli.distributed.launch import _child

    arm()
    return _child(*arguments)


def arm() -> None:
    """Lay the fault in this process, unless one struck before: what is started again lives."""
    folder, rank, at = json.loads(os.environ[PLAN])
    mine = os.environ.get("RANK", ANY)
    if Path(folder, HELD).exists() or (at and mine != rank):
        return
    faults = Faults(Path(folder), "kill", at)
    faults.install()
    if not at:
        Finalize(
            None,
            lambda: Path(folder, f"count-{mine}-{os.getpid()}").write_text(
                str(faults.operations())
            ),
            exitpriority=0,
        )


if __name__ == "__main__":
    from gptcli.cli import main

    arm()
    main()
