"""A block's residual stream in training by `gptcli/kernels/norm.c`: LayerNorms and the sums around
them, beside `linear_kernel`.

Where the linear layers are that kernel's, they take a norm's output in bf16, and nothing else reads
it. So a norm reads the stream once, sums it with what the sub-block before has found, and writes
bf16; and its backward pass takes the gradient that went around the sub-block along, so that nothing
is left to be summed. Post-norm, where a norm's output is the stream, is PyTorch's own.
"""

from __future__ import annotations

import ctypes
import functools
from types import MethodType
from typing import Any

import torch

from gptcli.kernels.build import library
from gptcli.model import linear_kernel
from gptcli.model.linear_kernel import LONG, POINTER


@functools.cache
def _kernel() -> ctypes.CDLL | None:
    kernel = library("norm")
    if kernel is not None:
        kernel.forward.argtypes, kernel.forward.restype = (
            [*[POINTER] * 7, LONG, LONG, ctypes.c_double],
            None,
        )
        kernel.backward.argtypes = [*[POINTER] * 10, LONG, LONG]
    return kernel


@torch.compiler.assume_constant_result
def runs_here() -> bool:
    return linear_kernel.runs_here() and _kernel() is not None


def give(block: Any) -> None:
    """Let the stream of a block whose linear layers are the kernel's be this one's wherever that
    serves.
    """
    if not block.post_norm:
        block.forward = MethodType(_block, block)


def _block(block: Any, x_BTC: torch.Tensor, *rest: Any) -> torch.Tensor:
    one, two = block.ln_1, block.ln_2
    fp32 = x_BTC.dtype == one.weight.dtype == two.weight.dtype == torch.float32
    if not (fp32 and linear_kernel.serves(x_BTC, block.attn.c_attn.weight) and runs_here()):
        own: torch.Tensor = type(block).forward(block, x_BTC, *rest)
        return own
    x_NC, y_NC = Norm.apply(x_BTC.flatten(0, -2), one.weight, one.bias, one.eps)
    found_NC = block.drop(block.attn(y_NC.view(x_BTC.shape), *rest)).flatten(0, -2)
    x_NC, y_NC, _ = add_norm(x_NC, found_NC.bfloat16(), two.weight, two.bias, two.eps)
    return x_NC.view(x_BTC.shape) + block.drop(block.mlp(y_NC.view(x_BTC.shape)))


class Norm(torch.autograd.Function):
    """The stream as it was, for the sum around the sub-block, and its norm in bf16: what comes back
    of both is summed in one pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NC: torch.Tensor, gain_C: torch.Tensor, bias_C: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y_NC, kept_2N = norm(x_NC, gain_C, bias_C, eps)
        ctx.save_for_backward(x_NC, kept_2N, gain_C)
        return x_NC.view_as(x_NC), y_NC

    @staticmethod
    def backward(
        ctx: Any, dx_NC: torch.Tensor, dy_NC: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        return *norm_backward(dy_NC, dx_NC, *ctx.saved_tensors), None


@torch.library.custom_op("gptcli::norm", mutates_args=(), device_types="cpu")
def norm(
    x_NC: torch.Tensor, gain_C: torch.Tensor, bias_C: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x's LayerNorm in bf16; and each row's mean and 1/deviation."""
    _, y_NC, kept_2N = _forward(x_NC, None, gain_C, bias_C, eps)
    return y_NC, kept_2N


