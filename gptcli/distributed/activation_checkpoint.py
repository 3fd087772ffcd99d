"""Activation recomputation, layer by layer (Chen et al. 2016; Korthikanti et al. 2022): memory for
work.

"full" keeps a layer's input and runs the layer again in the backward pass. "selective" keeps what
is dear to compute, the products and attention, and computes norms, GELU, residuals and dropout
again: attention's scores, which the paper means, are never written here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.attention.varlen
from torch._higher_order_ops.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from gptcli import optional_kernels

# As varlen above, this registers an operator that is named below.
from gptcli.model import banded_attention  # noqa: F401

DEAR = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.gptcli.banded_blocks.default,
    torch.ops.torch_attn._varlen_attn.default,
    flex_attention,
]
if optional_kernels.kernels() is not None:
    DEAR.append(torch.ops.gptcli.packed_attend.default)


def recomputed(
    forward: Callable[..., torch.Tensor], how: str, *, drops: bool
) -> Callable[..., torch.Tensor]:
    """A layer's `forward`, computed again as `how` says: "none", "selective" or "full". `drops`:
    its dropout must come out the same.
    """
    if how == "none":
        return forward
    selective: dict[str, Any] = (
        {"context_fn": partial(create_selective_checkpoint_contexts, DEAR)}
        if how == "selective"
        else {}
    )
    return partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=drops, **selective)
