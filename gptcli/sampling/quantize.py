"""Products of a weight with the few rows that decoding has, at the speed the memory gives the
weight; and weights in int8.

On a CPU few rows go to `kernels/decode.c`, which reads the weight where it lies, once. Many, and
all where it cannot be built, go to PyTorch, which lays the weight out anew on each call: for one
row that takes as long as the product. GELU goes with the product before it.

Int8 is weight-only: each output channel is rounded to 255 steps of its largest weight, and
activations keep at least 15 bits in the kernel. On a GPU, compilation fuses the conversion of the
weight into the product.

Shapes: R rows, K inputs, N outputs.
"""

from __future__ import annotations

import ctypes
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F

from gptcli.errors import UsageError, nearest
from gptcli.kernels.build import library
from gptcli.model.transformer import GPT, MLP, Block

# rows, by the weight's type; beyond it PyTorch is as fast
FEW = {torch.float32: 32, torch.bfloat16: 128, torch.int8: 8192}
QUANTIZE = ("none", "int8")
STEPS = 127  # of int8, either way
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # as the kernel numbers them
FLOATS = (torch.float32, torch.bfloat16)


class CLinear(ctypes.Structure):
    """`Linear` of the kernel: addresses, sizes and kind."""

    _fields_ = [
        ("weight_NK", ctypes.c_void_p),
        ("scale_N", ctypes.c_void_p),
        ("bias_N", ctypes.c_void_p),
        ("N", ctypes.c_int64),
        ("K", ctypes.c_int64),
        ("kind", ctypes.c_int64),
    ]


def c_linear(
    weight_NK: torch.Tensor, scale_N: torch.Tensor | None, bias_N: torch.Tensor | None
) -> CLinear:
    scale, bias = (None if tensor is None else tensor.data_ptr() for tensor in (scale_N, bias_N))
    return CLinear(weight_NK.data_ptr(), scale, bias, *weight_NK.shape, KINDS[weight_NK.dtype])


def by_kernel(
    x: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N: torch.Tensor | None,
    bias_N: torch.Tensor | None,
    gelu: bool,
) -> torch.Tensor | None:
    """The kernel's product, in the type of `x`; None where it is not the one to ask."""
    R = x.shape[:-1].numel()
    if (
        FEW.get(weight_NK.dtype, 0) < R
        or x.device.type != "cpu"
        or x.dtype not in FLOATS
        or torch.compiler.is_compiling()
    ):
        return None
    if torch.is_grad_enabled() and (x.requires_grad or weight_NK.requires_grad):
        return None
    if (kernel := library("decode")) is None:
        return None
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], len(weight_NK))
    bias_N = None if bias_N is None else bias_N.float()
    linear = c_linear(weight_NK, scale_N, bias_N)
    sizes = (ctypes.c_int64(number) for number in (R, gelu))
    kernel.linear(
        ctypes.byref(linear),
        ctypes.c_int64(KINDS[x.dtype]),
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_void_p(y.data_ptr()),
        *sizes,
    )
    return y


class FewRows(nn.Linear):
    """A linear layer, (.., K) -> (.., N), that knows when its rows are few."""

    def forward(self, x: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        y = by_kernel(x, self.weight, None, self.bias, gelu)
        if y is not None:
            return y
        if gelu and _onednn(x):
            return torch.ops.mkldnn._linear_pointwise.default(
                x, self.weight, self.bias, "gelu", [], "tanh"
            )
        return _then(F.linear(x, self.weight, self.bias), gelu)


def _onednn(x: torch.Tensor) -> bool:
    """Whether oneDNN takes GELU with the product before it."""
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _then(y: torch.Tensor, gelu: bool) -> torch.Tensor:
    return F.gelu(y, approximate="tanh") if gelu else y


class Int8(nn.Module):
    """A linear layer, (.., K) -> (.., N), with its weight in int8 and a scale for each output."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_NK = linear.weight.detach().float()
        self.weight_NK: torch.Tensor
        self.scale_N: torch.Tensor
        scale_N = weight_NK.abs().amax(dim=1).clamp(min=1e-12) / STEPS
        self.register_buffer("scale_N", scale_N)
        self.register_buffer("weight_NK", (weight_NK / scale_N[:, None]).round().to(torch.int8))
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, x: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        y = by_kernel(x, self.weight_NK, self.scale_N, self.bias, gelu)
        if y is not None:
            return y
        y = F.linear(x, self.weight_NK.to(x.dtype)) * self.scale_N.to(x.dtype)
        return _then(y if self.bias is None else y + self.bias.to(x.dtype), gelu)


class FusedMLP(MLP):
    """One whose GELU goes with the product before it."""

    def __init__(self, mlp: MLP) -> None:
        self.__dict__ = mlp.__dict__  # the same modules under the same names

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.c_fc(x_BTC, gelu=True))


def read_in_place(model: GPT, quantize: str = "none") -> GPT:
    """Give every linear layer of `model` the products above, in place; returns the model. Raises
    UsageError for an unknown form.

    Quantised, the model can only be run: its linear layers have no `weight` any more.
    """
    if quantize not in QUANTIZE:
        raise UsageError(f"unknown quantisation {quantize!r}", hint=nearest(quantize, QUANTIZE))
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear:
            continue
        fast: nn.Module
        if quantize == "int8":
            fast = Int8(module)
        else:
            fast = FewRows.__new__(FewRows)
            fast.__dict__ = module.__dict__  # the same parameters: a tied head stays tied
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, fast)
    if model.wte.weight.device.type == "cpu":  # on a GPU compilation does as much
        for block in cast(list[Block], model.h):
            block.mlp = FusedMLP(block.mlp)
    return model
