"""Kernels in C and Triton that replace parts of the model, and the function that installs them.

The model exposes the places where another implementation can be installed (the seam, described in
`gptcli.model.transformer`); `install` fills them and `uninstall` restores PyTorch. Parameters and
their names do not change. An installed kernel checks its operands on every call, and falls back to
PyTorch for those that it does not support, or if it cannot be built here.

    place                               kernel                          supports
    Attention.attention_fn              attention_kernel                bf16 and fp32, any CPU
    GPT.head_loss (its `kernel`)        head_kernel                     bf16, any CPU
                                        head_triton                     bf16 and fp16, CUDA with
                                                                        Triton
    Block.block_fn, if `fuse_blocks`    layer_kernel, of norm_kernel    bf16 by autocast, fp32
                                        and linear_kernel               weights, any CPU
    and GPT.norm_fn, if `fuse_sums`     block_triton                    bf16 and fp16 by autocast,
                                                                        CUDA with Triton
    SmallBatchLinear.linear_fn,         decode_kernel                   fp32, bf16 and int8 weights,
    Int8Linear.linear_fn                                                any CPU
                                        decode_triton                   the same, CUDA with Triton

`build` compiles the C sources with the machine's compiler on first use, for AMX, AVX-512 with or
without bf16, AVX2 or NEON: `wide.h` has vectors for all of them, and `products.h` the products of
matrices, of bf16 operands where the processor multiplies them faster and else of fp32 ones. Triton
builds its own. `adamw_kernel` updates the weights of any model. Nothing else in the package needs
this folder: callers reach it through `gptcli.optional_kernels`, which works without it.

The names below are imported when they are first used: `bpe_kernel`, which learns a vocabulary, and
`spell_kernel`, which spells token ids, run where PyTorch is not imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptcli.kernels.bpe_kernel import merge_learner
    from gptcli.kernels.build import (
        can_be_built,
        compiler_failure,
        instruction_set,
        lack_compiler,
    )
    from gptcli.kernels.decode_kernel import decode_step
    from gptcli.kernels.installation import (
        Kernel,
        available,
        before_compilation,
        fuses_layers,
        install,
        uninstall,
    )
    from gptcli.kernels.spell_kernel import spell_ids

__all__ = [
    "Kernel",
    "available",
    "before_compilation",
    "can_be_built",
    "compiler_failure",
    "decode_step",
    "fuses_layers",
    "install",
    "instruction_set",
    "lack_compiler",
    "merge_learner",
    "spell_ids",
    "uninstall",
]

_MODULES = {
    **dict.fromkeys(
        ("can_be_built", "compiler_failure", "instruction_set", "lack_compiler"), "build"
    ),
    **dict.fromkeys(
        ("Kernel", "available", "before_compilation", "fuses_layers", "install", "uninstall"),
        "installation",
    ),
    "decode_step": "decode_kernel",
    "merge_learner": "bpe_kernel",
    "spell_ids": "spell_kernel",
}
"""Module of every name."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"gptcli.kernels.{_MODULES[name]}"), name)
