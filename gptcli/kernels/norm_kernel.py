"""One layer of the model for training: `linear_kernel`, and its LayerNorms by `norm.c`.

The linear kernel takes the output of a LayerNorm in bf16, and nothing else reads that output. The
norm kernel therefore reads the residual stream once, adds the output of the previous sub-block,
and writes bf16. Its backward pass adds the gradient that reaches its input through the residual
connection. Post-norm layers, in which the output of LayerNorm is the residual stream, use PyTorch's
LayerNorm.

Shapes: N positions, C d_model, B batch, T positions of a sequence, H heads, D d_head.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch

from gptcli.kernels import linear_kernel
from gptcli.kernels.build import library
from gptcli.kernels.linear_kernel import LONG, POINTER
from gptcli.model.transformer import MLP, Attention, Block, Cache, Documents, block_forward

SOURCES = {torch.bfloat16: "norm", torch.float32: "norm_fp32"}


def supports(x: torch.Tensor, *gains: torch.Tensor) -> bool:
    """Return whether the kernel can run on an input and the gains of its norms, all in fp32."""
    return all(tensor.dtype == torch.float32 for tensor in (x, *gains)) and available()


def available(dtype: torch.dtype = torch.bfloat16) -> bool:
    """Return whether the kernel can be built and run here, and that of linear layers in bf16."""
    if dtype == torch.bfloat16 and not linear_kernel.available():
        return False
    return _kernel(dtype) is not None


@functools.cache
def _kernel(dtype: torch.dtype = torch.bfloat16) -> ctypes.CDLL | None:
    """Return the library for LayerNorms whose output, and whose branch, have a dtype."""
    kernel = library(SOURCES[dtype])
    if kernel is not None:
        kernel.forward.argtypes, kernel.forward.restype = (
            [*[POINTER] * 7, LONG, LONG, ctypes.c_double],
            None,
        )
        kernel.backward.argtypes = [*[POINTER] * 10, LONG, LONG]
    return kernel


class Norm(torch.autograd.Function):
    """LayerNorm in bf16, together with its unchanged input for the residual connection.

    The backward pass adds the gradients of both outputs in one pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NC: torch.Tensor, gain_C: torch.Tensor, bias_C: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x and its LayerNorm."""
        y_NC, stats_2N = norm(x_NC, gain_C, bias_C, eps)
        ctx.save_for_backward(x_NC, stats_2N, gain_C)
        return x_NC.view_as(x_NC), y_NC

    @staticmethod
    def backward(
        ctx: Any, dx_NC: torch.Tensor, dy_NC: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, gain and bias."""
        return *norm_backward(dy_NC, dx_NC, *ctx.saved_tensors), None


