"""How a model is laid out over processes, by torch's own engines: replicas (`dp`, DDP), shards
(`shard`, FSDP2; with replicas HSDP), tensor slices (`tp`, DTensor) and pipeline stages (`pp`), in
any product.

Slices of a tensor stand next to each other, shards around them, replicas around these, and stages
outermost: what speaks most is nearest. The model itself knows nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from gptcli.cost.layout import Layout

MESH = ("pp", "dp", "shard", "tp")  # from the outermost axis to the innermost


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands among those of the run."""

    device: torch.device
    rank: int = 0
    world: int = 1
    layout: Layout = field(default_factory=Layout)

    @property
    def leads(self) -> bool:
        """This process writes the files and reports."""
        return self.rank == 0

    @property
    def replicas(self) -> int:
        """Groups of processes that read different sequences."""
        return self.world // (self.layout.tp * self.layout.pp)

    @property
    def sliced(self) -> bool:
        """Several processes make up a replica, each with a slice or a stage of the model."""
        return self.replicas < self.world

    @property
    def replica(self) -> int:
        """Which of them this process is part of."""
        return self.rank // self.layout.tp % self.replicas

    @property
    def stage(self) -> int:
        """Its place along `pp`."""
        return self.rank // (self.layout.tp * self.replicas)

    @property
    def tells_loss(self) -> bool:
        """Of the processes of a replica, the one whose loss counts: the others have the same, or
        none.
        """
        return self.rank % self.layout.tp == 0 and self.stage == self.layout.pp - 1

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def mesh(self) -> DeviceMesh | None:
        """All processes by axis; None where there is one."""
        if self.world == 1:
            return None
        return init_device_mesh(
            self.device.type,
            tuple(getattr(self.layout, axis) for axis in MESH),
            mesh_dim_names=MESH,
        )


def shard(part: Any, mesh: DeviceMesh, gathered: torch.dtype | None) -> None:
    """Divide a GPT, or a stage of one, over `shard` and repeat it over `dp`, in place: it is an
    FSDPModule from here on.

    Layers are gathered one by one, as `gathered`. Token embedding, final norm and head are the
    root's own unit, needed together at the end of the forward and the beginning of the backward
    pass; it is gathered as it is, so that the residual stream begins in fp32. Gradients are added
    up and averaged in fp32.

    A vocabulary that `tp` divides unevenly is divided by its columns: DTensor does not place uneven
    pieces of uneven pieces right.
    """
    axes = mesh["dp", "shard"] if mesh["dp"].size() > 1 else mesh["shard"]
    for block in part.h.values() if isinstance(part.h, nn.ModuleDict) else part.h:
        for norm in (module for module in block.modules() if isinstance(module, nn.LayerNorm)):
            norm.forward = MethodType(_norm, norm)  # type: ignore[method-assign]
        fully_shard(
            block,
            mesh=axes,
            mp_policy=MixedPrecisionPolicy(gathered, torch.float32, cast_forward_inputs=False),
        )

    pieces = mesh["tp"].size() * mesh["shard"].size()

    def placed(parameter: nn.Parameter) -> Shard | None:
        uneven = (
            isinstance(parameter, DTensor)
            and parameter.placements[0].is_shard(0)
            and parameter.shape[0] % pieces
        )
        return Shard(1) if uneven else None

    fully_shard(
        part,
        mesh=axes,
        mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False),
        shard_placement_fn=placed,
    )


def _norm(norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    """In the stream's own precision, whatever gain and bias were gathered as: a CPU would refuse
    the two together.
    """
    return F.layer_norm(
        x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps
    )


def repeat(model: nn.Module, layout: Layout) -> nn.Module:
    """What to call in the model's place where it is replicated and nothing else: DDP around it."""
    return (
        DistributedDataParallel(model, gradient_as_bucket_view=True)
        if layout.processes == layout.dp > 1
        else model
    )


def reduce_gradients(engine: nn.Module, layout: Layout, now: bool) -> None:
    """Whether the next backward pass is the step's last: between replicas gradients go once a step,
    and are kept to add more until then; shards divide them every time, because whole ones are what
    there is no memory for."""
    if isinstance(engine, DistributedDataParallel):
        engine.require_backward_grad_sync = now
    elif isinstance(engine, FSDPModule):
        engine.set_requires_gradient_sync(now or layout.shard > 1)
        engine.set_requires_all_reduce(now)  # after the other, which sets it too
