"""The coordinates of a process in the device mesh of a run, its device and its CPU threads.

The axes of the mesh are, from the outermost to the innermost, pipeline stages (`pp`), replicas
(`dp`), shards of a replica (`shard`) and tensor slices (`tp`): ranks that communicate most are
closest to each other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from gptcli import optional_kernels
from gptcli.cost.layout import Layout
from gptcli.devices import device_type, gpu_name
from gptcli.events import Events
from gptcli.runtime import available_cores

MESH_AXES = ("pp", "dp", "shard", "tp")  # from the outermost to the innermost


@dataclass(frozen=True, slots=True)
class RankContext:
    """Device, rank and layout of this process."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    layout: Layout = field(default_factory=Layout)
    timeout: timedelta | None = None
    """How long an operation between processes may wait for one of them; None for torch's default."""

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and reports progress."""
        return self.rank == 0

    @property
    def replicas(self) -> int:
        """Number of process groups that read different sequences, `dp` times `shard`."""
        return self.world_size // (self.layout.tp * self.layout.pp)

    @property
    def is_model_parallel(self) -> bool:
        """True if several processes share the sequences of a replica, through `tp` or `pp`."""
        return self.replicas < self.world_size

    @property
    def replica_rank(self) -> int:
        """Index of this process's replica, which selects its sequences."""
        return self.rank // self.layout.tp % self.replicas

    @property
    def pp_rank(self) -> int:
        """Coordinate of this process along `pp`."""
        return self.rank // (self.layout.tp * self.replicas)

    @property
    def tp_rank(self) -> int:
        """Coordinate of this process along `tp`."""
        return self.rank % self.layout.tp

    @property
    def owns_loss(self) -> bool:
        """True for the one process of each replica whose loss is counted.

        The other slices of the last stage compute the same loss, and earlier stages compute none.
        """
        return self.tp_rank == 0 and self.pp_rank == self.layout.pp - 1

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values` over all processes in place, and return them."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def all_gather(self, value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
        """Return the values of all processes, by rank; `group` is another group of all of them."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value, group)
        return values

    def build_mesh(self) -> DeviceMesh | None:
        """Return the mesh of all processes with the axes `MESH_AXES`; None for a single process."""
        if self.world_size == 1:
            return None
        mesh = init_device_mesh(
            self.device.type,
            tuple(getattr(self.layout, axis) for axis in MESH_AXES),
            mesh_dim_names=MESH_AXES,
        )
        if self.timeout is not None:  # new groups have torch's own, not that of all processes
            for axis in MESH_AXES:
                group: Any = mesh[axis].get_group()
                if hasattr(group, "set_timeout"):  # torch 2.13 has it
                    group.set_timeout(self.timeout)
        return mesh


def share_cores(processes: int) -> None:
    """Divide the CPU's cores among the `processes` of this machine."""
    if processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def pin_thread_count(previous: int | None, events: Events) -> int:
    """Pin the number of CPU threads for a whole run, and return it.

    The number of threads decides how sums are split, and so the last bits of the weights.
    `previous` is the number in the checkpoint of a resumed run, None for a new run. Warns if this
    machine has fewer cores.
    """
    threads = torch.get_num_threads()
    if previous is not None and previous != threads:
        if previous <= available_cores():
            threads = previous
        else:
            events.warn(
                f"the run used {previous} threads, but this machine has {available_cores()} cores: "
                "the weights will differ in their last bits from a run on one machine"
            )
    torch.set_num_threads(threads)  # an explicit number keeps the BLAS library from choosing one
    return threads


def check_numeric_environment(
    previous: str | None, events: Events, *, precision: str, compiled: bool
) -> str:
    """Return a description of what computes the run's sums: torch, device, compiler and kernels.

    `previous` is the description in the checkpoint of a resumed run, None for a new run. Warns if
    the two differ, because then the last bits do too.
    """
    cpu = f"a CPU with {torch.backends.cpu.get_cpu_capability()}"
    parts = [
        f"torch {torch.__version__}",
        gpu_name() or cpu,
    ]
    if compiled:
        parts.append("compiled")
    if device_type() == "cpu" and precision == "bf16" and optional_kernels.available("linear"):
        instructions = optional_kernels.instruction_set()
        parts.append("kernels in C" + ("" if instructions == "amx" else f" for {instructions}"))
    current = ", ".join(parts)
    if previous not in (None, current):
        events.warn(
            f"the run was computed by {previous} and continues on {current}: "
            "the weights will differ in their last bits from a run on one machine"
        )
    return current
