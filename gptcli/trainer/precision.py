"""Precision of matrix products, fp8 and fp16's loss scale.

Weights, gradient sums, the optimizer and the residual stream are fp32 in every precision: each
layer of a deep model adds little to a long sum, which the 8 bits of bf16's mantissa would lose.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import nn

from gptcli.errors import UsageError, install_hint

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
