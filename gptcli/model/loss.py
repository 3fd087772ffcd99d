"""Output head and cross-entropy in one step, which never materializes all logits of a batch.

The logits of a GPT-2 batch are larger than the model (4 x 1,024 x 50,257 in fp32: 823 MB). They are
computed for a chunk of positions at a time, and the gradient of a chunk is taken while its logits
are in memory; that costs one matrix product less than recomputing them in the backward pass.

On a CPU the vocabulary of a chunk is divided into pieces, because products of that shape run at
twice the speed. The exponentials of a piece are relative to its own row maximum and kept in the
precision of the logits; one factor per row turns them into probabilities.

On a GPU a chunk is one product over the whole vocabulary, padded to a multiple of ALIGNMENT: tensor
cores need rows that begin at multiples of 16 bytes, and 50,257 entries do not. The gradient takes
the place of the logits, and cuBLAS adds that of the weight to its fp32 sum.

The products and exponentials of a chunk can be replaced by a `HeadKernel`.

Shapes: N positions, n positions of a chunk, C d_model, V vocabulary, P vocabulary with padding, v
entries of a piece.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import torch

IGNORE = -100
"""Target of positions that do not count."""
CHUNK_BYTES = 512 << 20
"""Logits in memory at the same time, in their own precision."""
PIECES = {"cpu": 3200}
"""Vocabulary entries in one product: few enough for a CPU's cache."""
WHOLE_VOCABULARY = {"cuda"}
"""Devices on which a chunk is one product over the whole padded vocabulary."""
ALIGNMENT = 128
"""Positions and vocabulary entries of products on a GPU are multiples of this, its tile."""
EAGER_PARTS = 8
"""Parts of a chunk whose fp32 logits exist one after the other, if nothing is compiled."""


