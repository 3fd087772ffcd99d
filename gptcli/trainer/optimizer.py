"""AdamW with the papers' constants (GPT-3, appendix B), and the clip of the gradient's norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from gptcli.distributed.context import RankContext
from gptcli.model.transformer import mup_groups
from gptcli.trainer.config import TrainConfig


def make_optimizer(
    model: nn.Module, config: TrainConfig, width_mult: float = 1.0
) -> torch.optim.AdamW:
    """Return one fused AdamW over all parameters.

    The `lr_scale` of each parameter group multiplies the learning rate: see
    `gptcli.model.transformer.mup_groups`, of which `width_mult` is the m.
    """
    groups = mup_groups(model, width_mult, config.weight_decay)
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


@torch.no_grad()
def gradient_norm(model: Any, context: RankContext) -> torch.Tensor:
    """Return the norm of the whole gradient over all ranks, a scalar on the device.

    A gradient that several ranks have is counted once. Every rank returns the same norm.
    """
    # The last stage has a copy of a tied embedding, which the first stage counts.
    wte = getattr(model, "wte", None)
    tied_copy = None if context.pp_rank == 0 or wte is None else wte.weight
    counted = [
        _local(p.grad)
        for p in model.parameters()
        if p.grad is not None and p is not tied_copy and _is_counted_here(p.grad)
    ]
    norm = torch.nn.utils.get_total_norm(counted).to(context.device)
    # Under dp alone every rank has the whole gradient already.
    if context.layout.processes != context.layout.dp:
        norm = context.all_reduce_sum(norm.square()).sqrt()
    return norm


@torch.no_grad()
def clip_gradients(
    model: Any, max_norm: float, context: RankContext, loss_scale: float = 1.0
) -> torch.Tensor:
    """Divide the gradient by `loss_scale` and clip its global norm to `max_norm`, in place.

    Return the norm between the two operations, a scalar on the device.
    """
    norm = gradient_norm(model, context) / loss_scale
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0) / loss_scale  # as clip_grad_norm_ does
    if context.device.type != "cpu" or factor != 1:  # comparing on a GPU would wait for it
        torch._foreach_mul_(
            [_local(p.grad) for p in model.parameters() if p.grad is not None], factor
        )
    return norm


def _local(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _is_counted_here(gradient: torch.Tensor) -> bool:
    """Return True on the first of the ranks that have the same part of the gradient."""
    if not isinstance(gradient, DTensor):
        return True
    coordinate: Sequence[int] = gradient.device_mesh.get_coordinate() or ()
    return all(
        at == 0
        for at, placement in zip(coordinate, gradient.placements, strict=True)
        if placement.is_replicate()
    )
