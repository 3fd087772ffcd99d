"""Statistics of training steps: the gradient noise scale, and spikes of the loss.

The gradient noise scale (McCandlish et al. 2018, appendix A.1) is the batch size, in tokens, at
which a step's gradient has as much noise as signal. A much smaller batch wastes steps, a much
larger one wastes tokens; GPT-3 chose its batches by it.

The mean gradient g_b over b tokens has E|g_b|^2 = |G|^2 + tr(S)/b, where G is the true gradient and
S the covariance of one token's gradient. Two batch sizes therefore give unbiased estimates of both
|G|^2 and tr(S). The large batch is that of the step. The small one is a part of it whose gradient
is computed anyway: that of one rank before the all-reduce or, on a single rank, that of the first
micro-batch. The cost is one pass over the gradients. Under tensor and pipeline parallelism a
rank has only pieces of that gradient, some of them partial sums; there the first micro-batches are
run once more, every NOISE_RERUN_EVERY steps, or FOLLOW_RERUN_EVERY if the batch follows them.

Updates are skipped whose loss or gradient is not finite, or whose loss is a spike. Chowdhery et al.
2022 (PaLM), section 5.1, skipped the data around spikes; here single updates are skipped.
"""

from __future__ import annotations

import math
import time
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from gptcli.distributed.context import RankContext
from gptcli.trainer.config import TrainConfig
from gptcli.trainer.optimizer import total_norm

# Decay of the running means. The estimate is the ratio of two means: a mean of ratios is biased.
DECAY = 0.99
NOISE_RERUN_EVERY = 16  # steps between reruns of the small batch, under tp and pp
FOLLOW_RERUN_EVERY = 4  # the same if the batch size follows the noise scale
WINDOW_STEPS = 64  # time constant of the running statistics, and their minimum before any spike
MIN_SPIKE_NATS = 0.1  # a smaller rise of the loss is no spike, however low its variance was


class NoiseScale:
    """Running estimate of the gradient noise scale."""

    def __init__(self, state: list[float] | None = None) -> None:
        """Start from the `state` of a resumed run, or from nothing."""
        self.state = state or [0.0, 0.0]
        """Running means of |G|^2 and tr(S), both biased to 0 by the same factor at first."""

    def add(
        self, small_norm2: float, large_norm2: float, small_tokens: int, large_tokens: int
    ) -> None:
        """Add one step's squared norms of the mean gradients over the small and the large batch.

        Estimates that are not finite are ignored.
        """
        signal = (large_tokens * large_norm2 - small_tokens * small_norm2) / (
            large_tokens - small_tokens
        )
        noise = (small_norm2 - large_norm2) / (1 / small_tokens - 1 / large_tokens)
        if math.isfinite(signal) and math.isfinite(noise):
            self.state = [
                DECAY * mean + (1 - DECAY) * new
                for mean, new in zip(self.state, (signal, noise), strict=True)
            ]

    @property
    def tokens(self) -> float | None:
        """Noise scale tr(S)/|G|^2 in tokens; None until both estimates are positive."""
        signal, noise = self.state
        return noise / signal if signal > 0 and noise > 0 else None


def rerun_every(config: TrainConfig) -> int:
    """Return the steps between reruns of the small batch, under tp and pp."""
    return FOLLOW_RERUN_EVERY if config.follow_noise else NOISE_RERUN_EVERY


def small_batch_sequences(
    batch_sequences: int,
    micro_batch: int,
    context: RankContext,
    step: int,
    rerun_every: int = NOISE_RERUN_EVERY,
) -> int | None:
    """Return the number of sequences in the small batch of a step, or None if it has none.

    There is none if the batch is no larger, if the ranks' parts differ in size, or if the small
    batch needs a rerun and `step` is not one of those that make it.
    """
    if batch_sequences % context.replicas:
        return None
    own = batch_sequences // context.replicas
    if (
        context.is_model_parallel
    ):  # the first micro-batches of every replica, enough to fill the pipeline
        small = context.layout.pp * micro_batch
        reruns = step % rerun_every == 0
        measured = own > small and own % micro_batch == 0 and reruns
        return small * context.replicas if measured else None
    if reduces_every_pass(context):  # the mean of the norms of the micro-batches
        return micro_batch if own % micro_batch == 0 else None
    if context.world_size > 1:
        return own
    return micro_batch if batch_sequences > micro_batch else None


def reduces_every_pass(context: RankContext) -> bool:
    """Return whether FSDP reduces a gradient, which is seen on its way, after each micro-batch."""
    sharded = context.layout.shard > 1 and not context.is_model_parallel
    return sharded and not context.reduce_once


