"""Output head and cross-entropy with the vocabulary sharded over processes.

The arithmetic is that of `gptcli.model.loss`; this module adds the reductions between shards.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from gptcli.model.loss import (
    EAGER,
    IGNORE,
    ElementwiseOps,
    HeadKernel,
    VocabReduction,
    next_token_loss,
)

OTHER_SHARD = -1  # index of a target that another shard contains


def vocab_parallel_loss(
    x_nC: torch.Tensor,
    weight_VC: DTensor,
    target_N: torch.Tensor,
    *,
    mesh: DeviceMesh,
    n_ctx: int,
    elementwise: ElementwiseOps = EAGER,
    kernel: HeadKernel | None = None,
) -> torch.Tensor:
    """Return the summed next-token loss in nats, the same on every process of `mesh`.

    `x_nC` is this process's part of each sequence of `n_ctx` positions, n = N / tp rows; `target_N`
    are the targets of all N positions. The gradient of `x_nC` is this shard's contribution to it.
    """
    tp = mesh.size()
    part_nC = DTensor.from_local(autocast(x_nC), mesh, [Shard(0)], run_check=False)
    # The gathered rows are ordered by process, then by sequence; the targets follow.
    x_NC = part_nC.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    target_N = target_N.view(-1, tp, n_ctx // tp).transpose(0, 1).flatten()
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