@torch.library.custom_op("gptcli::norm_backward", mutates_args=(), device_types="cpu")
def norm_backward(
    dy_NC: torch.Tensor,
    dx_NC: torch.Tensor,
    x_NC: torch.Tensor,
    kept_2N: torch.Tensor,
    gain_C: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, the one that it has besides among them, of gain and of bias, in fp32."""
    dx_NC, _, dgain_C, dbias_C = _backward(dy_NC, dx_NC, x_NC, None, kept_2N, gain_C)
    return dx_NC, dgain_C, dbias_C


@torch.library.custom_op("gptcli::add_norm", mutates_args=(), device_types="cpu")
def add_norm(
    x_NC: torch.Tensor,
    found_NC: torch.Tensor,
    gain_C: torch.Tensor,
    bias_C: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x with what a sub-block has found, in bf16, added; that sum's LayerNorm in bf16; and each
    row's mean and 1/deviation.
    """
    return _forward(x_NC, found_NC, gain_C, bias_C, eps)


@torch.library.custom_op("gptcli::add_norm_backward", mutates_args=(), device_types="cpu")
def add_norm_backward(
    dy_NC: torch.Tensor,
    dsum_NC: torch.Tensor,
    x_NC: torch.Tensor,
    found_NC: torch.Tensor,
    kept_2N: torch.Tensor,
    gain_C: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x in fp32, of what was found in bf16, and of gain and bias."""
    return _backward(dy_NC, dsum_NC, x_NC, found_NC, kept_2N, gain_C)


@norm.register_fake
def _(x_NC: torch.Tensor, *_rest: Any) -> tuple[torch.Tensor, ...]:
    return x_NC.new_empty(x_NC.shape, dtype=torch.bfloat16), x_NC.new_empty(2, len(x_NC))


@norm_backward.register_fake
def _(
    dy_NC: torch.Tensor,
    dx_NC: torch.Tensor,
    x_NC: torch.Tensor,
    kept_2N: torch.Tensor,
    gain_C: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    return (
        x_NC.new_empty(x_NC.shape),
        gain_C.new_empty(gain_C.shape),
        gain_C.new_empty(gain_C.shape),
    )


@add_norm.register_fake
def _(x_NC: torch.Tensor, *_rest: Any) -> tuple[torch.Tensor, ...]:
    return (
        x_NC.new_empty(x_NC.shape),
        x_NC.new_empty(x_NC.shape, dtype=torch.bfloat16),
        x_NC.new_empty(2, len(x_NC)),
    )


@add_norm_backward.register_fake
def _(
    dy_NC: torch.Tensor,
    dsum_NC: torch.Tensor,
    x_NC: torch.Tensor,
    found_NC: torch.Tensor,
    kept_2N: torch.Tensor,
    gain_C: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    dx_NC, dgain_C = x_NC.new_empty(x_NC.shape), gain_C.new_empty(gain_C.shape)
    return (
        dx_NC,
        dx_NC.new_empty(dx_NC.shape, dtype=torch.bfloat16),
        dgain_C,
        gain_C.new_empty(gain_C.shape),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    # not the sum: x is kept by the norm before, and what was found takes half of it
    ctx.save_for_backward(*inputs[:2], output[2], inputs[2])


def _add_norm_backward(
    ctx: Any, dsum_NC: torch.Tensor, dy_NC: torch.Tensor, _: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    return *add_norm_backward(dy_NC, dsum_NC, *ctx.saved_tensors), None


add_norm.register_autograd(_add_norm_backward, setup_context=_keep)


def _forward(
    x_NC: torch.Tensor,
    found_NC: torch.Tensor | None,
    gain_C: torch.Tensor,
    bias_C: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sum_NC = x_NC if found_NC is None else x_NC.new_empty(x_NC.shape)
    y_NC, kept_2N = x_NC.new_empty(x_NC.shape, dtype=torch.bfloat16), x_NC.new_empty(2, len(x_NC))
    inputs = [
        None if tensor is None else tensor.contiguous()
        for tensor in (x_NC, found_NC, gain_C, bias_C)
    ]
    _kernel().forward(*map(_at, (*inputs, sum_NC, y_NC, kept_2N)), *x_NC.shape, eps)  # type: ignore[union-attr]
    return sum_NC, y_NC, kept_2N


def _backward(
    dy_NC: torch.Tensor,
    dsum_NC: torch.Tensor,
    x_NC: torch.Tensor,
    found_NC: torch.Tensor | None,
    kept_2N: torch.Tensor,
    gain_C: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dx_NC, dgain_C, dbias_C = (
        x_NC.new_empty(x_NC.shape),
        gain_C.new_empty(gain_C.shape),
        gain_C.new_empty(gain_C.shape),
    )
    dfound_NC = None if found_NC is None else dx_NC.new_empty(dx_NC.shape, dtype=torch.bfloat16)
    inputs = [
        None if tensor is None else tensor.contiguous()
        for tensor in (dy_NC, dsum_NC, x_NC, found_NC, kept_2N, gain_C)
    ]
    addresses = map(_at, (*inputs, dx_NC, dfound_NC, dgain_C, dbias_C))
    if not _kernel().backward(*addresses, *x_NC.shape):  # type: ignore[union-attr]
        raise MemoryError(f"no memory for the norm of {tuple(x_NC.shape)}")
    return dx_NC, dx_NC if dfound_NC is None else dfound_NC, dgain_C, dbias_C


def _at(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
