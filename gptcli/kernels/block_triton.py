"""Layers in compiled training on a CUDA GPU: cuBLAS's products, and `training_triton` between.

A branch is added to the residual stream by the LayerNorm that reads the sum. The last branch of a
layer therefore leaves it unadded (`hand_on`), for the first LayerNorm of the next layer or the
model's last (`final_norm`). If something else reads the output of a layer, `train_block` adds it.
Post-norm layers, exact GELU, dropout, fp8 and fp32 are PyTorch's.

Shapes: N positions, C d_model, F d_ff, B batch, H heads, T positions of a sequence, D d_head, O
outputs of a product, P programs that keep sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from gptcli.kernels.build import has_triton
from gptcli.kernels.training_triton import gelu_backward, norm, norm_backward, pack, round_and_sum
from gptcli.model.attention import attention, flex_masked
from gptcli.model.transformer import Block, Cache, Documents, block_forward, gelu

HALF = (torch.bfloat16, torch.float16)
MAX_D_MODEL = 8192
"""Widest rows of which a program keeps three sums in registers."""


def available() -> bool:
    """Return whether the kernels can be built and started."""
    return has_triton()


def supports(block: Block, x_BTC: torch.Tensor, documents: Documents | None) -> bool:
    """Return whether the kernels can run a layer on this input, under the current autocast."""
    linear = (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
    return (
        x_BTC.device.type == "cuda"
        and x_BTC.dtype == torch.float32
        and 0 < x_BTC.shape[-1] <= MAX_D_MODEL
        and torch.is_autocast_enabled("cuda")
        and torch.get_autocast_dtype("cuda") in HALF
        and not (block.post_norm or isinstance(documents, torch.Tensor))
        and (block.drop.p == 0 or not block.training)
        and all(type(module) is nn.Linear for module in linear)  # fp8 has its own
        and available()
    )


class Unadded(NamedTuple):
    """Residual stream after a layer, as terms of a sum."""

    stream: torch.Tensor
    """The stream without the layer's last branch, (B, T, C) in fp32."""
    output: torch.Tensor
    """Output of the last product, (N, C)."""
    bias: torch.Tensor
    """The bias of that product, (C,)."""


def train_block(
    block: Block,
    x_BTC: torch.Tensor | Unadded,
    cache: Cache | None = None,
    documents: Documents | None = None,
) -> torch.Tensor:
    """Return the residual stream after one layer, as `block_forward` does."""
    return added(hand_on(block, x_BTC, cache, documents))


def hand_on(
    block: Block,
    x_BTC: torch.Tensor | Unadded,
    cache: Cache | None = None,
    documents: Documents | None = None,
) -> torch.Tensor | Unadded:
    """Return the residual stream after one layer, without its last sum if the kernels support it.

    The next `block_fn` and `norm_fn` must be of this module.
    """
    stream_BTC = x_BTC.stream if isinstance(x_BTC, Unadded) else x_BTC
    if cache is not None or not supports(block, stream_BTC, documents):
        return block_forward(block, added(x_BTC), cache, documents)
    dtype = torch.get_autocast_dtype("cuda")
    with torch.autocast("cuda", enabled=False):
        return fused(block, x_BTC, documents, dtype)


def final_norm(ln_f: nn.LayerNorm, x_BTC: torch.Tensor | Unadded) -> torch.Tensor:
    """Return the model's last LayerNorm; of a sum, in the type of the branch."""
    if not isinstance(x_BTC, Unadded):
        return ln_f(x_BTC)
    with torch.autocast("cuda", enabled=False):
        return _norm(ln_f, x_BTC, x_BTC.output.dtype)[1].view_as(x_BTC.stream)


def added(x_BTC: torch.Tensor | Unadded) -> torch.Tensor:
    """Return the residual stream as one tensor."""
    if not isinstance(x_BTC, Unadded):
        return x_BTC
    x_NC = x_BTC.stream.flatten(0, 1)
    return Residual.apply(x_NC, x_BTC.output, x_BTC.bias).view_as(x_BTC.stream)


def fused(
    block: Block, x_BTC: torch.Tensor | Unadded, documents: Documents | None, dtype: torch.dtype
) -> Unadded:
    """Return the residual stream after one layer, with products in `dtype`."""
    attn, mlp = block.attn, block.mlp
    B, T, C = (x_BTC.stream if isinstance(x_BTC, Unadded) else x_BTC).shape
    x_NC, y_NC = _norm(block.ln_1, x_BTC, dtype)
    q, k, v = Projection.apply(
        y_NC, attn.c_attn.weight.to(dtype), attn.c_attn.bias.to(dtype), (B, T, attn.d_head)
    )
    if documents is not None and not isinstance(documents, torch.Tensor) and attn.band in documents:
        y_BHTD = flex_masked(q, k, v, documents[attn.band])
    else:
        y_BHTD = attention(q, k, v, band=attn.band)
    branch_NC = y_BHTD.transpose(1, 2).reshape(-1, C) @ attn.c_proj.weight.to(dtype).T
    x_BTC = Unadded(x_NC.view(B, T, C), branch_NC, attn.c_proj.bias)
    x_NC, y_NC = _norm(block.ln_2, x_BTC, dtype)
    hidden_NF = Hidden.apply(y_NC, mlp.c_fc.weight.to(dtype), mlp.c_fc.bias.to(dtype))
    last_NC = hidden_NF @ mlp.c_proj.weight.to(dtype).T
    # a copy: FSDP frees the parameters of a layer before the next one reads them
    return Unadded(x_NC.view(B, T, C), last_NC, mlp.c_proj.bias.clone())


