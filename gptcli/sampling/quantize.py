"""Linear layers for inference: fast for the few rows of decoding, with weights optionally in int8.

On a CPU, few rows go to a kernel if one is installed (`linear_fn`, see `gptcli.kernels`), together
with a GELU that follows. Everything else goes to PyTorch.

Int8 quantization is weight-only: the weights of each output are rounded to 255 steps of the largest
of them. On a GPU, torch.compile fuses the conversion of the weight into the product.

Shapes: K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast, get_args

import torch
import torch.nn as nn
import torch.nn.functional as F

from gptcli import optional_kernels
from gptcli.errors import UsageError, nearest
from gptcli.model.transformer import GPT, MLP, Block

Quantize = Literal["none", "int8"]
QUANTIZE: tuple[Quantize, ...] = get_args(Quantize)
INT8_MAX = 127
"""Largest magnitude of a quantized weight."""

LinearFn = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, bool],
    torch.Tensor | None,
]
"""Type of a kernel: (x, weight_NK, scale_N, bias_N, gelu) -> output, or None for PyTorch's."""


class SmallBatchLinear(nn.Linear):
    """Linear layer, (.., K) -> (.., N), with a faster path for few rows."""

    linear_fn: LinearFn | None = None

    def forward(self, x: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        """Return x·Wᵀ + b, then GELU if `gelu`."""
        if self.linear_fn is not None:
            y = self.linear_fn(x, self.weight, None, self.bias, gelu)
            if y is not None:
                return y
        if gelu and _fuses_gelu(x):
            return torch.ops.mkldnn._linear_pointwise.default(
                x, self.weight, self.bias, "gelu", [], "tanh"
            )
        return _activate(F.linear(x, self.weight, self.bias), gelu)


def _fuses_gelu(x: torch.Tensor) -> bool:
    """Return whether oneDNN computes a linear layer and GELU together for this input."""
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _activate(y: torch.Tensor, gelu: bool) -> torch.Tensor:
    return F.gelu(y, approximate="tanh") if gelu else y


class Int8Linear(nn.Module):
    """Linear layer, (.., K) -> (.., N), with an int8 weight and one scale per output."""

    linear_fn: LinearFn | None = None

    def __init__(self, linear: nn.Linear) -> None:
        """Quantize the weight of `linear`."""
        super().__init__()
        weight_NK = linear.weight.detach().float()
        self.weight_NK: torch.Tensor
        self.scale_N: torch.Tensor
        scale_N = weight_NK.abs().amax(dim=1).clamp(min=1e-12) / INT8_MAX
        self.register_buffer("scale_N", scale_N)
        self.register_buffer("weight_NK", (weight_NK / scale_N[:, None]).round().to(torch.int8))
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, x: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        """Return x·Wᵀ·scale + b, then GELU if `gelu`."""
        if self.linear_fn is not None:
            y = self.linear_fn(x, self.weight_NK, self.scale_N, self.bias, gelu)
            if y is not None:
                return y
        y = F.linear(x, self.weight_NK.to(x.dtype)) * self.scale_N.to(x.dtype)
        return _activate(y if self.bias is None else y + self.bias.to(x.dtype), gelu)


class FusedMLP(MLP):
    """MLP whose GELU is computed together with the product before it."""

    def __init__(self, mlp: MLP) -> None:
        """Take over the linear layers of `mlp` under the same names."""
        self.__dict__ = mlp.__dict__

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Return the sub-block's output, (B, T, C)."""
        return self.c_proj(self.c_fc(x_BTC, gelu=True))


def prepare_for_inference(model: GPT, quantize: Quantize = "none") -> GPT:
    """Replace every linear layer of `model` by one of this module, in place; return the model.

    On a CPU, GELU is fused with the product before it; the CPU kernels are installed if they are
    there. With `quantize` "int8", the linear layers have no `weight` any more, and the model cannot
    be trained or saved. Raises UsageError for another value.
    """
    if quantize not in QUANTIZE:
        raise UsageError(f"unknown quantization {quantize!r}", hint=nearest(quantize, QUANTIZE))
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear:
            continue
        fast: nn.Module
        if quantize == "int8":
            fast = Int8Linear(module)
        else:
            fast = SmallBatchLinear.__new__(SmallBatchLinear)
            fast.__dict__ = module.__dict__  # the same parameters: a tied head stays tied
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, fast)
    if model.wte.weight.device.type == "cpu":  # on a GPU, compilation fuses GELU
        for block in cast(list[Block], model.h):
            block.mlp = FusedMLP(block.mlp)
    optional_kernels.install(model)
    return model
