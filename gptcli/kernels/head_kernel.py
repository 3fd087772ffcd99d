"""Output head and loss by `head.c`: bf16, CPUs.

This module is a `gptcli.model.loss.HeadKernel`; its part for GPUs is `head_triton`.

Shapes: n positions of a chunk, C d_model, V vocabulary, b blocks of vocabulary entries.
"""

from __future__ import annotations

import ctypes
import functools

import torch

from gptcli.kernels.build import library
from gptcli.kernels.head_triton import both_for

__all__ = ["HeadChunk", "available", "both_for", "chunk", "row_bytes", "supports"]

PANEL_POSITIONS, BLOCK_ENTRIES = 32, 256
"""PANEL and BLOCK of the C source, which pads positions and vocabulary to multiples of them."""
POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_long


def supports(x_NC: torch.Tensor, weight_VC: torch.Tensor) -> bool:
    """Return whether the kernel can run on these operands, on this machine.

    x is bf16; the weight may be bf16, or fp32, which the kernel rounds itself.
    """
    dtypes = x_NC.dtype == torch.bfloat16 and weight_VC.dtype in (torch.bfloat16, torch.float32)
    return x_NC.device.type == "cpu" and x_NC.numel() > 0 and dtypes and available()


def available() -> bool:
    """Return whether the kernel can be built and run here."""
    return _kernel() is not None


def row_bytes(vocab_size: int) -> int:
    """Return the memory of one position's exponentials, in bytes."""
    return -(-vocab_size // BLOCK_ENTRIES) * BLOCK_ENTRIES * 2


class HeadChunk:
    """Exponentials of the logits of n positions (see `gptcli.model.loss.HeadChunk`).

    Logits are fp32. Their exponentials are kept in bf16, each relative to the largest logit of its
    block of entries.
    """

    def __init__(
        self, x_nC: torch.Tensor, weight_VC: torch.Tensor, target_n: torch.Tensor, train: bool
    ) -> None:
        """Compute the exponentials, and keep them if `train`."""
        self.x_nC, self.weight_VC = x_nC.contiguous(), weight_VC.contiguous()
        self.target_n = target_n.contiguous()
        self.n = n = -(-len(x_nC) // PANEL_POSITIONS) * PANEL_POSITIONS
        blocks = -(-len(weight_VC) // BLOCK_ENTRIES)
        self.exp = (
            torch.empty(n * row_bytes(len(weight_VC)) // 2, dtype=torch.bfloat16) if train else None
        )
        self.shift_bn, sum_bn = torch.empty(blocks, n), torch.empty(blocks, n)
        target_logit_n = torch.zeros(n)
        self._call("head_forward", self.exp, self.shift_bn, sum_bn, target_logit_n)
        log_sum_n = (self.shift_bn + sum_bn.log()).logsumexp(0)
        self.target_logit_n1 = target_logit_n[: len(x_nC), None]
        """Logits of the targets, 0 if a target is not among the entries."""
        self.log_sum_n1 = log_sum_n[: len(x_nC), None]
        """log(sum(exp(logits))) over the entries."""

    def gradients(
        self,
        log_sum_n1: torch.Tensor,
        target_logit_n1: torch.Tensor,
        counted_n1: torch.Tensor,
        dweight_VC: torch.Tensor,
        accumulate: bool,
    ) -> torch.Tensor:
        """Return the gradient of x, fp32 (n, C), and write that of the weight, or add to it."""
        n = len(log_sum_n1)
        factor_bn, target_gradient_n = torch.zeros_like(self.shift_bn), torch.zeros(self.n)
        factor_bn[:, :n] = (self.shift_bn[:, :n] - log_sum_n1[:, 0]).exp() * counted_n1[:, 0]
        target_gradient_n[:n] = (((target_logit_n1 - log_sum_n1).exp() - 1) * counted_n1)[:, 0]
        dx_nC = torch.empty_like(self.x_nC, dtype=torch.float32)
        self._call(
            "head_backward", self.exp, factor_bn, target_gradient_n, dx_nC, dweight_VC, accumulate
        )
        return dx_nC

    def _call(self, name: str, *rest: torch.Tensor | bool | None) -> None:
        fp32 = self.weight_VC.dtype == torch.float32
        arguments = [
            value.data_ptr() if isinstance(value, torch.Tensor) else value for value in rest
        ]
        x, weight, target = (
            tensor.data_ptr() for tensor in (self.x_nC, self.weight_VC, self.target_n)
        )
        if not getattr(_kernel(), name)(
            x, weight, fp32, target, *arguments, *self.x_nC.shape, len(self.weight_VC)
        ):
            raise MemoryError(f"out of memory in the output head of {len(self.x_nC)} positions")


def chunk(
    x_nC: torch.Tensor, weight_VC: torch.Tensor, target_n: torch.Tensor, train: bool
) -> HeadChunk:
    """Compute the exponentials of a chunk, and keep them if `train`."""
    return HeadChunk(x_nC, weight_VC, target_n, train)


@functools.cache
def _kernel() -> ctypes.CDLL | None:
    kernel = library("head")
    if kernel is None or not kernel.ready():
        return None
    kernel.head_forward.argtypes = [POINTER, POINTER, INT, *[POINTER] * 5, *[LONG] * 3]
    kernel.head_backward.argtypes = [POINTER, POINTER, INT, *[POINTER] * 6, INT, *[LONG] * 3]
    return kernel
