"""Linear layers in training by `linear.c`: bf16 products of fp32 weights.

The kernel rounds the weights while it packs them, applies GELU and its derivative to results that
are still in cache, and accumulates the gradients of the weights in fp32 and those of the biases in
the same pass. To the compiler, a layer is one operator forward and one backward.

Shapes: N rows, K inputs, O outputs; C d_model, F d_ff.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import nn

from gptcli.kernels.build import library

POINTER, LONG = ctypes.c_void_p, ctypes.c_long


def supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether the kernel can run on an input and a weight, under the current autocast.

    The weight must be the fp32 one, not the copy that FSDP gathers in bf16.
    """
    on_cpu = x.device.type == "cpu" and weight.dtype == torch.float32 and x.numel() > 0
    return (
        on_cpu
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and available()
    )


def available() -> bool:
    """Return whether the kernel can be built and run here."""
    return _kernel() is not None


@functools.cache
def _kernel() -> ctypes.CDLL | None:
    kernel = library("linear")
    if kernel is None or not kernel.ready():
        return None
    for name, pointers in (("forward", 5), ("backward", 7)):
        getattr(kernel, name).argtypes = [*[POINTER] * pointers, *[LONG] * 3]
    return kernel


def apply(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Return the output of a linear layer in bf16, (.., K) -> (.., O)."""
    y_NO = linear(x.flatten(0, -2).bfloat16(), layer.weight, layer.bias)
    return y_NO.view(*x.shape[:-1], -1)


@torch.library.custom_op("gptcli::linear", mutates_args=(), device_types="cpu")
def linear(x_NK: torch.Tensor, weight_OK: torch.Tensor, bias_O: torch.Tensor) -> torch.Tensor:
    """Return x·Wᵀ + b in bf16, (N, O)."""
    return run_forward(x_NK, weight_OK, bias_O)[0]


@torch.library.custom_op("gptcli::linear_backward", mutates_args=(), device_types="cpu")
def linear_backward(
    dy_NO: torch.Tensor, x_NK: torch.Tensor, weight_OK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradient of x in bf16, and those of weight and bias in fp32."""
    return run_backward(dy_NO, x_NK, weight_OK)


@torch.library.custom_op("gptcli::mlp", mutates_args=(), device_types="cpu")
def mlp(
    x_NC: torch.Tensor,
    fc_FC: torch.Tensor,
    fc_bias_F: torch.Tensor,
    proj_CF: torch.Tensor,
    proj_bias_C: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the output of two linear layers with GELU between them, (N, C) in bf16.

    The other results, for the backward pass, are GELU's input and its output, (N, F) in bf16.
    """
    before_NF, after_NF = run_forward(x_NC, fc_FC, fc_bias_F, gelu=True)
    return run_forward(after_NF, proj_CF, proj_bias_C)[0], before_NF, after_NF


@torch.library.custom_op("gptcli::mlp_backward", mutates_args=(), device_types="cpu")
def mlp_backward(
    dy_NC: torch.Tensor,
    x_NC: torch.Tensor,
    before_NF: torch.Tensor,
    after_NF: torch.Tensor,
    fc_FC: torch.Tensor,
    proj_CF: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradient of x in bf16, and those of the four parameters in fp32."""
    dbefore_NF, dproj_CF, dbias_C = run_backward(dy_NC, after_NF, proj_CF, before_NF)
    return *run_backward(dbefore_NF, x_NC, fc_FC), dproj_CF, dbias_C


@linear.register_fake
def _(x_NK: torch.Tensor, weight_OK: torch.Tensor, bias_O: torch.Tensor) -> torch.Tensor:
    return x_NK.new_empty(len(x_NK), len(weight_OK))


@linear_backward.register_fake
def _(dy_NO: torch.Tensor, x_NK: torch.Tensor, weight_OK: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (
        x_NK.new_empty(x_NK.shape),
        weight_OK.new_empty(weight_OK.shape),
        weight_OK.new_empty(len(weight_OK)),
    )


@mlp.register_fake
def _(x_NC: torch.Tensor, fc_FC: torch.Tensor, *_rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
    N, F = len(x_NC), len(fc_FC)
    return x_NC.new_empty(x_NC.shape), x_NC.new_empty(N, F), x_NC.new_empty(N, F)


@mlp_backward.register_fake
def _(
    dy_NC: torch.Tensor,
    x_NC: torch.Tensor,
    before_NF: torch.Tensor,
    after_NF: torch.Tensor,
    fc_FC: torch.Tensor,
    proj_CF: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    gradients = [
        weight.new_empty(shape)
        for weight in (fc_FC, proj_CF)
        for shape in (weight.shape, weight.shape[:1])
    ]
    return x_NC.new_empty(x_NC.shape), *gradients


def _save_linear(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _save_mlp(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
    x_NC, fc_FC, _, proj_CF, _ = inputs
    ctx.save_for_backward(x_NC, *output[1:], fc_FC, proj_CF)


linear.register_autograd(
    lambda ctx, dy_NO: linear_backward(dy_NO, *ctx.saved_tensors), setup_context=_save_linear
)
mlp.register_autograd(
    lambda ctx, dy_NC, *_: mlp_backward(dy_NC, *ctx.saved_tensors), setup_context=_save_mlp
)


def run_forward(
    x_NK: torch.Tensor, weight_OK: torch.Tensor, bias_O: torch.Tensor, gelu: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output of a linear layer, and GELU of it if `gelu` (otherwise the same)."""
    y_NO = x_NK.new_empty(len(x_NK), len(weight_OK))
    after_NO = torch.empty_like(y_NO) if gelu else y_NO
    _call(
        "forward",
        x_NK,
        weight_OK,
        bias_O,
        y_NO,
        after_NO if gelu else None,
        shape=(len(x_NK), *weight_OK.shape[::-1]),
    )
    return y_NO, after_NO


def run_backward(
    dy_NO: torch.Tensor,
    x_NK: torch.Tensor,
    weight_OK: torch.Tensor,
    before_NK: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x in bf16, and of weight and bias in fp32.

    If x is the GELU of `before_NK`, the first is the gradient of that.
    """
    dx_NK, (O, K) = dy_NO.new_empty(x_NK.shape), weight_OK.shape  # noqa: E741
    dweight_OK, dbias_O = torch.empty(O, K), torch.empty(O)
    _call(
        "backward",
        dy_NO,
        x_NK,
        weight_OK,
        before_NK,
        dx_NK,
        dweight_OK,
        dbias_O,
        shape=(len(dy_NO), K, O),
    )
    return dx_NK, dweight_OK, dbias_O


def _call(name: str, *tensors: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    """Call a function of the kernel; copies of non-contiguous inputs live until it returns."""
    contiguous = [None if tensor is None else tensor.contiguous() for tensor in tensors]
    if not getattr(_kernel(), name)(
        *(None if tensor is None else tensor.data_ptr() for tensor in contiguous), *shape
    ):
        raise MemoryError(f"out of memory in a product of shape {shape}")
