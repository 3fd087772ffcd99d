"""What products run in. Weights, the sums of their gradients, the optimizer and the residual stream
are fp32 in any precision: a deep model adds little to a long sum at each layer, and eight bits of
mantissa would lose it."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import nn

from gptcli.errors import UsageError, install_hint
from gptcli.events import Events
from gptcli.model import linear_kernel
from gptcli.runtime import device_type
from gptcli.trainer.config import TrainConfig

PRODUCTS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
"""What autocast hands to matrix products, and FSDP gathers a layer's weights as; None for what they
are. Those of fp8 are cast further.
"""
FP8 = (8, 9)  # the compute capability from which a GPU has it


def check_precision(precision: str, tp: int, *, here: bool = True) -> None:
    """Raises UsageError where fp8 is asked for and cannot be had: it is torchao's, for GPUs from
    Ada and Hopper on, which count if the run is to be `here`."""
    if precision != "fp8":
        return
    missing = None
    if here and (not torch.cuda.is_available() or torch.cuda.get_device_capability() < FP8):
        missing = "this machine has no GPU with fp8"
    elif here and importlib.util.find_spec("torchao") is None:
        missing = f"fp8 is torchao's, which is not installed: {install_hint('torchao')}"
    elif tp > 1:
        missing = "fp8 products are not divided over tp"
    if missing:
        raise UsageError(
            missing,
            where="{option:precision} fp8",
            field="precision",
            code="fp8_unavailable",
            hint="{option:precision} bf16 runs anywhere",
        )


def to_fp8(block: nn.Module) -> None:
    """A layer's products in fp8, each tensor with a scale of its own."""
    from torchao.float8 import convert_to_float8_training

    convert_to_float8_training(block)


class LossScale:
    """Lifts fp16's gradients out of its small numbers (Micikevicius et al. 2018): the loss is
    multiplied by a power of two, the gradients divided by it before the clip. Halved where they
    overflow, and doubled when they have not for long. `state` is all there is to save."""

    FIRST, DOUBLED_AFTER = 2.0**16, 2000

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self.state = state or {"scale": self.FIRST, "steps": 0}

    @property
    def value(self) -> float:
        return self.state["scale"]

    def learn(self, grad_norm: float) -> None:
        """After each step, from the gradient's norm, which every process has alike."""
        finite = math.isfinite(grad_norm)
        self.state["steps"] = self.state["steps"] + 1 if finite else 0
        if not finite:
            self.state["scale"] /= 2
        elif self.state["steps"] == self.DOUBLED_AFTER:
            self.state.update(scale=2 * self.value, steps=0)


def check_numeric_environment(before: str | None, config: TrainConfig, events: Events) -> str:
    """Return a description of what decides the last bits here: torch, processor, compilation.

    `before` is the description in a resumed run's checkpoint; None for a new run. Warns if the two
    differ.
    """
    cpu = f"a CPU with {torch.backends.cpu.get_cpu_capability()}"
    words = [
        f"torch {torch.__version__}",
        torch.cuda.get_device_name() if device_type() == "cuda" else cpu,
    ]
    if config.compile:
        words.append("compiled")
    if device_type() == "cpu" and config.precision == "bf16" and linear_kernel.runs_here():
        words.append("kernels in C")
    now = ", ".join(words)
    if before not in (None, now):
        events.warn(
            f"the run was made by {before}; here it is {now}: "
            "the last bits will differ from those of a run on one machine"
        )
    return now