class SmallBatchNorm:
    """Squared gradient norm of the small batch, measured before it is added to the large one.

    Communication hooks of DDP and FSDP2 measure it before the reduction; a single rank measures it
    after its first micro-batch; under tp and pp the caller reruns the small batch and adds its
    norm. `small_batch_sequences` says whether the value is meaningful in a given step.
    """

    def __init__(self, model: nn.Module, context: RankContext) -> None:
        """Register the hooks on `model`, which is the module that the step calls."""
        self.model, self.single_rank = model, context.world_size == 1
        self.own_time = OwnTime(context, separable=isinstance(model, DistributedDataParallel))
        """Time until the gradient of this rank is ready, which the hook of DDP sees."""
        self.norm2 = torch.zeros((), device=context.device)
        """Squared norm of this step's gradient, with the scale of the loss in it."""
        if context.is_model_parallel:
            return
        if isinstance(model, DistributedDataParallel):
            # DDP rejects a hook whose annotations are strings, hence the lambda.
            model.register_comm_hook(self, lambda norm, bucket: _all_reduce(norm, bucket))
        elif isinstance(model, FSDPModule):
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.set_custom_reduce_scatter(cast(Any, _ReduceScatter(self)))

    def reset(self) -> None:
        """Start a step."""
        self.norm2.zero_()

    def after_first_backward(self) -> None:
        """Measure the gradient of the first of several micro-batches, on a single rank."""
        if self.single_rank:
            parameters = self.model.parameters()
            self.add([p.grad for p in parameters if p.grad is not None])

    @torch.no_grad()
    def add(self, gradients: list[torch.Tensor]) -> None:
        """Add the squared norm of some of the gradients."""
        self.norm2 += total_norm(gradients).square()


def _all_reduce(norm: SmallBatchNorm, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """Measure a bucket of gradients, then reduce it as DDP does."""
    norm.own_time.gradient_ready()
    norm.add([bucket.buffer()])
    return allreduce_hook(cast(dist.ProcessGroup, dist.group.WORLD), bucket)


# torch 2.13 renamed the function and warns of the old name.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _ReduceScatter:
    """FSDP2's reduce-scatter, measuring its input, whose padding is zeros."""

    def __init__(self, norm: SmallBatchNorm) -> None:
        self.norm = norm

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Allocate a communication buffer."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: Any,
        op: Any,
        async_op: bool = False,
    ) -> Any:
        self.norm.add([input_tensor])
        return _reduce_scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)


class OwnTime:
    """Time of a step that is a process's own, until its gradient is ready to be reduced.

    The whole step takes every process as long as the slowest. Where replicas meet only to add their
    gradients (`dp` alone), each knows how long it needed itself; under `shard`, `tp` and `pp`
    processes wait for each other within every layer, and there is nothing to tell apart.
    """

    def __init__(self, context: RankContext, *, separable: bool) -> None:
        """Measure on the context's device; `separable` is True under `dp` alone."""
        self.on_gpu, self.separable = context.device.type == "cuda", separable
        self.events = (
            [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self.on_gpu else []
        )
        self.first = self.last = 0.0

    def start(self) -> None:
        """Start a step."""
        if self.separable:
            self._record(0)

    def gradient_ready(self) -> None:
        """Note that a part of the gradient is ready; the last note counts."""
        if self.separable:
            self._record(1)

    def seconds(self) -> float | None:
        """Return the step's own time, once the device has done it; None if it cannot be told."""
        if not self.separable:
            return None
        if self.on_gpu:
            return self.events[0].elapsed_time(self.events[1]) / 1000
        return self.last - self.first

    def _record(self, which: int) -> None:
        if self.on_gpu:
            self.events[which].record()
        elif which:
            self.last = time.perf_counter()
        else:
            self.first = self.last = time.perf_counter()


class SpikeGuard:
    """Rule that skips updates, from running statistics of the training loss.

    Every rank must pass the same numbers, so that all decide alike.
    """

    def __init__(self, spike_sigmas: float, state: dict[str, Any] | None = None) -> None:
        """Call a loss `spike_sigmas` standard deviations above the running mean a spike.

        0 turns the rule off for finite losses. `state` is that of a resumed run.
        """
        self.spike_sigmas = spike_sigmas
        self.state = state or {
            "mean": 0.0,
            "variance": 0.0,
            "steps": 0,
            "skipped": 0,
            "in_a_row": 0,
        }
        """Everything that a checkpoint needs: running statistics and counts of skipped updates."""

    def skip_reason(self, loss: float, grad_norm: float) -> str | None:
        """Return the reason to skip this step's update, or None; count the step either way."""
        reason = self._skip_reason(loss, grad_norm)
        state = self.state
        if reason is not None:
            state["skipped"] += 1
            state["in_a_row"] += 1
            return reason
        state["in_a_row"] = 0
        state["steps"] += 1
        weight = max(1 / WINDOW_STEPS, 1 / state["steps"])  # a plain mean until the window is full
        deviation = loss - state["mean"]
        state["mean"] += weight * deviation
        state["variance"] = (1 - weight) * (state["variance"] + weight * deviation**2)
        return None

    @property
    def max_loss(self) -> float:
        """Highest loss that is no spike; infinite as long as none is."""
        if not self.spike_sigmas or self.state["steps"] < WINDOW_STEPS:
            return math.inf
        sigma = math.sqrt(self.state["variance"])
        return self.state["mean"] + max(self.spike_sigmas * sigma, MIN_SPIKE_NATS)

    def is_bad(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> torch.Tensor:
        """Return whether `skip_reason` will skip the update: scalars in fp64 on a device."""
        return ~(loss.isfinite() & grad_norm.isfinite() & (loss <= self.max_loss))

    def _skip_reason(self, loss: float, grad_norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient norm is {grad_norm}"
        if loss <= self.max_loss:
            return None
        mean, sigma = self.state["mean"], math.sqrt(self.state["variance"])
        return (
            f"the loss {loss:.4f} is a spike: recent mean {mean:.4f}, "
            f"standard deviation {sigma:.4f}"
        )
