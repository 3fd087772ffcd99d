"""Evaluation on several processes: each scores its share of the batches, and all get all records.

The processes are those of torchrun (`torchrun --nproc-per-node 8 -m gptcli eval ...`), each on its
own GPU if there are any.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from gptcli.evals.records import Record, Records
from gptcli.runtime import launch_environment


@dataclass(frozen=True, slots=True)
class Processes:
    """Rank of this process and number of processes."""

    rank: int = 0
    """Rank of this process, from 0."""
    world: int = 1
    """Number of processes."""

    def gather(self, records: Records) -> Iterable[Record]:
        """Return the records of all processes, once all are done; none if there is only one."""
        if self.world == 1:
            return []
        import torch.distributed as dist

        parts: list[list[Record]] = [[] for _ in range(self.world)]
        dist.all_gather_object(parts, list(records.done.values()))
        return [record for part in parts for record in part]

    def all_equal(self, value: object) -> bool:
        """Return True if `value` is the same on all processes."""
        if self.world == 1:
            return True
        import torch.distributed as dist

        values: list[object] = [None] * self.world
        dist.all_gather_object(values, value)
        return all(other == value for other in values)

    def shut_down(self) -> None:
        """Leave the process group.

        Call it only after success: destroying a group that other processes still wait in hangs.
        """
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()
            dist.destroy_process_group()


SINGLE_PROCESS = Processes()


def init_processes() -> Processes:
    """Join the processes of this launch, waiting for all; alone if this is the only process.

    Raises UsageError if the launcher's environment variables are incomplete.
    """
    launch = launch_environment()
    if launch is None or launch.world_size == 1:
        return SINGLE_PROCESS
    import torch
    import torch.distributed as dist

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // launch.local_world_size))
    dist.init_process_group("gloo", rank=launch.rank, world_size=launch.world_size)
    return Processes(launch.rank, launch.world_size)


def local_device() -> str:
    """Return this process's GPU, or "cpu" if there is none."""
    import torch

    launch = launch_environment()
    index = 0 if launch is None else launch.local_rank
    return f"cuda:{index}" if torch.cuda.is_available() else "cpu"
