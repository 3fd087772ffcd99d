"""The head's loss by `gptcli/kernels/head.c`: in bf16 on a CPU with AMX, where it takes the place
of `gptcli.model.loss`'s own loops.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch._subclasses.fake_tensor import FakeTensor

from gptcli.kernels.build import library

# the kernel's PANEL and BLOCK: it counts positions and entries of the vocabulary in whole ones
ROWS, ENTRIES = 32, 256
POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_long


@functools.cache
def _kernel() -> ctypes.CDLL | None:
    kernel = library("head")
    if kernel is None or not kernel.ready():
        return None
    kernel.head_forward.argtypes = [POINTER, POINTER, INT, *[POINTER] * 5, *[LONG] * 3]
    kernel.head_backward.argtypes = [POINTER, POINTER, INT, *[POINTER] * 6, INT, *[LONG] * 3]
    return kernel


def serves(x_NC: torch.Tensor, weight_VC: torch.Tensor) -> bool:
    """Whether the kernel takes these; the weight may be bf16, or fp32 that it rounds by itself. A
    rehearsal's tensors have no numbers.
    """
    kinds = x_NC.dtype == torch.bfloat16 and weight_VC.dtype in (torch.bfloat16, torch.float32)
    real = x_NC.device.type == "cpu" and x_NC.numel() > 0 and not isinstance(x_NC, FakeTensor)
    return real and kinds and _kernel() is not None


def row_bytes(vocab_size: int) -> int:
    """Of one position's exponentials."""
    return -(-vocab_size // ENTRIES) * ENTRIES * 2


class Exponentials:
    """Of the logits of n positions: what `gptcli.model.loss` wants of a chunk.

    Logits are fp32; only their exponentials are kept, in bf16, each of a block of entries by the
    block's own largest logit.
    """

    def __init__(
        self, x_nC: torch.Tensor, weight_VC: torch.Tensor, target_n: torch.Tensor, train: bool
    ) -> None:
        self.x_nC, self.weight_VC, self.target_n = (
            x_nC.contiguous(),
            weight_VC.contiguous(),
            target_n.contiguous(),
        )
        self.n = n = -(-len(x_nC) // ROWS) * ROWS
        blocks = -(-len(weight_VC) // ENTRIES)
        self.kept = (
            torch.empty(n * row_bytes(len(weight_VC)) // 2, dtype=torch.bfloat16) if train else None
        )
        self.shift_bn, sum_bn, own_n = (
            torch.empty(blocks, n),
            torch.empty(blocks, n),
            torch.zeros(n),
        )
        self._call("head_forward", self.kept, self.shift_bn, sum_bn, own_n)
        log_sum_n = (self.shift_bn + sum_bn.log()).logsumexp(0)
        self.own_n1, self.log_sum_n1 = own_n[: len(x_nC), None], log_sum_n[: len(x_nC), None]
        """The targets' logits, 0 where they are not among the entries; and
        log(sum(exp(logits))).
        """

    def gradients(
        self,
        log_sum_n1: torch.Tensor,
        own_n1: torch.Tensor,
        counted_n1: torch.Tensor,
        dweight_VC: torch.Tensor,
        more: bool,
    ) -> torch.Tensor:
        """Set the weight's, or with `more` add to it; returns that of x, fp32 (n, C). Of the whole
        vocabulary: `log_sum` and `own`.
        """
        factor_bn, own_n = torch.zeros_like(self.shift_bn), torch.zeros(self.n)
        factor_bn[:, : len(log_sum_n1)] = (
            self.shift_bn[:, : len(log_sum_n1)] - log_sum_n1[:, 0]
        ).exp() * counted_n1[:, 0]
        own_n[: len(own_n1)] = (((own_n1 - log_sum_n1).exp() - 1) * counted_n1)[:, 0]
        dx_nC = torch.empty_like(self.x_nC, dtype=torch.float32)
        self._call("head_backward", self.kept, factor_bn, own_n, dx_nC, dweight_VC, more)
        return dx_nC

    def _call(self, name: str, *rest: torch.Tensor | bool | None) -> None:
        fp32 = self.weight_VC.dtype == torch.float32
        words = [thing.data_ptr() if isinstance(thing, torch.Tensor) else thing for thing in rest]
        x, weight, target = (
            self.x_nC.data_ptr(),
            self.weight_VC.data_ptr(),
            self.target_n.data_ptr(),
        )
        if not getattr(_kernel(), name)(
            x, weight, fp32, target, *words, *self.x_nC.shape, len(self.weight_VC)
        ):
            raise MemoryError(f"no memory for the head's product of {len(self.x_nC)} positions")
