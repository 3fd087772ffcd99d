"""The output head and its cross-entropy in one step, a chunk of positions at a time, so that whole logits never exist.

The logits of a GPT-2 batch are larger than the model (4 x 1,024 x 50,257 in fp32: 823 MB). Each chunk's gradient is taken while its
logits are at hand, which costs one matrix product less than recomputing them in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

IGNORE = -100  # a target that counts for nothing
CHUNK_BYTES = 256 << 20  # fp32 logits alive at once: larger is hardly faster, and compiling unrolls the chunks


def next_token_loss(x_NC: torch.Tensor, weight_VC: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
    """Sum over N positions of -log softmax(x·Wᵀ)[target], in nats, as an fp32 scalar; targets of IGNORE add nothing.

    A sum, not a mean: under gradient accumulation and data parallelism the right divisor is the step's own count.
    """
    if torch.is_autocast_enabled(x_NC.device.type):
        dtype = torch.get_autocast_dtype(x_NC.device.type)
        x_NC, weight_VC = x_NC.to(dtype), weight_VC.to(dtype)
    return _HeadLoss.apply(x_NC, weight_VC, target_N, torch.is_grad_enabled())


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NC: torch.Tensor, weight_VC: torch.Tensor, target_N: torch.Tensor, train: bool) -> torch.Tensor:
        with torch.autocast(x_NC.device.type, enabled=False):
            loss = torch.zeros((), dtype=torch.float32, device=x_NC.device)
            dx_NC = torch.empty_like(x_NC) if train else None
            dweight_VC = torch.zeros_like(weight_VC, dtype=torch.float32) if train else None
            most = max(1, CHUNK_BYTES // (4 * weight_VC.shape[0]))
            chunks = max(1, -(-len(x_NC) // most))  # equal ones: a small last one would cost as much to sum up as a full one
            step = max(1, -(-len(x_NC) // chunks))
            for start in range(0, x_NC.shape[0], step):
                x_nC, target_n = x_NC[start : start + step], target_N[start : start + step]
                logits_nV = x_nC @ weight_VC.T
                chunk_loss, dlogits_nV = _cross_entropy(logits_nV, target_n, train)
                loss = loss + chunk_loss
                if dx_NC is not None and dweight_VC is not None:
                    dx_NC[start : start + step] = dlogits_nV @ weight_VC
                    dweight_VC += dlogits_nV.T @ x_nC
        if train:
            ctx.save_for_backward(dx_NC, dweight_VC)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dx_NC, dweight_VC = ctx.saved_tensors
        return dx_NC * grads[0].to(dx_NC.dtype), dweight_VC * grads[0], None, None


def _cross_entropy(logits_nV: torch.Tensor, target_n: torch.Tensor, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss of a chunk and, for training, the gradient of its logits in the logits' own precision."""
    counted_n1 = (target_n != IGNORE)[:, None]
    index_n1 = target_n.clamp(min=0)[:, None]
    log_probs_nV = F.log_softmax(logits_nV, dim=-1, dtype=torch.float32)
    loss = -(log_probs_nV.gather(1, index_n1) * counted_n1).sum()
    if not train:
        return loss, logits_nV
    if torch.compiler.is_compiling():  # a comparison fuses into one pass over the logits; a scatter would write them in fp32 first
        dlogits_nV = log_probs_nV.exp() - (torch.arange(logits_nV.shape[1], device=logits_nV.device) == index_n1).float()
    else:
        dlogits_nV = log_probs_nV.exp_()
        dlogits_nV.scatter_add_(1, index_n1, torch.full_like(index_n1, -1, dtype=torch.float32))
    return loss, (dlogits_nV * counted_n1).to(logits_nV.dtype)
