"""Tensor and sequence parallelism (Shoeybi et al. 2019; Korthikanti et al. 2022) as a table of
DTensor styles, one for each module of the plain model.

Each process of a group computes some of the attention heads, a slice of each MLP and a slice of the
vocabulary. Outside attention and MLP, where positions are independent, activations are sharded
along the sequence: attention and MLP all-gather it at their input, and their output projection
reduce-scatters the partial sums. The vocabulary may divide unevenly, 50,257 rows into 25,129 and
25,128.

The loss of a sharded vocabulary has the arithmetic of `gptcli.model.loss`, with reductions between
shards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
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

from gptcli.model.loss import (
    EAGER,
    IGNORE,
    ElementwiseOps,
    HeadKernel,
    VocabReduction,
    next_token_loss,
)
from gptcli.model.transformer import GPT

SEQUENCE_DIM = 1  # the dimension of (B, T, C) that is sharded
OTHER_SHARD = -1  # index of a target that another shard contains


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


def vocab_parallel_loss(
    x_nC: torch.Tensor,
    weight_VC: DTensor,
    target_N: torch.Tensor,
    *,
    mesh: DeviceMesh,
    n_ctx: int,
    elementwise: ElementwiseOps = EAGER,
    kernel: HeadKernel | None = None,
    observe: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Return the summed next-token loss in nats, the same on every process of `mesh`.

    `x_nC` is this process's part of each sequence of `n_ctx` positions, n = N / tp rows; `target_N`
    are the targets of all N positions, and `observe` is called with their losses. The gradient of
    `x_nC` is this shard's contribution to it.
    """
    tp = mesh.size()
    part_nC = DTensor.from_local(autocast(x_nC), mesh, [Shard(0)], run_check=False)
    # The gathered rows are ordered by process, then by sequence; the targets follow.
    x_NC = part_nC.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    target_N = target_N.view(-1, tp, n_ctx // tp).transpose(0, 1).flatten()
    in_order: Callable[[torch.Tensor], None] | None = None
    if (see := observe) is not None:
        in_order = lambda nats_N: see(  # noqa: E731
            nats_N.view(tp, -1, n_ctx // tp).transpose(0, 1).flatten()
        )
    weight_vC = weight_VC.to_local()
    index_N = target_N - vocab_start(weight_VC, mesh)
    index_N = torch.where((index_N >= 0) & (index_N < len(weight_vC)), index_N, OTHER_SHARD)
    return next_token_loss(
        x_NC,
        weight_vC,
        index_N.where(target_N != IGNORE, IGNORE),
        elementwise=elementwise,
        reduction=VocabShards(mesh, weight_VC.shape[0]),
        kernel=kernel,
        observe=in_order,
    )


class VocabShards(VocabReduction):
    """Reductions over a vocabulary of which each process of `mesh` has a shard."""

    def __init__(self, mesh: DeviceMesh, vocab_size: int) -> None:
        self.group = mesh.get_group()
        self.max_shard = shard_rows(vocab_size, mesh)

    def max_entries(self, weight_VC: torch.Tensor) -> int:
        """Return the number of rows of the largest shard."""
        return self.max_shard

    def combine(
        self, log_sum_n1: torch.Tensor, target_logit_n1: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reduce a shard's log-sum-exp and target logits, each (n, 1), over all shards."""
        max_n1 = log_sum_n1.clone()
        dist.all_reduce(max_n1, dist.ReduceOp.MAX, group=self.group)
        sums_2n1 = torch.stack([(log_sum_n1 - max_n1).exp(), target_logit_n1])
        dist.all_reduce(sums_2n1, group=self.group)
        return max_n1 + sums_2n1[0].log(), sums_2n1[1]


def shard_rows(vocab_size: int, mesh: DeviceMesh) -> int:
    """Return the vocabulary rows of each shard; the last one may have fewer."""
    return -(-vocab_size // mesh.size())


def vocab_start(weight_VC: torch.Tensor, mesh: DeviceMesh) -> int:
    """Return the first vocabulary row of this process's shard."""
    return shard_rows(weight_VC.shape[0], mesh) * mesh.get_local_rank()


def autocast(x: torch.Tensor) -> torch.Tensor:
    """Cast `x` to the dtype in which autocast would run a matrix product."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
