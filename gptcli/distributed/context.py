"""The coordinates of a process in the device mesh of a run, its device and its CPU threads.

The axes of the mesh are, from the outermost to the innermost, pipeline stages (`pp`), replicas
(`dp`), shards of a replica (`shard`) and tensor slices (`tp`): ranks that communicate most are
closest to each other.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from gptcli import optional_kernels
from gptcli.cost.layout import Layout
from gptcli.devices import device_type, gpu_name
from gptcli.events import Events
from gptcli.numbers import counted
from gptcli.runtime import available_cores

INTERNET = (socket.AF_INET, socket.AF_INET6)
PROBES = 4  # of a silent connection within the timeout
KERNELS: dict[str, Literal["attention", "linear"]] = {"bf16": "linear", "fp32": "attention"}
"""Kernel that stands for all that compute on a CPU in a precision."""
MESH_AXES = ("pp", "dp", "shard", "tp")  # from the outermost to the innermost


@dataclass(frozen=True, slots=True)
class RankContext:
    """Device, rank and layout of this process."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    layout: Layout = field(default_factory=Layout)
    timeout: timedelta | None = None
    """Longest wait for a process in an operation between them; None for torch's default."""
    reduce_once: bool = False
    """True if shards reduce their gradients once a step, not after every micro-batch."""

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
        """Sum `values`, of any shape, over all processes in place, and return them."""
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
        sizes = tuple(getattr(self.layout, axis) for axis in MESH_AXES)
        if self.device.type == "cpu":
            mesh = self._gloo_mesh(sizes)
        else:
            mesh = init_device_mesh(self.device.type, sizes, mesh_dim_names=MESH_AXES)
        if self.timeout is not None:  # new groups have torch's own, not that of all processes
            for axis in MESH_AXES:
                group: Any = mesh[axis].get_group()
                if hasattr(group, "set_timeout"):  # torch 2.13 has it
                    group.set_timeout(self.timeout)
        self.watch_connections()
        return mesh

    def _gloo_mesh(self, sizes: tuple[int, ...]) -> DeviceMesh:
        """Return a mesh whose groups are made within the run's timeout.

        `init_device_mesh` would wait half an hour for a host that is lost meanwhile.
        """
        ranks = torch.arange(self.world_size).view(sizes)
        own: list[dist.ProcessGroup] = []
        for axis, size in enumerate(sizes):
            for line in ranks.movedim(axis, -1).reshape(-1, size).tolist():
                group: Any = dist.new_group(line, timeout=self.timeout)  # all processes call it
                if self.rank in line:
                    own.append(group)
        return DeviceMesh.from_group(own, "cpu", ranks, mesh_dim_names=MESH_AXES)

    def new_group(self, timeout: timedelta) -> dist.ProcessGroup:
        """Return another group of all processes, over Gloo, whose operations may take `timeout`.

        To make it takes no longer than the run's own timeout: no connection is there yet that could
        be watched.
        """
        can_change = hasattr(dist.ProcessGroup, "set_timeout")  # torch 2.13 has it
        first = self.timeout if can_change and self.timeout is not None else timeout
        group: Any = dist.new_group(backend="gloo", timeout=first)
        if can_change:
            group.set_timeout(timeout)
        self.watch_connections()
        return group

    def watch_connections(self) -> None:
        """Let the system close connections to a host that is gone; for after groups are made.

        A wait that is allowed to be long, as for a checkpoint, then ends too; one for a host that
        works does not. Without this a cut link is noticed after some 16 minutes (tcp_retries2 of
        tcp(7)). Does nothing where the open files of a process cannot be listed.
        """
        if self.timeout is None:
            return
        with contextlib.suppress(OSError):
            for file in Path("/proc/self/fd").iterdir():
                with contextlib.suppress(OSError):  # closed by now
                    if stat.S_ISSOCK(file.stat().st_mode):
                        _watch(int(file.name), self.timeout.total_seconds())


def _watch(fd: int, seconds: float) -> None:
    """Close a TCP connection once its other end has acknowledged nothing for so many seconds."""
    with socket.socket(fileno=os.dup(fd)) as connection:
        if connection.type != socket.SOCK_STREAM or connection.family not in INTERNET:
            return
        idle = max(1, int(seconds / PROBES))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, number in (
            ("TCP_KEEPIDLE", idle),
            ("TCP_KEEPINTVL", idle),
            ("TCP_KEEPCNT", PROBES),
            ("TCP_USER_TIMEOUT", int(seconds * 1000)),
        ):
            if (option := getattr(socket, name, None)) is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, number)


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
                f"the run used {counted(previous, 'thread')}, but this machine has "
                f"{counted(available_cores(), 'core')}: "
                "the weights will differ in their last bits from a run on one machine"
            )
    torch.set_num_threads(threads)  # an explicit number keeps the BLAS library from choosing one
    return threads


def check_numeric_environment(
    previous: str | None, events: Events, *, precision: str, compiled: bool, fused: bool
) -> str:
    """Return a description of what computes the run's sums: torch, device, compiler and kernels.

    `previous` is the description in the checkpoint of a resumed run, None for a new run. Warns if
    the two differ, because then the last bits do too. `fused` says that kernels alone compute the
    layers without compilation.
    """
    cpu = f"a CPU with {torch.backends.cpu.get_cpu_capability()}"
    parts = [
        f"torch {torch.__version__}",
        gpu_name() or cpu,
    ]
    if compiled:
        parts.append("compiled")
    kernel = KERNELS.get(precision)
    if device_type() == "cpu" and kernel is not None and optional_kernels.available(kernel):
        instructions = optional_kernels.instruction_set()
        parts.append("kernels in C" + ("" if instructions == "amx" else f" for {instructions}"))
        if fused:
            parts.append("layers in C")
    current = ", ".join(parts)
    if previous is not None and previous != current:
        before = previous.split(", ")
        was = ", ".join(part for part in before if part not in parts)
        now = ", ".join(part for part in parts if part not in before)
        events.warn(
            f"the run was computed with {was or f'no {now}'} and continues with "
            f"{now or f'no {was}'}: "
            "the weights will differ in their last bits from a run on one machine"
        )
    return current
