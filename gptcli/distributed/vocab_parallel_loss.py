"""The output head and its cross-entropy where every process holds a slice of the vocabulary:
`gptcli.model.loss`, and what the slices tell each other."""

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

ELSEWHERE = -1  # a target that another slice holds


def sliced_loss(
    x_nC: torch.Tensor,
    weight_VC: DTensor,
    target_N: torch.Tensor,
    *,
    mesh: DeviceMesh,
    n_ctx: int,
    elementwise: ElementwiseOps = EAGER,
    kernel: HeadKernel | None = None,
) -> torch.Tensor:
    """`gptcli.model.loss.next_token_loss` of sequences of `n_ctx` positions, of which each process
    holds a slice: n = N / tp rows. The same sum on all of them. The gradient of x is what this
    slice adds to it."""
    slices = mesh.size()
    slice_nC = DTensor.from_local(for_products(x_nC), mesh, [Shard(0)], run_check=False)
    # slice after slice, each of all sequences
    x_NC = slice_nC.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    target_N = target_N.view(-1, slices, n_ctx // slices).transpose(0, 1).flatten()
    weight_vC = weight_VC.to_local()
    index_N = target_N - first_row(weight_VC, mesh)
    index_N = torch.where((index_N >= 0) & (index_N < len(weight_vC)), index_N, ELSEWHERE)
    return next_token_loss(
        x_NC,
        weight_vC,
        index_N.where(target_N != IGNORE, IGNORE),
        elementwise=elementwise,
        reduction=VocabShards(mesh, weight_VC.shape[0]),
        kernel=kernel,
    )


class VocabShards(VocabReduction):
    """The vocabulary, a slice on each process of `mesh`."""

    def __init__(self, mesh: DeviceMesh, vocab_size: int) -> None:
        self.group, self.most = mesh.get_group(), -(-vocab_size // mesh.size())

    def max_entries(self, weight_VC: torch.Tensor) -> int:
        return self.most

    def combine(
        self, log_sum_n1: torch.Tensor, target_logit_n1: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        most_n1 = log_sum_n1.clone()
        dist.all_reduce(most_n1, dist.ReduceOp.MAX, group=self.group)
        both_2n1 = torch.stack([(log_sum_n1 - most_n1).exp(), target_logit_n1])
        dist.all_reduce(both_2n1, group=self.group)
        return most_n1 + both_2n1[0].log(), both_2n1[1]


def first_row(table_VC: torch.Tensor, mesh: DeviceMesh) -> int:
    """Of this process's slice of the vocabulary; the last slice may be smaller."""
    return -(-table_VC.shape[0] // mesh.size()) * mesh.get_local_rank()


def for_products(x: torch.Tensor) -> torch.Tensor:
    """`x` as autocast hands it to a matrix product."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
