"""One layer of the model by `linear_kernel` and `norm_kernel`, for compiled training.

The linear kernel takes the output of a LayerNorm in bf16, and nothing else reads that output. The
norm kernel therefore reads the residual stream once, adds the output of the previous sub-block,
and writes bf16. Post-norm layers, in which the output of LayerNorm is the residual stream, use
PyTorch's LayerNorm.
"""

from __future__ import annotations

import torch

from gptcli.kernels import linear_kernel, norm_kernel
from gptcli.kernels.norm_kernel import Norm, add_norm
from gptcli.model.transformer import MLP, Attention, Block, Cache, block_forward


def fused_block(
    block: Block,
    x_BTC: torch.Tensor,
    cache: Cache | None = None,
    documents_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the residual stream after one layer, as `block_forward` does."""
    if not linear_kernel.supports(x_BTC, block.attn.c_attn.weight):
        return block_forward(block, x_BTC, cache, documents_BT)
    drop, one, two = block.drop, block.ln_1, block.ln_2
    if block.post_norm:
        x_BTC = one(x_BTC + drop(_attention(block.attn, x_BTC, cache, documents_BT)))
        return two(x_BTC + drop(_mlp(block.mlp, x_BTC)))
    if not norm_kernel.supports(x_BTC, one.weight, two.weight):
        x_BTC = x_BTC + drop(_attention(block.attn, one(x_BTC), cache, documents_BT))
        return x_BTC + drop(_mlp(block.mlp, two(x_BTC)))
    x_NC, y_NC = Norm.apply(x_BTC.flatten(0, -2), one.weight, one.bias, one.eps)
    branch_BTC = _attention(block.attn, y_NC.view(x_BTC.shape), cache, documents_BT)
    branch_NC = drop(branch_BTC).flatten(0, -2).bfloat16()
    x_NC, y_NC, _ = add_norm(x_NC, branch_NC, two.weight, two.bias, two.eps)
    return x_NC.view(x_BTC.shape) + drop(_mlp(block.mlp, y_NC.view(x_BTC.shape)))


def _attention(
    attn: Attention,
    x_BTC: torch.Tensor,
    cache: Cache | None,
    documents_BT: torch.Tensor | None,
) -> torch.Tensor:
    """Return the output of the attention sub-block, with both projections by the kernel."""
    B, T, _ = x_BTC.shape
    qkv_BTH3D = linear_kernel.apply(attn.c_attn, x_BTC).view(B, T, -1, 3, attn.d_head)
    return linear_kernel.apply(attn.c_proj, attn.multi_head(qkv_BTH3D, cache, documents_BT))


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
