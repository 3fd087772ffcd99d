"""The coordinates of a process in the device mesh of a run.

The axes of the mesh are, from the outermost to the innermost, pipeline stages (`pp`), replicas
(`dp`), shards of a replica (`shard`) and tensor slices (`tp`): ranks that communicate most are
closest to each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from gptcli.cost.layout import Layout

MESH_AXES = ("pp", "dp", "shard", "tp")  # from the outermost to the innermost


@dataclass(frozen=True, slots=True)
class RankContext:
    """Device, rank and layout of this process."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    layout: Layout = field(default_factory=Layout)

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

    def build_mesh(self) -> DeviceMesh | None:
        """Return the mesh of all processes with the axes `MESH_AXES`; None for a single process."""
        if self.world_size == 1:
            return None
        return init_device_mesh(
            self.device.type,
            tuple(getattr(self.layout, axis) for axis in MESH_AXES),
            mesh_dim_names=MESH_AXES,
        )
