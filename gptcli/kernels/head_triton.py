"""Loss of a chunk's logits and its gradient, in place, by Triton on a CUDA GPU.

PyTorch's compiler reads the logits for the sums of their exponentials, and reads and writes them
once more for the gradient. Here a program reads a row twice in short succession: a row of 50,304
logits in bf16 is 100 kB, so the second time it is still in the GPU's cache. llm.c's fused
classifier does the same. The products around it remain cuBLAS's.

Triton's interpreter runs the kernel in the tests, and tests/gpu compiles it to machine code; it has
not been run on a GPU by us.

Shapes: n positions of a chunk, V vocabulary, P vocabulary with padding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from gptcli.kernels.build import has_triton
from gptcli.model.loss import IGNORE

BLOCK = 8192
"""Logits that a program reads at a time: eight a thread."""
WARPS = 32
"""Few programs on a multiprocessor: the rows in flight have to fit in the cache of the GPU."""


def both_for(x_NC: torch.Tensor) -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
    """Return `loss_to_gradient_` if it can run on the logits of x, otherwise None."""
    half = x_NC.dtype in (torch.bfloat16, torch.float16)
    return loss_to_gradient_ if x_NC.device.type == "cuda" and half and has_triton() else None


@torch.library.custom_op("gptcli::triton_loss", mutates_args=("logits_nP",))
def loss_to_gradient_(
    logits_nP: torch.Tensor, target_n1: torch.Tensor, V: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log(sum(exp(logits))) over V entries and the targets' logits, (n, 1) in fp32.

    The logits become the gradient of the loss: 0 in padding, and in rows whose target is IGNORE.
    Every other target is an entry.
    """
    n, P = logits_nP.shape
    log_sum_n1, target_logit_n1 = _results(logits_nP)
    kernel()[(n,)](
        logits_nP, target_n1.contiguous(), log_sum_n1, target_logit_n1, V, P,
        IGNORE=IGNORE, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return log_sum_n1, target_logit_n1


@loss_to_gradient_.register_fake
def _(
    logits_nP: torch.Tensor, target_n1: torch.Tensor, V: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return _results(logits_nP)


def _results(logits_nP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    n = len(logits_nP)
    return (
        logits_nP.new_empty(n, 1, dtype=torch.float32),
        logits_nP.new_empty(n, 1, dtype=torch.float32),
    )


@functools.cache
def kernel() -> Any:
    """Return Triton's function; Triton is imported here, when a GPU trains."""
    import triton
    import triton.language as tl

    @triton.jit
    def loss_kernel(  # type: ignore[no-untyped-def]
        logits_ptr, target_ptr, log_sum_ptr, target_logit_ptr, V, P,
        IGNORE: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Replace one row."""
        row = tl.program_id(0)
        start = logits_ptr + row.to(tl.int64) * P
        at = tl.arange(0, BLOCK)
        highest = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, V, BLOCK):  # a thread's own sums: one reduction a row
            inside = begin + at < V
            x = tl.load(start + begin + at, mask=inside, other=float("-inf")).to(tl.float32)
            higher = tl.maximum(highest, x)
            # nothing was seen yet, and -inf - -inf is no number
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(highest - shift) + tl.exp(x - shift)
            highest = higher
        most = tl.max(highest, axis=0)
        log_sum = most + tl.log(tl.sum(total * tl.exp(highest - most), axis=0))
        tl.store(log_sum_ptr + row, log_sum)
        target = tl.load(target_ptr + row)
        counted = target != IGNORE
        logit = tl.load(start + target, mask=counted, other=0.0).to(tl.float32)
        tl.store(target_logit_ptr + row, logit)
        tl.debug_barrier()  # the target's logit is replaced below
        for begin in range(0, P, BLOCK):
            entry = begin + at
            x = tl.load(start + entry, mask=entry < P, other=0.0).to(tl.float32)
            gradient = tl.exp(x - log_sum) - tl.where(entry == target, 1.0, 0.0)
            gradient = tl.where(counted & (entry < V), gradient, 0.0)
            tl.store(start + entry, gradient.to(logits_ptr.dtype.element_ty), mask=entry < P)

    loss_kernel.fn.__globals__["tl"] = tl  # Triton looks names up in the module
    return loss_kernel
