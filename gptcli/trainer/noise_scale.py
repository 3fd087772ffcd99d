"""The gradient noise scale (McCandlish et al. 2018, appendix A.1): the batch, in tokens, at which a
step's gradient holds as much noise as signal. Far smaller batches waste steps, far larger ones
waste tokens; GPT-3 chose its batches by it.

A mean gradient over b tokens has E|g_b|² = |G|² + tr(S)/b, so two batches of different size tell
the true gradient's |G|² and the covariance's trace tr(S) apart, both unbiased. The batch of a step
is the larger one; the smaller one is a part of it that is computed anyway: what one process adds to
the average, or, where one is alone, its first micro-batch. The cost is one pass over the gradients.
Tensor slices and stages have a part's gradient in pieces, some of them sums not yet made; there the
first micro-batches of now and then a step are run once more, by themselves.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from gptcli.distributed.context import RankContext

DECAY = 0.99  # of the running means: the ratio of two means, since the mean of ratios is biased
AGAIN_EVERY = 16  # steps, where a part is run once more for it


class NoiseScale:
    """Running estimates of |G|² and tr(S). `state` is all there is to save."""

    def __init__(self, state: list[float] | None = None) -> None:
        self.state = state or [0.0, 0.0]
        """The running means of |G|² and tr(S), both short of the same factor in the first steps."""

    def add(self, small_norm2: float, big_norm2: float, small: int, big: int) -> None:
        """One step's squared norms of the mean gradients over `small` and over all `big` tokens.
        What is not finite is left out.
        """
        signal = (big * big_norm2 - small * small_norm2) / (big - small)
        trace = (small_norm2 - big_norm2) / (1 / small - 1 / big)
        if math.isfinite(signal) and math.isfinite(trace):
            self.state = [
                DECAY * old + (1 - DECAY) * new
                for old, new in zip(self.state, (signal, trace), strict=True)
            ]

    @property
    def tokens(self) -> float | None:
        """tr(S)/|G|²; None where nothing was measured yet, or the noise still hides the signal."""
        signal, trace = self.state
        return trace / signal if signal > 0 and trace > 0 else None


def part_of(sequences: int, micro_batch: int, context: RankContext, step: int) -> int | None:
    """Sequences in the part of a step's batch that is measured; None where there is none: the batch
    has no such part, or processes hold unequal ones, or it is run once more and this is not its
    step."""
    if sequences % context.replicas:
        return None
    own = sequences // context.replicas
    if (
        context.is_model_parallel
    ):  # as many of every replica's micro-batches as keep all stages busy
        part = context.layout.pp * micro_batch
        return (
            part * context.replicas
            if own > part and own % micro_batch == 0 and step % AGAIN_EVERY == 0
            else None
        )
    # whose gradients go micro-batch by micro-batch: their mean is measured
    if context.layout.shard > 1:
        return micro_batch if own % micro_batch == 0 else None
    if context.world_size > 1:
        return own
    return micro_batch if sequences > micro_batch else None


class PartNorm:
    """The squared norm of the gradient of a part of the batch, taken on its way into the whole:
    before processes average theirs (by a hook in DDP's or FSDP2's exchange), or after the first of
    a lone process's micro-batches. Where neither serves, whoever runs the part once more adds its
    norm. `part_of` says whether it means anything."""

    def __init__(self, model: nn.Module, context: RankContext) -> None:
        self.model, self.alone = model, context.world_size == 1
        self.norm2 = torch.zeros((), device=context.device)
        """Of the gradient as the engine sees it, scaled as the loss is."""
        if context.is_model_parallel:
            return
        if isinstance(model, DistributedDataParallel):
            # DDP refuses annotations that are text
            model.register_comm_hook(self, lambda part, bucket: _reduce_all(part, bucket))
        elif isinstance(model, FSDPModule):
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.set_custom_reduce_scatter(cast(Any, _ReduceScatter(self)))

    def restart(self) -> None:
        """Before a step's first micro-batch."""
        self.norm2.zero_()

    def after_first(self) -> None:
        """After the backward pass of the first of several micro-batches."""
        if self.alone:
            self.add(
                [
                    parameter.grad
                    for parameter in self.model.parameters()
                    if parameter.grad is not None
                ]
            )

    @torch.no_grad()
    def add(self, gradients: list[torch.Tensor]) -> None:
        self.norm2 += torch.nn.utils.get_total_norm(gradients).square()


def _reduce_all(part: PartNorm, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """DDP's own exchange of a bucket of gradients, measured."""
    part.add([bucket.buffer()])
    return allreduce_hook(cast(dist.ProcessGroup, dist.group.WORLD), bucket)


# torch 2.13 renames it, and warns of the old name
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _ReduceScatter:
    """FSDP2's own exchange, measured; its padding is zeros."""

    def __init__(self, part: PartNorm) -> None:
        self.part = part

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: Any,
        op: Any,
        async_op: bool = False,
    ) -> Any:
        self.part.add([input_tensor])
        return _reduce_scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
