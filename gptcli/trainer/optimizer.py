"""AdamW with the papers' constants (GPT-3, appendix B), the clip of the gradient's norm, and the
precision of matrix products with fp16's loss scale.

Weights, gradient sums, the optimizer and the residual stream are fp32 in every precision: each
layer of a deep model adds little to a long sum, which the 8 bits of bf16's mantissa would lose.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from gptcli.distributed.context import RankContext
from gptcli.errors import UsageError, install_hint
from gptcli.model import mup
from gptcli.trainer.config import TrainConfig

AUTOCAST_DTYPES = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,  # the linear layers cast further
}
"""Dtype of matrix products under autocast, in which FSDP also gathers the weights of blocks; None
leaves them as stored.
"""
MIN_FP8_CAPABILITY = (8, 9)  # compute capability of Ada, the first GPUs with fp8


def make_optimizer(
    model: nn.Module, config: TrainConfig, width_mult: float = 1.0
) -> torch.optim.AdamW:
    """Return one fused AdamW over all parameters.

    The `lr_scale` of each parameter group multiplies the learning rate: see `gptcli.model.mup`, of
    which `width_mult` is the m.
    """
    groups = mup.groups(model, width_mult, config.weight_decay)
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


def check_precision(precision: str, tp: int, *, here: bool = True) -> None:
    """Raise UsageError if fp8 is requested and not available.

    It needs torchao, a GPU from Ada or Hopper on, which are checked if the run is to be `here`, and
    a layout without `tp`.
    """
    if precision != "fp8":
        return
    problem = None
    if here and (
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < MIN_FP8_CAPABILITY
    ):
        problem = "this machine has no GPU with fp8"
    elif here and importlib.util.find_spec("torchao") is None:
        problem = f"fp8 needs torchao, which is not installed: {install_hint('torchao')}"
    elif tp > 1:
        problem = "fp8 does not work with tp"
    if problem:
        raise UsageError(
            problem, where="{option:precision} fp8", hint="{option:precision} bf16 runs anywhere"
        )


def convert_to_fp8(block: nn.Module) -> None:
    """Make the linear layers of a block compute in fp8 with one scale per tensor, in place."""
    from torchao.float8 import convert_to_float8_training

    convert_to_float8_training(block)


class LossScale:
    """Dynamic loss scale, which keeps fp16 gradients from underflow (Micikevicius et al. 2018).

    The loss is multiplied by a power of two and the gradients are divided by it before clipping.
    The scale halves when gradients overflow, and doubles after `GROWTH_STEPS` steps without
    overflow. `state` is all that a checkpoint has to save.
    """

    INITIAL, GROWTH_STEPS = 2.0**16, 2000

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self.state = state or {"scale": self.INITIAL, "steps": 0}

    @property
    def value(self) -> float:
        """Current scale."""
        return self.state["scale"]

    def update(self, grad_norm: float) -> None:
        """Adjust the scale after a step, by the gradient norm, which is equal on all processes."""
        finite = math.isfinite(grad_norm)
        self.state["steps"] = self.state["steps"] + 1 if finite else 0
        if not finite:
            self.state["scale"] /= 2
        elif self.state["steps"] == self.GROWTH_STEPS:
            self.state.update(scale=2 * self.value, steps=0)
