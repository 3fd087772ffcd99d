"""The output head and its cross-entropy in one step, so that a large batch's logits never exist
whole, and what exists is written once.

The logits of a GPT-2 batch are larger than the model (4 x 1,024 x 50,257 in fp32: 823 MB). They are
made a chunk of positions at a time, and each chunk's gradient is taken while its logits are at
hand, which costs one matrix product less than recomputing them in the backward pass. Within a chunk
the vocabulary goes in pieces: products of that shape run at twice the speed on a CPU, and a piece's
exponentials, taken from its own maximum and kept in the logits' precision, turn into probabilities
by one factor a row.

In bf16 on a CPU with AMX a kernel of our own does the products as well: `gptcli.model.head_kernel`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from gptcli.model import head_kernel

IGNORE = -100  # a target that counts for nothing
CHUNK_BYTES = 512 << 20  # logits alive at once, in their own precision
# entries of the vocabulary in one product: what a cache holds, what fills a device
PIECES = {"cpu": 3200, "cuda": 16_384}


def exponentials(logits_nv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """exp(logits - shift), shift, and log(sum(exp(logits))), the latter two by row (n, 1); the
    shift is the row's maximum.
    """
    shift_n1 = logits_nv.amax(1, keepdim=True).float()
    exp_nv = (logits_nv.float() - shift_n1).exp()
    return exp_nv.to(logits_nv.dtype), shift_n1, shift_n1 + exp_nv.sum(1, keepdim=True).log()


def scale(exp_nv: torch.Tensor, factor_n1: torch.Tensor) -> None:
    exp_nv.copy_(exp_nv.float() * factor_n1)


def accumulate(total: torch.Tensor, part: torch.Tensor) -> None:
    total += part


@dataclass(frozen=True, slots=True)
class Loops:
    """The element-wise parts, as written or compiled; the products between them are the library's
    either way.
    """

    exponentials: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = (
        exponentials
    )
    scale: Callable[[torch.Tensor, torch.Tensor], None] = scale
    accumulate: Callable[[torch.Tensor, torch.Tensor], None] = accumulate

    def compiled(self) -> Loops:
        return Loops(
            torch.compile(self.exponentials, dynamic=False),
            torch.compile(self.scale, dynamic=False),
            torch.compile(self.accumulate, dynamic=False),
        )


LOOPS = Loops()


class Whole:
    """The vocabulary in one piece. Where processes hold a slice each, `gptcli.distributed.vocab_parallel_loss`
    takes this one's place.
    """

    def widest(self, weight_VC: torch.Tensor) -> int:
        """Entries of the largest slice."""
        return len(weight_VC)

    def added_up(
        self, log_sum_n1: torch.Tensor, own_n1: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A slice's log(sum(exp(logits))) and targets' logits, 0 where another slice has them, to
        those of all slices.
        """
        return log_sum_n1, own_n1


WHOLE = Whole()


