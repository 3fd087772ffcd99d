"""Activation checkpointing of one layer (Chen et al. 2016; Korthikanti et al. 2022).

"full" saves the input of a layer and runs the layer again in the backward pass. "selective" saves
the outputs of the expensive operators, matrix products and attention, and recomputes norms, GELU,
residual sums and dropout. The attention scores, which the second paper recomputes, are never
materialized by the kernels used here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.attention.flex_attention
import torch.nn.attention.varlen
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from gptcli import optional_kernels

# imported, like the two of torch above, because it registers an operator named below
from gptcli.model import attention  # noqa: F401

SAVE_OPS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.gptcli.banded_blocks.default,
    torch.ops.torch_attn._varlen_attn.default,
    torch.ops.higher_order.flex_attention,
]
"""Operators whose outputs selective checkpointing saves."""
if optional_kernels.kernels() is not None:
    SAVE_OPS.append(torch.ops.gptcli.packed_attend.default)


def checkpoint_forward(
    forward: Callable[..., torch.Tensor], recompute: str, *, preserve_rng: bool
) -> Callable[..., torch.Tensor]:
    """Return a layer's `forward` with activation checkpointing: "none", "selective" or "full".

    With `preserve_rng` the recomputation draws the same dropout masks.
    """
    if recompute == "none":
        return forward
    options: dict[str, Any] = {}
    if recompute == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, SAVE_OPS)
    return partial(
        checkpoint, forward, use_reentrant=False, preserve_rng_state=preserve_rng, **options
    )
