"""Installation of kernels in a model: the places of the seam, filled and restored."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from gptcli.kernels import (
    attention_kernel,
    block_triton,
    head_kernel,
    linear_kernel,
    norm_kernel,
)
from gptcli.kernels.block_triton import final_norm, hand_on, train_block
from gptcli.kernels.decode_kernel import small_batch_linear
from gptcli.kernels.decode_triton import decode_block, few_rows_linear
from gptcli.kernels.layer_kernel import train_layer, trains
from gptcli.model.transformer import GPT, Attention, Block

Kernel = Literal["attention", "head", "linear", "norm"]
_AVAILABLE: dict[Kernel, Callable[[], bool]] = {
    "attention": attention_kernel.available,
    "head": head_kernel.available,
    "linear": linear_kernel.available,
    "norm": norm_kernel.available,
}


def available(kernel: Kernel) -> bool:
    """Return whether a kernel can be built and run on this machine."""
    return _AVAILABLE[kernel]()


def before_compilation() -> None:
    """Tell torch.compile that the answers of `available` are constants: call this before it.

    Otherwise a graph would end at each question, which is not an operation of PyTorch. They are not
    marked when they are defined, because that imports the compiler, which takes a second.
    """
    for module in (attention_kernel, block_triton, linear_kernel, norm_kernel):
        torch.compiler.assume_constant_result(module.available)


def install(module: nn.Module, *, fuse_blocks: bool = False, fuse_sums: bool = False) -> None:
    """Install the kernels in a GPT, a part of one, or a single block, in place.

    `fuse_blocks` is for training, compiled on a GPU: it replaces the linear layers, LayerNorms and
    residual sums of a block, without tensor parallelism. With `fuse_sums` as well, the layers of a whole GPT
    on a CUDA GPU leave their last sum to the LayerNorm after it. A second call replaces the first.
    """
    uninstall(module)
    hands_on = (
        fuse_sums
        and fuse_blocks
        and isinstance(module, GPT)
        and isinstance(module.ln_f, nn.LayerNorm)
    )
    for part in module.modules():
        if isinstance(part, Attention):
            part.attention_fn = attention_kernel.attention_packed
        elif isinstance(part, Block) and part.mlp.gelu == "tanh":  # the kernels have no other
            on_gpu = _on_gpu(part.ln_1.weight)
            if fuse_blocks:
                fused = hand_on if hands_on else train_block
                _set(part, "block_fn", fused if on_gpu else train_layer)
            elif on_gpu and hasattr(part.attn.c_attn, "linear_fn"):
                part.block_fn = decode_block
        # GPT or a pipeline stage, and the linear layers of `gptcli.sampling.load`
        loss: Any = getattr(part, "head_loss", None)
        if loss is not None:
            _set(part, "head_loss", partial(loss, kernel=head_kernel))
        if hasattr(part, "linear_fn"):
            weight: Any = part.weight_NK if hasattr(part, "weight_NK") else part.weight
            _set(part, "linear_fn", few_rows_linear if _on_gpu(weight) else small_batch_linear)
    if hands_on:
        _set(module, "norm_fn", final_norm)


def fuses_layers(module: nn.Module) -> bool:
    """Return whether a layer of a model is one node of autograd in uncompiled training in bf16, if it
    gets fp32 weights and no mask. Its last bits are not those of PyTorch's layer.
    """
    return any(trains(part) for part in module.modules() if isinstance(part, Block))


def _on_gpu(weight: torch.Tensor) -> bool:
    return weight.device.type == "cuda"


def uninstall(module: nn.Module) -> None:
    """Restore PyTorch wherever `install` has put a kernel, in place."""
    for part in module.modules():
        for name in ("attention_fn", "block_fn", "linear_fn", "norm_fn"):
            part.__dict__.pop(name, None)
        loss = part.__dict__.get("head_loss")
        if isinstance(loss, partial) and "kernel" in loss.keywords:
            others = {name: value for name, value in loss.keywords.items() if name != "kernel"}
            _set(part, "head_loss", partial(loss.func, *loss.args, **others))


def _set(module: nn.Module, name: str, function: Any) -> None:
    """Set an attribute that the type of the module declares but nn.Module does not."""
    setattr(module, name, function)
