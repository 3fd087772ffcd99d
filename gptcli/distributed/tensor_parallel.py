"""Tensor and sequence parallelism (Shoeybi et al. 2019; Korthikanti et al. 2022) as a table of
DTensor styles, one for each module of the plain model.

Each process of a group computes some of the attention heads, a slice of each MLP and a slice of the
vocabulary. Outside attention and MLP, where positions are independent, activations are sharded
along the sequence: attention and MLP all-gather it at their input, and their output projection
reduce-scatters the partial sums. The vocabulary may divide unevenly, 50,257 rows into 25,129 and
25,128.
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
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional as F

from gptcli.distributed.vocab_parallel_loss import autocast, vocab_start
from gptcli.model.transformer import GPT

SEQUENCE_DIM = 1  # the dimension of (B, T, C) that is sharded


class GatherSequence(ParallelStyle):
    """All-gather of the sequence at the input of attention and MLP, in the autocast dtype."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def gather(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            x_BtC = DTensor.from_local(
                autocast(inputs[0]), device_mesh, [Shard(SEQUENCE_DIM)], run_check=False
            )
            return x_BtC.redistribute(placements=[Replicate()]), *inputs[1:]

        module.register_forward_pre_hook(gather)
        return module


class VocabParallelEmbedding(ParallelStyle):
    """Token embedding sharded by rows.

    Each process looks up the tokens of its own slice, and a reduce-scatter leaves it the sum over
    slices for its part of the sequence. DTensor's own style would allocate the gradient of the
    whole vocabulary on every process.
    """

    def _apply(self, module: Any, device_mesh: DeviceMesh) -> nn.Module:
        module.weight = nn.Parameter(
            distribute_tensor(module.weight.detach(), device_mesh, [Shard(0)], src_data_rank=None)
        )

        def look_up(idx_BT: torch.Tensor) -> torch.Tensor:
            weight_vC = module.weight.to_local()
            row_BT = idx_BT - vocab_start(module.weight, device_mesh)
            is_local_BT = (row_BT >= 0) & (row_BT < len(weight_vC))
            x_BTC = F.embedding(row_BT.clamp(0, len(weight_vC) - 1), weight_vC)
            partial_BTC = DTensor.from_local(
                x_BTC * is_local_BT[..., None], device_mesh, [Partial()], run_check=False
            )
            return partial_BTC.redistribute(placements=[Shard(SEQUENCE_DIM)]).to_local()

        module.forward = look_up
        return module


class PositionEmbedding(ParallelStyle):
    """Position embedding replicated on every process, read at its part of the sequence."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def replicate(name: str, module: Any, mesh: DeviceMesh) -> None:
            module.weight = nn.Parameter(
                distribute_tensor(module.weight.detach(), mesh, [Replicate()], src_data_rank=None)
            )

        def shard_positions(module: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
            position_T = DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False)
            return position_T.redistribute(placements=[Shard(0)])

        def to_local(module: nn.Module, output: Any, mesh: DeviceMesh) -> Any:
            return output.to_local()

        return distribute_module(module, device_mesh, replicate, shard_positions, to_local)


def tp_plan() -> dict[str, ParallelStyle]:
    """Return the style of each module of a GPT by its name."""
    norm = SequenceParallel(sequence_dim=SEQUENCE_DIM, use_local_output=True)
    reduce_scatter = RowwiseParallel(output_layouts=Shard(SEQUENCE_DIM))
    return {
        "wte": VocabParallelEmbedding(),
        "wpe": PositionEmbedding(),
        "h.*.ln_1": norm,
        "h.*.attn": GatherSequence(),
        "h.*.attn.c_attn": ColwiseParallel(),  # rows are ordered by head
        "h.*.attn.c_proj": reduce_scatter,
        "h.*.ln_2": norm,
        "h.*.mlp": GatherSequence(),
        "h.*.mlp.c_fc": ColwiseParallel(),
        "h.*.mlp.c_proj": reduce_scatter,
        "ln_f": norm,
        "lm_head": ColwiseParallel(),
    }


def apply_tp(model: GPT, mesh: DeviceMesh) -> None:
    """Shard a GPT or a pipeline stage over the processes of `mesh`, in place."""
    children = dict(model.named_children())
    tied = {"wte", "lm_head"} <= children.keys() and children["lm_head"].weight is children[
        "wte"
    ].weight
    styles = {
        name: style
        for name, style in tp_plan().items()
        if name.partition(".")[0] in children and not (tied and name == "lm_head")
    }
    parallelize_module(model, mesh, styles, src_data_rank=None)  # no broadcast: all draw alike
    if tied:
        model.lm_head.weight = model.wte.weight


def reduce_partial_grads(model: nn.Module) -> None:
    """All-reduce the gradients of replicated parameters, norms and positions, to which each process
    has added only its part of the sequence.
    """
    for parameter in model.parameters():
        gradient = parameter.grad
        if isinstance(gradient, DTensor) and any(
            placement.is_partial() for placement in gradient.placements
        ):
            reduced: list[Placement] = [
                Replicate() if placement.is_partial() else placement
                for placement in gradient.placements
            ]
            parameter.grad = gradient.redistribute(placements=reduced)
