"""A whole pre-norm layer as one node of autograd: the kernels of `norm_kernel`, called one by one.

A small layer takes as long in PyTorch's operators, and in the compiler's checks before each of its
graphs, as in its products. Here nothing but the kernels runs between a layer's input and output, in
either direction. They are those of the compiled layer, so the numbers are the same.

Shapes: N positions, C d_model, F d_ff, B batch, T positions of a sequence, H heads, D d_head.
"""

from __future__ import annotations

from typing import Any

import torch

from gptcli.kernels import attention_kernel, linear_kernel, norm_kernel
from gptcli.kernels.norm_kernel import fused_block
from gptcli.model.transformer import Block, Cache, Documents, block_forward


def train_layer(
    block: Block,
    x_BTC: torch.Tensor,
    cache: Cache | None = None,
    documents: Documents | None = None,
) -> torch.Tensor:
    """Return the residual stream after one layer in training, as `block_forward` does.

    Compiled, it is `fused_block`; eager, one node where that is supported.
    """
    if torch.compiler.is_compiling():
        return fused_block(block, x_BTC, cache, documents)
    if supports(block, x_BTC, cache, documents):
        return layer(block, x_BTC)
    return block_forward(block, x_BTC, cache, documents)


def supports(
    block: Block, x_BTC: torch.Tensor, cache: Cache | None, documents: Documents | None
) -> bool:
    """Return whether `layer` can compute a layer: pre-norm, bf16 by autocast, no dropout, no mask
    but that of the causal band.
    """
    return (
        cache is None
        and documents is None
        and not block.post_norm
        and not (block.training and block.drop.p)
        and linear_kernel.supports(x_BTC, block.attn.c_attn.weight)
        and norm_kernel.supports(x_BTC, block.ln_1.weight, block.ln_2.weight)
        and attention_kernel.available()
    )


def trains(block: Block) -> bool:
    """Return whether a layer is trained by `layer`, as known before the first step: if it is not
    compiled, products run in bf16, and neither a mask nor weights gathered in bf16 come with it.
    """
    return (
        block.block_fn is train_layer
        and not block.post_norm
        and not block.drop.p
        and block.attn.c_attn.weight.device.type == "cpu"
        and norm_kernel.available()
        and attention_kernel.available()
    )


def layer(block: Block, x_BTC: torch.Tensor) -> torch.Tensor:
    """Return the residual stream after a layer that is supported, (B, T, C)."""
    attn, mlp = block.attn, block.mlp
    modules = block.ln_1, attn.c_attn, attn.c_proj, block.ln_2, mlp.c_fc, mlp.c_proj
    parameters = (p for module in modules for p in (module.weight, module.bias))
    out_BTC: torch.Tensor = Layer.apply(
        x_BTC, *parameters, block.ln_1.eps, attn.d_head, attn.band or x_BTC.shape[1]
    )
    return out_BTC


class Layer(torch.autograd.Function):
    """One layer, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x_BTC: torch.Tensor, *rest: Any) -> torch.Tensor:
        """Return the residual stream after the layer; `rest` are parameters, eps, D and band."""
        gain_1, bias_1, attn, attn_bias, proj, proj_bias, *rest_of_mlp, eps, D, band = rest
        gain_2, bias_2, fc, fc_bias, out, out_bias = rest_of_mlp
        B, T, C = x_BTC.shape
        x_NC = x_BTC.reshape(-1, C)
        _, normed_1, stats_1 = norm_kernel.run_forward(x_NC, None, gain_1, bias_1, eps)
        qkv_NC, _ = linear_kernel.run_forward(normed_1, attn, attn_bias)
        qkv = qkv_NC.view(B, T, -1, 3, D)
        heads, log_sum = attention_kernel.run_forward(qkv, band)
        attention_NC, _ = linear_kernel.run_forward(heads.view(len(x_NC), -1), proj, proj_bias)
        sum_NC, normed_2, stats_2 = norm_kernel.run_forward(x_NC, attention_NC, gain_2, bias_2, eps)
        before, after = linear_kernel.run_forward(normed_2, fc, fc_bias, gelu=True)
        mlp_NC, _ = linear_kernel.run_forward(after, out, out_bias)
        ctx.band = band
        ctx.save_for_backward(
            x_NC, normed_1, stats_1, qkv, heads, log_sum, attention_NC, normed_2, stats_2,
            before, after, gain_1, attn, proj, gain_2, fc, out,
        )  # fmt: skip
        return sum_NC.add_(mlp_NC).view(x_BTC.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the layer's input and of its parameters."""
        (
            x_NC, normed_1, stats_1, qkv, heads, log_sum, attention_NC, normed_2, stats_2,
            before, after, gain_1, attn, proj, gain_2, fc, out,
        ) = ctx.saved_tensors  # fmt: skip
        shape, dsum_NC = grads[0].shape, grads[0].reshape(x_NC.shape)
        dmlp_NC = dsum_NC.bfloat16()
        dbefore, *of_out = linear_kernel.run_backward(dmlp_NC, after, out, before)
        dnormed_2, *of_fc = linear_kernel.run_backward(dbefore, normed_2, fc)
        dsum_NC, dattention_NC, *of_norm_2 = norm_kernel.run_backward(
            dnormed_2, dsum_NC, x_NC, attention_NC, stats_2, gain_2
        )
        heads_NC = heads.view(len(x_NC), -1)
        dheads_NC, *of_proj = linear_kernel.run_backward(dattention_NC, heads_NC, proj)
        dheads = dheads_NC.view(heads.shape)
        dqkv = attention_kernel.run_backward(dheads, qkv, heads, log_sum, ctx.band)
        dqkv_NC = dqkv.view(len(x_NC), -1)
        dnormed_1, *of_attn = linear_kernel.run_backward(dqkv_NC, normed_1, attn)
        dx_NC, _, *of_norm_1 = norm_kernel.run_backward(
            dnormed_1, dsum_NC, x_NC, None, stats_1, gain_1
        )
        gradients = *of_norm_1, *of_attn, *of_proj, *of_norm_2, *of_fc, *of_out
        return dx_NC.view(shape), *gradients, None, None, None
