"""Tensor and sequence parallelism (Shoeybi et al. 2019; Korthikanti et al. 2022): what each module
of the plain model becomes, as a table of DTensor's styles.

Every process of a group holds whole heads, a slice of each MLP and of the vocabulary. Between the
products, where a position needs no other, each holds a slice of the sequence: what reads all of it
gathers it, and the product that ends a branch leaves each its slice of the sum. The vocabulary may
divide unevenly: 50,257 rows are 25,129 and 25,128.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.parallel.style import ParallelStyle
from torch.nn import functional as F

from gptcli.distributed.vocab_parallel_loss import first_row, for_products

SEQUENCE = 1  # the dimension of (B, T, C) that is divided


class Gather(ParallelStyle):
    """Of a branch: the sequence is gathered as it enters, in the precision of the products that
    read it.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def gather(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            slice_BTC = DTensor.from_local(
                for_products(inputs[0]), device_mesh, [Shard(SEQUENCE)], run_check=False
            )
            return slice_BTC.redistribute(placements=[Replicate()]), *inputs[1:]

        module.register_forward_pre_hook(gather)
        return module


class Table(ParallelStyle):
    """Of the token embedding: a slice of the vocabulary on each process, which looks up the tokens
    that are its own; their sum is each process's slice of the sequence. (DTensor's own style would
    make the gradient of the whole vocabulary on every process.)"""

    def _apply(self, module: Any, device_mesh: DeviceMesh) -> nn.Module:
        module.weight = nn.Parameter(
            distribute_tensor(module.weight.detach(), device_mesh, [Shard(0)], src_data_rank=None)
        )

        def look_up(idx_BT: torch.Tensor) -> torch.Tensor:
            rows_vC = module.weight.to_local()
            index_BT = idx_BT - first_row(module.weight, device_mesh)
            mine_BT = (index_BT >= 0) & (index_BT < len(rows_vC))
            x_BTC = F.embedding(index_BT.clamp(0, len(rows_vC) - 1), rows_vC) * mine_BT[..., None]
            parts_BTC = DTensor.from_local(x_BTC, device_mesh, [Partial()], run_check=False)
            return parts_BTC.redistribute(placements=[Shard(SEQUENCE)]).to_local()

        module.forward = look_up
        return module


class Positions(ParallelStyle):
    """Of the position table: whole on every process, read at the positions of its slice of the
    sequence.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def hold(name: str, module: Any, mesh: DeviceMesh) -> None:
            module.weight = nn.Parameter(
                distribute_tensor(module.weight.detach(), mesh, [Replicate()], src_data_rank=None)
            )

        def cut(module: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
            return DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False).redistribute(
                placements=[Shard(0)]
            )

        return distribute_module(
            module, device_mesh, hold, cut, lambda module, output, mesh: output.to_local()
        )


def plan() -> dict[str, ParallelStyle]:
    """What becomes of the modules of a GPT, or of a stage of one, by name."""
    norm, ends_branch = (
        SequenceParallel(sequence_dim=SEQUENCE, use_local_output=True),
        RowwiseParallel(output_layouts=Shard(SEQUENCE)),
    )
    return {
        "wte": Table(),
        "wpe": Positions(),
        "h.*.ln_1": norm,
        "h.*.attn": Gather(),
        "h.*.attn.c_attn": ColwiseParallel(),  # its rows are head after head
        "h.*.attn.c_proj": ends_branch,
        "h.*.ln_2": norm,
        "h.*.mlp": Gather(),
        "h.*.mlp.c_fc": ColwiseParallel(),
        "h.*.mlp.c_proj": ends_branch,
        "ln_f": norm,
        "lm_head": ColwiseParallel(),
    }


def divide(model: Any, mesh: DeviceMesh) -> None:
    """Divide a GPT, or a stage of one, over the processes of `mesh`, in place."""
    children = dict(model.named_children())
    tied = {"wte", "lm_head"} <= children.keys() and children["lm_head"].weight is children[
        "wte"
    ].weight
    styles = {
        name: style
        for name, style in plan().items()
        if name.partition(".")[0] in children and not (tied and name == "lm_head")
    }
    parallelize_module(model, mesh, styles, src_data_rank=None)  # each process cuts its own slice
    if tied:
        model.lm_head.weight = model.wte.weight


def add_up_partial(model: nn.Module) -> None:
    """Sum the gradients to which each process has added its slice of the sequence: those of norms
    and positions, whole on all of them.
    """
    for parameter in model.parameters():
        gradient = parameter.grad
        if isinstance(gradient, DTensor) and any(
            placement.is_partial() for placement in gradient.placements
        ):
            whole: list[Placement] = [
                Replicate() if placement.is_partial() else placement
                for placement in gradient.placements
            ]
            parameter.grad = gradient.redistribute(placements=whole)
