"""Several processes on one evaluation: each takes its share of the batches, and all get all
records.

They are those that torchrun started (`torchrun --nproc-per-node 8 -m gptcli eval ...`), each on a
GPU of its own where there are some.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from gptcli.evals.records import Record, Records
from gptcli.runtime import launch_environment


@dataclass(frozen=True, slots=True)
class Processes:
    rank: int = 0
    world: int = 1

    def gather(self, records: Records) -> Iterable[Record]:
        """The records of all processes; each comes here once its own are done."""
        if self.world == 1:
            return []
        import torch.distributed as dist

        parts: list[list[Record]] = [[] for _ in range(self.world)]
        dist.all_gather_object(parts, list(records.done.values()))
        return [record for part in parts for record in part]

    def agree(self, value: object) -> bool:
        """Whether all processes have the same value."""
        if self.world == 1:
            return True
        import torch.distributed as dist

        values: list[object] = [None] * self.world
        dist.all_gather_object(values, value)
        return all(other == value for other in values)

    def leave(self) -> None:
        """At the end, and only after success: destroying a group that others still wait in
        hangs.
        """
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()
            dist.destroy_process_group()


ALONE = Processes()


def join() -> Processes:
    """This process's place among those of its launch, whom it waits for; alone if nobody started
    others. Raises UsageError.
    """
    launch = launch_environment()
    if launch is None or launch.world_size == 1:
        return ALONE
    import torch
    import torch.distributed as dist

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // launch.local_world_size))
    dist.init_process_group("gloo", rank=launch.rank, world_size=launch.world_size)
    return Processes(launch.rank, launch.world_size)


def local_device() -> str:
    """The GPU of this process, or the CPU where there is none."""
    import torch

    launch = launch_environment()
    number = 0 if launch is None else launch.local_rank
    return f"cuda:{number}" if torch.cuda.is_available() else "cpu"
