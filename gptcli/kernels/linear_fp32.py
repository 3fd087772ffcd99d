"""Linear layers in training in fp32: PyTorch's products, which need no packing, and GELU by
`gelu_fp32.c`. The functions are those of `linear_kernel`.

Shapes: N rows, K inputs, O outputs.
"""

from __future__ import annotations

import functools

import torch

from gptcli.kernels.build import Library, library
from gptcli.kernels.linear_kernel import LONG, POINTER


def supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether the functions can run on an input and a weight, without autocast."""
    on_cpu = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel() > 0
    return on_cpu and not torch.is_autocast_enabled("cpu") and available()


def available() -> bool:
    """Return whether the kernel can be built here."""
    return _kernel() is not None


@functools.cache
def _kernel() -> Library | None:
    kernel = library("gelu_fp32")
    if kernel is not None:
        kernel.apply.argtypes, kernel.apply.restype = [*[POINTER] * 3, LONG], None
    return kernel


def run_forward(
    x_NK: torch.Tensor, weight_OK: torch.Tensor, bias_O: torch.Tensor, gelu: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output of a linear layer, and GELU of it if `gelu` (otherwise the same)."""
    y_NO = torch.addmm(bias_O, x_NK, weight_OK.T)
    return y_NO, _gelu(y_NO) if gelu else y_NO


def run_backward_x(
    dy_NO: torch.Tensor, weight_OK: torch.Tensor, before_NK: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the gradient of x, or of GELU's input `before_NK` if x is GELU's output."""
    dx_NK = torch.mm(dy_NO, weight_OK)
    return dx_NK if before_NK is None else _gelu(before_NK, dx_NK)


def run_backward_w(dy_NO: torch.Tensor, x_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of weight and bias."""
    return torch.mm(dy_NO.T, x_NK), dy_NO.sum(0)


def _gelu(x: torch.Tensor, dy: torch.Tensor | None = None) -> torch.Tensor:
    """Return GELU of x, or its gradient from that of its output, which is overwritten."""
    y = torch.empty_like(x) if dy is None else dy
    _kernel().apply(  # type: ignore[union-attr]
        x.data_ptr(), None if dy is None else dy.data_ptr(), y.data_ptr(), x.numel()
    )
    return y