def exponentials(logits_nv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace logits by exp(logits - shift); return shift, and log(sum(exp(logits))).

    The shift is the maximum of the row. Both are (n, 1) in fp32.
    """
    shift_n1 = logits_nv.amax(1, keepdim=True).float()
    exp_nv = logits_nv.float().sub_(shift_n1).exp_()  # in place in fp32
    if exp_nv.dtype != logits_nv.dtype:
        logits_nv.copy_(exp_nv)
    return shift_n1, shift_n1 + exp_nv.sum(1, keepdim=True).log()


def scale(exp_nv: torch.Tensor, factor_n1: torch.Tensor) -> None:
    """Multiply each row by its factor, in place."""
    scaled_nv = exp_nv.float().mul_(factor_n1)  # in place in fp32
    if scaled_nv.dtype != exp_nv.dtype:
        exp_nv.copy_(scaled_nv)


def accumulate(total: torch.Tensor, part: torch.Tensor) -> None:
    """Add `part` to `total`, tensors of one shape, in place."""
    total += part


def log_sums(logits_nP: torch.Tensor, V: int) -> torch.Tensor:
    """Return log(sum(exp(logits))) over the first V entries of each row, (n, 1) in fp32."""
    return logits_nP[:, :V].float().logsumexp(1, keepdim=True)


def logits_to_gradient(
    logits_nP: torch.Tensor,
    log_sum_n1: torch.Tensor,
    target_n1: torch.Tensor,
    counted_n1: torch.Tensor,
    V: int,
) -> None:
    """Replace logits by the gradient of the loss, in place; that of padding is 0."""
    entry_P = torch.arange(logits_nP.shape[1], device=logits_nP.device)
    gradient_nP = (logits_nP.float() - log_sum_n1).exp() - (entry_P == target_n1).float()
    logits_nP.copy_(torch.where((entry_P < V) & counted_n1, gradient_nP, 0.0))


@dataclass(frozen=True, slots=True)
class ElementwiseOps:
    """Element-wise operations of the loss, eager or compiled."""

    exponentials: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = exponentials
    """Implementation of `exponentials`."""
    scale: Callable[[torch.Tensor, torch.Tensor], None] = scale
    """Implementation of `scale`."""
    accumulate: Callable[[torch.Tensor, torch.Tensor], None] = accumulate
    """Implementation of `accumulate`."""
    log_sums: Callable[[torch.Tensor, int], torch.Tensor] = log_sums
    """Implementation of `log_sums`."""
    logits_to_gradient: Callable[..., None] = logits_to_gradient
    """Implementation of `logits_to_gradient`."""
    both: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None
    """The last two in one, of logits, targets and V, which also returns the targets' logits."""
    parts: int = EAGER_PARTS
    """Parts of a chunk to call the two for: compiled, they need no temporary tensors."""

    def compiled(self) -> ElementwiseOps:
        """Return the same operations compiled by torch.compile, for static shapes."""
        return ElementwiseOps(
            torch.compile(self.exponentials, dynamic=False),
            torch.compile(self.scale, dynamic=False),
            torch.compile(self.accumulate, dynamic=False),
            torch.compile(self.log_sums, dynamic=False),
            torch.compile(self.logits_to_gradient, dynamic=False),
            self.both,
            parts=1,
        )


EAGER = ElementwiseOps()


class VocabReduction:
    """Reduction over the whole vocabulary in one process.

    `gptcli.distributed.tensor_parallel.VocabShards` replaces it if every process has a shard.
    """

    def max_entries(self, weight_VC: torch.Tensor) -> int:
        """Return the number of entries in the largest shard of the vocabulary."""
        return len(weight_VC)

    def combine(
        self, log_sum_n1: torch.Tensor, target_logit_n1: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log(sum(exp(logits))) and the targets' logits over all shards.

        The arguments are those of this shard; a target in another shard has the logit 0.
        """
        return log_sum_n1, target_logit_n1


FULL_VOCABULARY = VocabReduction()


class HeadChunk(Protocol):
    """Exponentials of the logits of n positions."""

    log_sum_n1: torch.Tensor
    """log(sum(exp(logits))) over the entries of the weight."""
    target_logit_n1: torch.Tensor
    """Logits of the targets, 0 if a target is not among the entries."""

    def gradients(
        self,
        log_sum_n1: torch.Tensor,
        target_logit_n1: torch.Tensor,
        counted_n1: torch.Tensor,
        dweight_VC: torch.Tensor,
        accumulate: bool,
    ) -> torch.Tensor:
        """Return the gradient of x (n, C), and write that of the weight, or add to it.

        `log_sum_n1` and `target_logit_n1` are those of the whole vocabulary; `counted_n1` is False
        for ignored positions. Can be called once, because the exponentials are overwritten.
        """


class HeadKernel(Protocol):
    """Replacement of the products and exponentials, such as `gptcli.kernels.head_kernel`."""

    def supports(self, x_NC: torch.Tensor, weight_VC: torch.Tensor) -> bool:
        """Return whether the kernel can run on these operands."""

    def row_bytes(self, vocab_size: int) -> int:
        """Return the memory of one position's exponentials, in bytes."""

    def chunk(
        self, x_nC: torch.Tensor, weight_VC: torch.Tensor, target_n: torch.Tensor, train: bool
    ) -> HeadChunk:
        """Compute the exponentials of a chunk, and keep them if `train`."""

    def both_for(
        self, x_NC: torch.Tensor
    ) -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
        """Return `ElementwiseOps.both` for operands that the kernel does not support."""


def next_token_loss(
    x_NC: torch.Tensor,
    weight_VC: torch.Tensor,
    target_N: torch.Tensor,
    *,
    elementwise: ElementwiseOps = EAGER,
    reduction: VocabReduction = FULL_VOCABULARY,
    kernel: HeadKernel | None = None,
    observe: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Return the sum over N positions of -log softmax(x·Wᵀ)[target], in nats, as an fp32 scalar.

    Targets equal to IGNORE add nothing. The result is a sum because the right divisor, under
    gradient accumulation and data parallelism, is the number of targets in the whole step.
    `kernel`, if it supports the operands, computes the products. `observe` is called with the loss
    of each position, (N,) in fp32.
    """
    if torch.is_autocast_enabled(x_NC.device.type):
        x_NC = x_NC.to(torch.get_autocast_dtype(x_NC.device.type))
    if kernel is not None and not kernel.supports(x_NC, weight_VC):
        elementwise = replace(elementwise, both=kernel.both_for(x_NC))
        kernel = None
    return _HeadLoss.apply(
        x_NC, weight_VC, target_N, elementwise, reduction, kernel, torch.is_grad_enabled(), observe
    )


class _HeadLoss(torch.autograd.Function):
    """Summed loss whose gradients are computed in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NC: torch.Tensor,
        weight_VC: torch.Tensor,
        target_N: torch.Tensor,
        elementwise: ElementwiseOps,
        reduction: VocabReduction,
        kernel: HeadKernel | None,
        train: bool,
        observe: Callable[[torch.Tensor], None] | None,
    ) -> torch.Tensor:
        """Return the summed loss; with `train`, compute and keep the gradients."""
        N, on_gpu = len(x_NC), x_NC.device.type in WHOLE_VOCABULARY
        max_entries = reduction.max_entries(weight_VC)
        row_bytes = (
            x_NC.element_size() * max_entries if kernel is None else kernel.row_bytes(max_entries)
        )
        max_rows = max(1, CHUNK_BYTES // row_bytes)  # the same chunks for every shard
        rows = chunk_rows(N, max_rows, ALIGNMENT if on_gpu else 1)
        V = len(weight_VC)
        entries = -(-V // ALIGNMENT) * ALIGNMENT if on_gpu else V
        if kernel is None:
            # cast here and not outside: autograd would round the gradient of a cast to its dtype
            weight_VC = padded(weight_VC, entries, x_NC.dtype)
        loss = torch.zeros((), dtype=torch.float32, device=x_NC.device)
        dx_NC = torch.empty_like(x_NC) if train else None
        dweight_VC = (
            (torch.empty if N else torch.zeros)(
                (entries, x_NC.shape[1]), dtype=torch.float32, device=x_NC.device
            )
            if train
            else None
        )
        nats: list[torch.Tensor] = []
        with torch.autocast(x_NC.device.type, enabled=False):
            for start in range(0, N, rows):
                operands = x_NC[start : start + rows], weight_VC, target_N[start : start + rows]
                chunk: HeadChunk
                if kernel is not None:
                    chunk = kernel.chunk(*operands, train)
                elif on_gpu:
                    at_once = train and reduction is FULL_VOCABULARY
                    chunk = _GpuChunk(*operands, V, elementwise, at_once)
                else:
                    chunk = _CpuChunk(*operands, train, elementwise)
                log_sum_n1, target_logit_n1 = reduction.combine(
                    chunk.log_sum_n1, chunk.target_logit_n1
                )
                counted_n1 = operands[2][:, None] != IGNORE
                nats_n1 = (log_sum_n1 - target_logit_n1) * counted_n1
                loss += nats_n1.sum()
                if observe is not None:
                    nats.append(nats_n1)
                if dx_NC is not None and dweight_VC is not None:
                    dx_NC[start : start + rows] = chunk.gradients(
                        log_sum_n1, target_logit_n1, counted_n1, dweight_VC, start > 0
                    )
        if dweight_VC is not None:
            # not a view where it needs none: the embedding's gradient is then added in place
            ctx.save_for_backward(dx_NC, dweight_VC if entries == V else dweight_VC[:V])
        if observe is not None and nats:
            observe(torch.cat(nats).flatten())
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x and the weight, scaled by that of the loss."""
        dx_NC, dweight_VC = ctx.saved_tensors
        # in place, because the gradient of the weight is large
        return dx_NC.mul_(grads[0]), dweight_VC.mul_(grads[0]), *[None] * 6


def chunk_rows(N: int, max_rows: int, alignment: int) -> int:
    """Return the positions of a chunk: at most `max_rows`, and chunks of equal size if possible.

    The gradients of a small last chunk would cost as much to add up, and on a GPU a second size is
    compiled again. Above `alignment`, the result is a multiple of it.
    """
    max_rows = max(max_rows // alignment * alignment, min(max_rows, alignment))
    fewest = max(1, -(-N // max_rows))
    for chunks in range(fewest, 2 * fewest if alignment > 1 else fewest):
        if N % (chunks * alignment) == 0:
            return max(1, N // chunks)
    rows = max(1, -(-N // fewest))
    return min(-(-rows // alignment) * alignment, max_rows)


def padded(weight_VC: torch.Tensor, entries: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight in `dtype`, with rows of zeros up to `entries` rows."""
    V = len(weight_VC)
    if entries == V:
        return weight_VC.to(dtype)
    weight_PC = weight_VC.new_empty(entries, weight_VC.shape[1], dtype=dtype)
    weight_PC[:V] = weight_VC
    weight_PC[V:] = 0
    return weight_PC


class _GpuChunk:
    """`HeadChunk` in PyTorch for a GPU: products over the whole padded vocabulary.

    `at_once` turns the logits into their gradient when they are there, if `elementwise` can: for
    training with a vocabulary that is not sharded.
    """

    def __init__(
        self,
        x_nC: torch.Tensor,
        weight_PC: torch.Tensor,
        target_n: torch.Tensor,
        V: int,
        elementwise: ElementwiseOps,
        at_once: bool,
    ) -> None:
        self.x_nC, self.weight_PC, self.target_n1, self.V = x_nC, weight_PC, target_n[:, None], V
        self.elementwise = elementwise
        self.rows = -(-len(x_nC) // elementwise.parts)
        self.logits_nP = x_nC @ weight_PC.T
        both = elementwise.both if at_once else None
        self.has_gradient = both is not None
        if both is not None:
            self.log_sum_n1, self.target_logit_n1 = both(self.logits_nP, self.target_n1, V)
            return
        parts = self.logits_nP.split(self.rows)
        self.log_sum_n1 = torch.cat([elementwise.log_sums(part, V) for part in parts])
        logit_n1 = self.logits_nP.gather(1, self.target_n1.clamp(0, V - 1)).float()
        self.target_logit_n1 = logit_n1.where(self.target_n1 >= 0, 0.0)

    def gradients(
        self,
        log_sum_n1: torch.Tensor,
        target_logit_n1: torch.Tensor,
        counted_n1: torch.Tensor,
        dweight_VC: torch.Tensor,
        accumulate: bool,
    ) -> torch.Tensor:
        """Return the gradient of x, and write that of the weight, or add to it."""
        if not self.has_gradient:
            of_rows = (self.logits_nP, log_sum_n1, self.target_n1, counted_n1)
            for part in zip(*(tensor.split(self.rows) for tensor in of_rows), strict=True):
                self.elementwise.logits_to_gradient(*part, self.V)
        dlogits_nP = self.logits_nP
        add_product_(dweight_VC, dlogits_nP.T, self.x_nC, beta=1.0 if accumulate else 0.0)
        return dlogits_nP @ self.weight_PC


def add_product_(
    total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float = 1.0
) -> None:
    """Replace the fp32 `total` by beta · total + a·b, without rounding the product to bf16."""
    if a.dtype == total.dtype:
        torch.addmm(total, a, b, beta=beta, out=total)
    elif _adds_to_fp32(total.device):
        torch.addmm(total, a, b, beta=beta, out_dtype=total.dtype, out=total)
    elif beta:
        total += torch.mm(a, b, out_dtype=total.dtype)
    else:
        torch.mm(a, b, out_dtype=total.dtype, out=total)


@functools.cache
def _adds_to_fp32(device: torch.device) -> bool:
    """Return whether this PyTorch adds a product of bf16 to an fp32 sum; some refuse the types."""
    total = torch.zeros(8, 8, device=device)
    a = torch.zeros(8, 8, device=device, dtype=torch.bfloat16)
    try:
        torch.addmm(total, a, a, out_dtype=torch.float32, out=total)
    except RuntimeError:
        return False
    return True


class _CpuChunk:
    """`HeadChunk` in PyTorch, one piece of the vocabulary at a time."""

    def __init__(
        self,
        x_nC: torch.Tensor,
        weight_VC: torch.Tensor,
        target_n: torch.Tensor,
        train: bool,
        elementwise: ElementwiseOps,
    ) -> None:
        self.x_nC, self.weight_VC, self.target_n1 = x_nC, weight_VC, target_n[:, None]
        self.elementwise = elementwise
        V = len(weight_VC)
        self.borders = list(pairwise([*range(0, V, PIECES.get(x_nC.device.type, V)), V]))
        # exponentials and shifts of each piece, kept for the gradients
        self.pieces: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.target_logit_n1 = torch.zeros_like(self.target_n1, dtype=torch.float32)
        log_sums = []
        # One block of memory for the exponentials of all pieces, each computed in place. A block for
        # each piece would take up to twice as much: glibc seldom finds a freed one of the same size
        # again, because for an aligned block it looks for one that is larger.
        n, most = len(x_nC), max(last - first for first, last in self.borders)
        memory = x_nC.new_empty(n * (V if train else most))
        for first, last in self.borders:
            begin = n * first if train else 0
            logits_nv = memory[begin : begin + n * (last - first)].view(n, -1)
            torch.mm(x_nC, weight_VC[first:last].T, out=logits_nv)
            inside_n1, index_n1 = self._targets_in(first, last)
            self.target_logit_n1 = torch.where(
                inside_n1, logits_nv.gather(1, index_n1).float(), self.target_logit_n1
            )
            shift_n1, log_sum_n1 = elementwise.exponentials(logits_nv)
            log_sums.append(log_sum_n1)
            if train:
                self.pieces.append((logits_nv, shift_n1))
        self.log_sum_n1 = torch.cat(log_sums, dim=1).logsumexp(1, keepdim=True)

    def gradients(
        self,
        log_sum_n1: torch.Tensor,
        target_logit_n1: torch.Tensor,
        counted_n1: torch.Tensor,
        dweight_VC: torch.Tensor,
        accumulate: bool,
    ) -> torch.Tensor:
        """Return the gradient of x, and write that of the weight, or add to it."""
        fp32 = self.x_nC.dtype == torch.float32  # products then add to the sums themselves
        if not accumulate and not fp32:
            dweight_VC.zero_()
        dx_nC = torch.zeros_like(self.x_nC, dtype=torch.float32)
        # a copy: bf16 products whose first operand is transposed run at half the speed on a CPU
        x_Cn = self.x_nC.T if fp32 else self.x_nC.T.contiguous()
        row_n1 = torch.arange(len(self.x_nC), device=x_Cn.device)[:, None]
        target_gradient_n1 = ((target_logit_n1 - log_sum_n1).exp() - 1) * counted_n1
        for first, last in self.borders:
            dlogits_nv, shift_n1 = self.pieces.pop(0)
            self.elementwise.scale(dlogits_nv, (shift_n1 - log_sum_n1).exp() * counted_n1)
            inside_n1, index_n1 = self._targets_in(first, last)
            dlogits_nv[row_n1, index_n1] = torch.where(  # scatter_ would copy the whole tensor
                inside_n1, target_gradient_n1.to(dlogits_nv.dtype), dlogits_nv.gather(1, index_n1)
            )
            if fp32:
                beta = 1.0 if accumulate else 0.0
                add_product_(dweight_VC[first:last], dlogits_nv.T, self.x_nC, beta=beta)
                add_product_(dx_nC, dlogits_nv, self.weight_VC[first:last])
                continue
            self.elementwise.accumulate(dx_nC, dlogits_nv @ self.weight_VC[first:last])
            self.elementwise.accumulate(dweight_VC[first:last], (x_Cn @ dlogits_nv).T)
        return dx_nC

    def _targets_in(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return whether each target is in first..last-1, and its index there if so."""
        return (self.target_n1 >= first) & (self.target_n1 < last), (self.target_n1 - first).clamp(
            0, last - first - 1
        )