def _norm(
    module: nn.LayerNorm, x_BTC: torch.Tensor | Unadded, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the residual stream, (N, C), and its LayerNorm in `dtype`."""
    x_BTC, *terms = x_BTC if isinstance(x_BTC, Unadded) else (x_BTC, None, None)
    return Norm.apply(x_BTC.flatten(0, 1), *terms, module.weight, module.bias, module.eps, dtype)


class Norm(torch.autograd.Function):
    """Residual sum of x, branch and bias, or x alone, and its LayerNorm."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NC: torch.Tensor,
        branch_NC: torch.Tensor | None,
        bias_C: torch.Tensor | None,
        gain_C: torch.Tensor,
        shift_C: torch.Tensor,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum and its LayerNorm in `dtype`."""
        ctx.set_materialize_grads(False)  # nothing else reads the sum of the model's last one
        sum_NC, y_NC, stats_2N = norm(x_NC, branch_NC, bias_C, gain_C, shift_C, eps, dtype)
        if branch_NC is None:
            sum_NC = x_NC.view_as(x_NC)
        ctx.dtypes = [None if part is None else part.dtype for part in (branch_NC, bias_C)]
        ctx.save_for_backward(sum_NC, stats_2N, gain_C)
        return sum_NC, y_NC

    @staticmethod
    def backward(
        ctx: Any, dsum_NC: torch.Tensor | None, dy_NC: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, branch, bias, gain and shift."""
        sum_NC, stats_2N, gain_C = ctx.saved_tensors
        dtype, bias_dtype = ctx.dtypes
        dx_NC, dbranch_NC, sums_3PC = norm_backward(dy_NC, dsum_NC, sum_NC, stats_2N, gain_C, dtype)
        dgain_C, dshift_C, dbias_C = sums_3PC.sum(1).unbind()
        of_norm = dgain_C.to(gain_C.dtype), dshift_C.to(gain_C.dtype), None, None
        if dtype is None:
            return dx_NC, None, None, *of_norm
        return dx_NC, dbranch_NC, dbias_C.to(bias_dtype), *of_norm


class Projection(torch.autograd.Function):
    """Projection to queries, keys and values."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NC: torch.Tensor,
        weight_3CxC: torch.Tensor,
        bias_3C: torch.Tensor,
        shape: tuple[int, int, int],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return q, k and v, each (B, H, T, D); `shape` is (B, T, D)."""
        B, T, D = shape
        qkv_N3C = torch.addmm(bias_3C, x_NC, weight_3CxC.T)
        ctx.save_for_backward(x_NC, weight_3CxC)
        q, k, v = qkv_N3C.view(B, T, -1, 3, D).transpose(1, 2).unbind(3)
        return q, k, v

    @staticmethod
    def backward(
        ctx: Any, dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, weight and bias."""
        x_NC, weight_3CxC = ctx.saved_tensors
        dqkv_N3C, sums_PxC = pack(dq, dk, dv)
        return *_products(dqkv_N3C, x_NC, weight_3CxC, sums_PxC), None


class Hidden(torch.autograd.Function):
    """First linear layer of an MLP, and GELU."""

    @staticmethod
    def forward(
        ctx: Any, x_NC: torch.Tensor, weight_FC: torch.Tensor, bias_F: torch.Tensor
    ) -> torch.Tensor:
        """Return gelu(x·Wᵀ + b), (N, F)."""
        before_NF = torch.addmm(bias_F, x_NC, weight_FC.T)
        ctx.save_for_backward(x_NC, before_NF, weight_FC)
        return gelu(before_NF)

    @staticmethod
    def backward(ctx: Any, dy_NF: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the gradients of x, weight and bias."""
        x_NC, before_NF, weight_FC = ctx.saved_tensors
        dbefore_NF, sums_PF = gelu_backward(dy_NF, before_NF)
        return _products(dbefore_NF, x_NC, weight_FC, sums_PF)


class Residual(torch.autograd.Function):
    """Sum of the residual stream and a branch with the bias of its last product."""

    @staticmethod
    def forward(
        ctx: Any, x_NC: torch.Tensor, branch_NC: torch.Tensor, bias_C: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum in fp32."""
        ctx.dtypes = branch_NC.dtype, bias_C.dtype
        return x_NC + (branch_NC + bias_C.float())

    @staticmethod
    def backward(ctx: Any, dsum_NC: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the gradients of the stream, the branch and its bias."""
        dtype, bias_dtype = ctx.dtypes
        dbranch_NC, sums_PC = round_and_sum(dsum_NC, dtype)
        return dsum_NC, dbranch_NC, sums_PC.sum(0).to(bias_dtype)


def _products(
    dy_NO: torch.Tensor, x_NC: torch.Tensor, weight_OC: torch.Tensor, sums_PO: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of a linear layer's input, weight and bias."""
    return dy_NO @ weight_OC, dy_NO.T @ x_NC, sums_PO.sum(0).to(weight_OC.dtype)
