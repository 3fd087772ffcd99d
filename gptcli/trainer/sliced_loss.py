"""The output head and its cross-entropy where every process holds a slice of the vocabulary: `gptcli.model.loss`, whose logits are never
whole on one process either."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from gptcli.model.loss import CHUNK_BYTES, IGNORE


def sliced_loss(x_nC: torch.Tensor, weight_VC: DTensor, target_N: torch.Tensor, *, mesh: DeviceMesh, n_ctx: int) -> torch.Tensor:
    """`gptcli.model.loss.next_token_loss` of sequences of `n_ctx` positions, of which each process holds a slice: n = N / tp rows. The
    same sum on all of them."""
    slices = mesh.size()
    slice_nC = DTensor.from_local(for_products(x_nC), mesh, [Shard(0)], run_check=False)
    x_NC = slice_nC.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])  # slice after slice, each of all sequences
    target_N = target_N.view(-1, slices, n_ctx // slices).transpose(0, 1).flatten()
    weight_vC = for_products(weight_VC.to_local())
    rows = max(1, CHUNK_BYTES // (12 * -(-weight_VC.shape[0] // slices)))  # logits, probabilities and their gradient; the same everywhere
    return _SlicedLoss.apply(x_NC, weight_vC, target_N, first_row(weight_VC, mesh), mesh.get_group(), rows, torch.is_grad_enabled())


def first_row(table_VC: torch.Tensor, mesh: DeviceMesh) -> int:
    """Of this process's slice of the vocabulary; the last slice may be smaller."""
    return -(-table_VC.shape[0] // mesh.size()) * mesh.get_local_rank()


def for_products(x: torch.Tensor) -> torch.Tensor:
    """`x` as autocast hands it to a matrix product."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class _SlicedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NC: torch.Tensor,
        weight_vC: torch.Tensor,
        target_N: torch.Tensor,
        first: int,
        group: dist.ProcessGroup,
        rows: int,
        train: bool,
    ) -> torch.Tensor:
        """Of the vocabulary's rows from `first` on, `rows` positions at a time. The gradient of x is what this slice adds to it."""
        with torch.autocast(x_NC.device.type, enabled=False):
            loss = torch.zeros((), dtype=torch.float32, device=x_NC.device)
            dx_NC = torch.empty_like(x_NC) if train else None
            dweight_vC = torch.zeros_like(weight_vC, dtype=torch.float32) if train else None
            for start in range(0, len(x_NC), rows):
                x_nC, target_n = x_NC[start : start + rows], target_N[start : start + rows]
                chunk_loss, dlogits_nv = _cross_entropy(x_nC @ weight_vC.T, target_n, first, group)
                loss = loss + chunk_loss
                if dx_NC is not None and dweight_vC is not None:
                    dx_NC[start : start + rows] = dlogits_nv @ weight_vC
                    dweight_vC += dlogits_nv.T @ x_nC
        if train:
            ctx.save_for_backward(dx_NC, dweight_vC)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dx_NC, dweight_vC = ctx.saved_tensors
        return dx_NC * grads[0].to(dx_NC.dtype), dweight_vC * grads[0], None, None, None, None, None


def _cross_entropy(logits_nv: torch.Tensor, target_n: torch.Tensor, first: int, group: dist.ProcessGroup) -> tuple[torch.Tensor, ...]:
    """Summed loss of a chunk, and the gradient of the slice's logits in their own precision. Of each position two numbers are added up
    over the slices, and one compared: the sum of exponentials, the target's logit, and the largest one."""
    scores_nv = logits_nv.float()
    most_n = scores_nv.amax(dim=-1)
    dist.all_reduce(most_n, dist.ReduceOp.MAX, group=group)
    counted_n = target_n != IGNORE
    index_n1 = (target_n - first)[:, None]
    mine_n1 = (index_n1 >= 0) & (index_n1 < scores_nv.shape[1])
    index_n1 = index_n1.clamp(0, scores_nv.shape[1] - 1)
    at_target_n = (scores_nv.gather(1, index_n1) * mine_n1)[:, 0]
    exp_nv = (scores_nv - most_n[:, None]).exp_()
    both_2n = torch.stack([exp_nv.sum(dim=-1), at_target_n])
    dist.all_reduce(both_2n, group=group)
    sum_n, at_target_n = both_2n
    loss = ((sum_n.log() + most_n - at_target_n) * counted_n).sum()
    dlogits_nv = exp_nv.div_(sum_n[:, None])
    dlogits_nv.scatter_add_(1, index_n1, -mine_n1.float())
    return loss, (dlogits_nv * counted_n[:, None]).to(logits_nv.dtype)
