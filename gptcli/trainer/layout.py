"""How a model is laid out over processes, by torch's own engines: replicas (`dp`, DDP), shards (`shard`, FSDP2), or both (HSDP)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from gptcli.cost import layout as layouts
from gptcli.cost.layout import Layout
from gptcli.model.transformer import GPT

AXES = ("dp", "shard")


def parse_layout(text: str) -> Layout:
    """ "dp=2,shard=4" as a layout of the axes that the trainer has. Raises UsageError."""
    return layouts.parse_layout(text, AXES)


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands among those of the run."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """This process writes the files and reports."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


def lay_out(model: GPT, layout: Layout, place: Place, *, bf16: bool) -> nn.Module:
    """The model, spread over the layout's processes; all of them hold the same whole model when they call.

    The token embedding, the final norm and the tied head are the root's own unit: they are needed together at the end of the forward
    and the beginning of the backward pass.
    """
    if layout.shard > 1:
        shape = {axis: getattr(layout, axis) for axis in AXES if getattr(layout, axis) > 1}
        mesh = init_device_mesh(place.device.type, tuple(shape.values()), mesh_dim_names=tuple(shape))
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
        for block in model.h:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)  # in place: the model is an FSDPModule from here on
        return model
    if layout.dp > 1:
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    return model


def reduce_gradients(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass exchanges gradients, or keeps them to add more."""
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = now
    elif isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
