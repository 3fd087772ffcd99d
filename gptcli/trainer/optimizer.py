"""AdamW with the papers' constants (GPT-3, Appendix B), fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from gptcli.distributed.context import RankContext
from gptcli.model import mup
from gptcli.trainer.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig, m: float = 1.0) -> torch.optim.AdamW:
    """One over all parameters, in groups that say by `lr_scale` how their learning rate differs:
    see `gptcli.model.mup`, with its `m`.
    """
    groups = mup.groups(model, m, config.weight_decay)
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def gradient_norm(model: Any, context: RankContext) -> torch.Tensor:
    """Of the whole gradient, over all processes, a scalar still on the device. What several
    processes hold is counted once; then one sum over all of them gives each the same norm."""
    # a tied head's copy
    wte = getattr(model, "wte", None)
    table = None if context.pp_rank == 0 or wte is None else wte.weight
    counted = [
        _local(p.grad)
        for p in model.parameters()
        if p.grad is not None and p is not table and _counts(p.grad)
    ]
    norm = torch.nn.utils.get_total_norm(counted).to(context.device)
    # replicas alone have the whole gradient, all of them
    if context.layout.processes != context.layout.dp:
        norm = context.all_reduce_sum(norm.square()).sqrt()
    return norm


def clip_gradients(
    model: Any, most: float, context: RankContext, lifted: float = 1.0
) -> torch.Tensor:
    """Divide the gradient by `lifted` and cut its global norm to `most`; returns the norm it had
    between the two, as above.
    """
    norm = gradient_norm(model, context) / lifted
    factor = (most / (norm + 1e-6)).clamp(max=1.0) / lifted  # as clip_grad_norm_ has it
    if context.device.type != "cpu" or factor != 1:  # on a GPU, to look would be to wait
        torch._foreach_mul_(
            [_local(p.grad) for p in model.parameters() if p.grad is not None], factor
        )
    return norm


def _local(gradient: torch.Tensor) -> torch.Tensor:
    return gradient._local_tensor if isinstance(gradient, DTensor) else gradient


def _counts(gradient: torch.Tensor) -> bool:
    """Whether this process, of those that hold the same, is the first."""
    if not isinstance(gradient, DTensor):
        return True
    coordinate: Sequence[int] = gradient.device_mesh.get_coordinate() or ()
    return all(
        at == 0
        for at, placement in zip(coordinate, gradient.placements, strict=True)
        if placement.is_replicate()
    )