def next_token_loss(
    x_NC: torch.Tensor,
    weight_VC: torch.Tensor,
    target_N: torch.Tensor,
    loops: Loops = LOOPS,
    vocabulary: Whole = WHOLE,
) -> torch.Tensor:
    """Sum over N positions of -log softmax(x·Wᵀ)[target], in nats, as an fp32 scalar; targets of
    IGNORE add nothing.

    A sum, not a mean: under gradient accumulation and data parallelism the right divisor is the
    step's own count.
    """
    if torch.is_autocast_enabled(x_NC.device.type):
        dtype = torch.get_autocast_dtype(x_NC.device.type)
        x_NC = x_NC.to(dtype)
        if not head_kernel.serves(x_NC, weight_VC):
            weight_VC = weight_VC.to(dtype)
    return _HeadLoss.apply(x_NC, weight_VC, target_N, loops, vocabulary, torch.is_grad_enabled())


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NC: torch.Tensor,
        weight_VC: torch.Tensor,
        target_N: torch.Tensor,
        loops: Loops,
        vocabulary: Whole,
        train: bool,
    ) -> torch.Tensor:
        N = len(x_NC)
        kernel = head_kernel.serves(x_NC, weight_VC)
        widest = vocabulary.widest(weight_VC)
        row_bytes = head_kernel.row_bytes(widest) if kernel else x_NC.element_size() * widest
        most = max(1, CHUNK_BYTES // row_bytes)  # so all slices have the same chunks
        # equal ones: a small last one would cost as much to sum up as a full one
        chunks = max(1, -(-N // most))
        rows = max(1, -(-N // chunks))
        loss = torch.zeros((), dtype=torch.float32, device=x_NC.device)
        dx_NC = torch.empty_like(x_NC) if train else None
        dweight_VC = (
            (torch.empty_like if N else torch.zeros_like)(weight_VC, dtype=torch.float32)
            if train
            else None
        )
        with torch.autocast(x_NC.device.type, enabled=False):
            for start in range(0, N, rows):
                operands = x_NC[start : start + rows], weight_VC, target_N[start : start + rows]
                chunk = (
                    head_kernel.Exponentials(*operands, train)
                    if kernel
                    else _Pieces(*operands, train, loops)
                )
                log_sum_n1, own_n1 = vocabulary.added_up(chunk.log_sum_n1, chunk.own_n1)
                counted_n1 = operands[2][:, None] != IGNORE
                loss += ((log_sum_n1 - own_n1) * counted_n1).sum()
                if dx_NC is not None and dweight_VC is not None:
                    dx_NC[start : start + rows] = chunk.gradients(
                        log_sum_n1, own_n1, counted_n1, dweight_VC, start > 0
                    )
        if train:
            ctx.save_for_backward(dx_NC, dweight_VC)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dx_NC, dweight_VC = ctx.saved_tensors
        # in place: the weight's is large
        return dx_NC.mul_(grads[0]), dweight_VC.mul_(grads[0]), None, None, None, None


class _Pieces:
    """n positions at the head, the vocabulary piece by piece."""

    def __init__(
        self,
        x_nC: torch.Tensor,
        weight_VC: torch.Tensor,
        target_n: torch.Tensor,
        train: bool,
        loops: Loops,
    ) -> None:
        self.x_nC, self.weight_VC, self.target_n1, self.loops = (
            x_nC,
            weight_VC,
            target_n[:, None],
            loops,
        )
        V = len(weight_VC)
        self.borders = list(pairwise([*range(0, V, PIECES.get(x_nC.device.type, V)), V]))
        # each one's exponentials and shifts, where gradients will be asked for
        self.pieces: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.own_n1 = torch.zeros_like(self.target_n1, dtype=torch.float32)
        """The targets' logits, 0 where they are not among the entries."""
        log_sums = []
        for first, last in self.borders:
            logits_nv = x_nC @ weight_VC[first:last].T
            inside_n1, index_n1 = self._target_in(first, last)
            self.own_n1 = torch.where(inside_n1, logits_nv.gather(1, index_n1).float(), self.own_n1)
            exp_nv, shift_n1, log_sum_n1 = loops.exponentials(logits_nv)
            log_sums.append(log_sum_n1)
            if train:
                self.pieces.append((exp_nv, shift_n1))
        self.log_sum_n1 = torch.cat(log_sums, dim=1).logsumexp(1, keepdim=True)

    def gradients(
        self,
        log_sum_n1: torch.Tensor,
        own_n1: torch.Tensor,
        counted_n1: torch.Tensor,
        dweight_VC: torch.Tensor,
        more: bool,
    ) -> torch.Tensor:
        """Set the weight's, or with `more` add to it; returns that of x, fp32 (n, C). `log_sum` and
        `own` are of the whole vocabulary. Once only: the exponentials are used up."""
        if not more:
            dweight_VC.zero_()
        dx_nC = torch.zeros_like(self.x_nC, dtype=torch.float32)
        # once: a product whose first operand is transposed runs at half the speed on a CPU
        x_Cn = self.x_nC.T.contiguous()
        row_n1 = torch.arange(len(x_Cn[0]), device=x_Cn.device)[:, None]
        own_gradient_n1 = ((own_n1 - log_sum_n1).exp() - 1) * counted_n1
        for first, last in self.borders:
            dlogits_nv, shift_n1 = self.pieces.pop(0)
            self.loops.scale(dlogits_nv, (shift_n1 - log_sum_n1).exp() * counted_n1)
            inside_n1, index_n1 = self._target_in(first, last)
            dlogits_nv[row_n1, index_n1] = torch.where(  # scatter_ would copy all of it
                inside_n1, own_gradient_n1.to(dlogits_nv.dtype), dlogits_nv.gather(1, index_n1)
            )
            self.loops.accumulate(dx_nC, dlogits_nv @ self.weight_VC[first:last])
            self.loops.accumulate(dweight_VC[first:last], (x_Cn @ dlogits_nv).T)
        return dx_nC

    def _target_in(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether each target is one of the vocabulary's entries first..last-1, and its index among
        them, or any.
        """
        return (self.target_n1 >= first) & (self.target_n1 < last), (self.target_n1 - first).clamp(
            0, last - first - 1
        )