@torch.library.custom_op("gptcli::norm", mutates_args=(), device_types="cpu")
def norm(
    x_NC: torch.Tensor, gain_C: torch.Tensor, bias_C: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the LayerNorm of x in bf16, and the mean and 1/deviation of each row, (2, N)."""
    _, y_NC, stats_2N = run_forward(x_NC, None, gain_C, bias_C, eps)
    return y_NC, stats_2N


@torch.library.custom_op("gptcli::norm_backward", mutates_args=(), device_types="cpu")
def norm_backward(
    dy_NC: torch.Tensor,
    dx_NC: torch.Tensor,
    x_NC: torch.Tensor,
    stats_2N: torch.Tensor,
    gain_C: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, gain and bias in fp32; that of x includes `dx_NC`."""
    dx_NC, _, dgain_C, dbias_C = run_backward(dy_NC, dx_NC, x_NC, None, stats_2N, gain_C)
    return dx_NC, dgain_C, dbias_C


@torch.library.custom_op("gptcli::add_norm", mutates_args=(), device_types="cpu")
def add_norm(
    x_NC: torch.Tensor,
    branch_NC: torch.Tensor,
    gain_C: torch.Tensor,
    bias_C: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x + branch, its LayerNorm in bf16, and the mean and 1/deviation of each row, (2, N).

    `branch_NC` is the output of a sub-block in bf16.
    """
    return run_forward(x_NC, branch_NC, gain_C, bias_C, eps)


@torch.library.custom_op("gptcli::add_norm_backward", mutates_args=(), device_types="cpu")
def add_norm_backward(
    dy_NC: torch.Tensor,
    dsum_NC: torch.Tensor,
    x_NC: torch.Tensor,
    branch_NC: torch.Tensor,
    stats_2N: torch.Tensor,
    gain_C: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x in fp32, of the branch in bf16, and of gain and bias."""
    return run_backward(dy_NC, dsum_NC, x_NC, branch_NC, stats_2N, gain_C)


@norm.register_fake
def _(x_NC: torch.Tensor, *_rest: Any) -> tuple[torch.Tensor, ...]:
    return x_NC.new_empty(x_NC.shape, dtype=torch.bfloat16), x_NC.new_empty(2, x_NC.shape[0])


@norm_backward.register_fake
def _(
    dy_NC: torch.Tensor,
    dx_NC: torch.Tensor,
    x_NC: torch.Tensor,
    stats_2N: torch.Tensor,
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
        x_NC.new_empty(2, x_NC.shape[0]),
    )


@add_norm_backward.register_fake
def _(
    dy_NC: torch.Tensor,
    dsum_NC: torch.Tensor,
    x_NC: torch.Tensor,
    branch_NC: torch.Tensor,
    stats_2N: torch.Tensor,
    gain_C: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    dx_NC, dgain_C = x_NC.new_empty(x_NC.shape), gain_C.new_empty(gain_C.shape)
    return (
        dx_NC,
        dx_NC.new_empty(dx_NC.shape, dtype=torch.bfloat16),
        dgain_C,
        gain_C.new_empty(gain_C.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    # not the sum: the norm before keeps x, and the branch takes half of the sum's memory
    ctx.save_for_backward(*inputs[:2], output[2], inputs[2])


def _add_norm_backward(
    ctx: Any, dsum_NC: torch.Tensor, dy_NC: torch.Tensor, _: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    return *add_norm_backward(dy_NC, dsum_NC, *ctx.saved_tensors), None


add_norm.register_autograd(_add_norm_backward, setup_context=_save)


def run_forward(
    x_NC: torch.Tensor,
    branch_NC: torch.Tensor | None,
    gain_C: torch.Tensor,
    bias_C: torch.Tensor,
    eps: float,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the results of `add_norm`; without a branch, the sum is x itself.

    The LayerNorm, and the branch, have `dtype`.
    """
    sum_NC = x_NC if branch_NC is None else x_NC.new_empty(x_NC.shape)
    y_NC, stats_2N = (
        x_NC.new_empty(x_NC.shape, dtype=dtype),
        x_NC.new_empty(2, x_NC.shape[0]),
    )
    inputs = [
        None if tensor is None else tensor.contiguous()
        for tensor in (x_NC, branch_NC, gain_C, bias_C)
    ]
    addresses = map(_address, (*inputs, sum_NC, y_NC, stats_2N))
    _kernel(dtype).forward(*addresses, *x_NC.shape, eps)  # type: ignore[union-attr]
    return sum_NC, y_NC, stats_2N


def run_backward(
    dy_NC: torch.Tensor,
    dsum_NC: torch.Tensor,
    x_NC: torch.Tensor,
    branch_NC: torch.Tensor | None,
    stats_2N: torch.Tensor,
    gain_C: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the results of `add_norm_backward`; without a branch, its gradient is that of x."""
    dx_NC, dgain_C, dbias_C = (
        x_NC.new_empty(x_NC.shape),
        gain_C.new_empty(gain_C.shape),
        gain_C.new_empty(gain_C.shape),
    )
    dbranch_NC = None if branch_NC is None else dx_NC.new_empty(dx_NC.shape, dtype=dy_NC.dtype)
    inputs = [
        None if tensor is None else tensor.contiguous()
        for tensor in (dy_NC, dsum_NC, x_NC, branch_NC, stats_2N, gain_C)
    ]
    addresses = map(_address, (*inputs, dx_NC, dbranch_NC, dgain_C, dbias_C))
    if not _kernel(dy_NC.dtype).backward(*addresses, *x_NC.shape):  # type: ignore[union-attr]
        raise MemoryError(f"out of memory in a LayerNorm of shape {tuple(x_NC.shape)}")
    return dx_NC, dx_NC if dbranch_NC is None else dbranch_NC, dgain_C, dbias_C


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def fused_block(
    block: Block,
    x_BTC: torch.Tensor,
    cache: Cache | None = None,
    documents: Documents | None = None,
) -> torch.Tensor:
    """Return the residual stream after one layer, as `block_forward` does."""
    if not linear_kernel.supports(x_BTC, block.attn.c_attn.weight):
        return block_forward(block, x_BTC, cache, documents)
    drop, one, two = block.drop, block.ln_1, block.ln_2
    if block.post_norm:
        x_BTC = one(x_BTC + drop(_attention(block.attn, x_BTC, cache, documents)))
        return two(x_BTC + drop(_mlp(block.mlp, x_BTC)))
    if not supports(x_BTC, one.weight, two.weight):
        x_BTC = x_BTC + drop(_attention(block.attn, one(x_BTC), cache, documents))
        return x_BTC + drop(_mlp(block.mlp, two(x_BTC)))
    x_NC, y_NC = Norm.apply(x_BTC.flatten(0, -2), one.weight, one.bias, one.eps)
    branch_BTC = _attention(block.attn, y_NC.view(x_BTC.shape), cache, documents)
    branch_NC = drop(branch_BTC).flatten(0, -2).bfloat16()
    x_NC, y_NC, _ = add_norm(x_NC, branch_NC, two.weight, two.bias, two.eps)
    return x_NC.view(x_BTC.shape) + drop(_mlp(block.mlp, y_NC.view(x_BTC.shape)))


def _attention(
    attn: Attention,
    x_BTC: torch.Tensor,
    cache: Cache | None,
    documents: Documents | None,
) -> torch.Tensor:
    """Return the output of the attention sub-block, with both projections by the kernel."""
    B, T, _ = x_BTC.shape
    qkv_BTH3D = linear_kernel.apply(attn.c_attn, x_BTC).view(B, T, -1, 3, attn.d_head)
    return linear_kernel.apply(attn.c_proj, attn.multi_head(qkv_BTH3D, cache, documents))


def _mlp(mlp: MLP, x_BTC: torch.Tensor) -> torch.Tensor:
    """Return the output of the MLP sub-block by the kernel."""
    y_NC, _, _ = linear_kernel.mlp(
        x_BTC.flatten(0, -2).bfloat16(),
        mlp.c_fc.weight,
        mlp.c_fc.bias,
        mlp.c_proj.weight,
        mlp.c_proj.bias,
    )
    return y_NC.view(x_BTC.shape)
