"""One optimizer step: forward and backward passes, gradient clip, device sync, update.

A rank's micro-batches are its sequences of the step, cut from the run's one data order. The order
does not depend on the number of ranks or on the micro-batch size; they only divide it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from gptcli.devices import fp64_device
from gptcli.distributed.context import RankContext
from gptcli.distributed.fsdp import reshard, set_gradient_sync
from gptcli.distributed.tensor_parallel import reduce_partial_grads
from gptcli.model.loss import IGNORE
from gptcli.trainer.optimizer import (
    AdamW,
    LossScale,
    averaged_weights,
    clip_gradients,
    gradient_norm,
    set_rates,
    update_average,
)
from gptcli.trainer.schedule import Rates
from gptcli.trainer.step_statistics import (
    NOISE_RERUN_EVERY,
    SmallBatchNorm,
    SpikeGuard,
    reduces_every_pass,
)

if TYPE_CHECKING:
    from gptcli.distributed.pipeline_parallel import Pipeline

MicroBatch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets, each (micro_batch, n_ctx) int64, on the device."""


class Order(Protocol):
    """Sequence of windows to read: one of `gptcli.shards.order`, or `SequentialWindows`."""

    n_ctx: int

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets of windows `first` to `first + count`, (count, n_ctx) int64."""
        ...


class MixedOrder(Protocol):
    """Order of windows of several sources, such as `gptcli.shards.order.Mixture`."""

    def owners(self, first: int, count: int) -> np.ndarray:
        """Return the number of the source of each window."""
        ...


@dataclass(frozen=True, slots=True)
class StepResult:
    """Numbers of one step, equal on every rank except for the times."""

    loss: float
    """Mean training loss in nats per token, over the batch of all ranks."""
    grad_norm: float
    """Global norm of the gradient before the clip."""
    small_batch_norm2: float
    """Squared gradient norm of a part of the batch, mean over ranks; see `SmallBatchNorm`."""
    skip_reason: str | None
    """Reason for which the update was skipped; None if the weights were updated."""
    stop_requested: bool
    """True if any rank was asked to stop."""
    checkpoint_requested: bool
    """True if any rank asked for a checkpoint."""
    seconds: float
    """Duration of the step on this rank."""
    data_seconds: float
    """Time in which this rank read the next step's data, while a GPU works."""
    own_seconds: float | None
    """Time until this rank's gradient was ready; None where it cannot be told (`OwnTime`)."""
    loss_by_source: list[float]
    """Summed loss of each source of a mixture in nats, over all ranks; empty for one source."""


class TrainStep:
    """One optimizer step of a parallelized model, called on every rank with its micro-batches."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        context: RankContext,
        *,
        clip: float,
        compute_dtype: torch.dtype | None,
        dropout_seed: int | None,
        spike_sigmas: float = 0.0,
        ema: float = 0.0,
        rerun_every: int = NOISE_RERUN_EVERY,
        engine: nn.Module | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        """Prepare the steps of `model`, whose parameters have the plain model's names.

        `engine` is the wrapper of `model` to call, if it has one (DDP); `pipeline` runs a model
        that is split into stages. Matrix products run in `compute_dtype`, fp32 if None.
        `dropout_seed` is None for a model without dropout. `spike_sigmas` is `SpikeGuard`'s. `ema`
        is the decay of the weights' average, by which they are evaluated; 0 for none. `rerun_every`
        is the steps between measurements of the noise scale under tp and pp.
        """
        self.model, self.optimizer, self.context, self.clip = model, optimizer, context, clip
        self.engine, self.pipeline = engine or model, pipeline
        self.compute_dtype, self.dropout_seed = compute_dtype, dropout_seed
        self.small_batch_norm = SmallBatchNorm(self.engine, context)
        self.loss_scale = LossScale() if compute_dtype is torch.float16 else None
        self.spike_guard = SpikeGuard(spike_sigmas)
        self.ema, self.rerun_every = ema, rerun_every
        self.source_losses: SourceLosses | None = None

    def observe_sources(self, count: int) -> None:
        """Sum the loss of each of `count` sources of the data from now on."""
        parts: list[Any] = [self.model] if self.pipeline is None else list(self.pipeline.stages)
        self.source_losses = losses = SourceLosses(count, self.context)
        for part in parts:
            if part.lm_head is not None:
                part.head_loss = partial(part.head_loss, observe=losses.add)

    def __call__(
        self,
        batches: list[MicroBatch],
        *,
        step: int,
        batch_tokens: int,
        rates: Rates,
        stop_requested: bool = False,
        checkpoint_requested: bool = False,
        while_device_works: Callable[[], None] | None = None,
        sources: Sequence[torch.Tensor] = (),
    ) -> StepResult:
        """Update the weights by `rates`, or skip the update, and return the result.

        `batches` are this rank's micro-batches of step number `step`, `batch_tokens` the tokens of
        all ranks together. `while_device_works` is called between launching the work and waiting
        for it: reading the next batch there costs no device time. `sources` are the numbers of the
        source of each row of the micro-batches, after `observe_sources`.
        """
        start = time.perf_counter()
        self.small_batch_norm.own_time.start()
        if self.source_losses is not None:
            self.source_losses.begin(sources)
        loss = self.forward_backward(batches, batch_tokens, step)
        grad_norm = self.clip_gradients()
        reading = time.perf_counter()
        if while_device_works is not None:
            while_device_works()
        data_seconds = time.perf_counter() - reading

        # The only wait for the device in a step. Every rank then has the same numbers, and so
        # all make the same decision.
        requests = [torch.full_like(loss, what) for what in (stop_requested, checkpoint_requested)]
        local = torch.stack([loss, self.small_batch_norm.norm2, grad_norm, *requests])
        if self.source_losses is not None:
            local = torch.cat([local, self.source_losses.end()])
        sums = self.context.all_reduce_sum(local)
        is_ahead = self._decides_on_device()
        loss_sum, norm2_sum, grad_norm_sum, stops, checkpoints, *by_source = (
            self._update_ahead(sums, batch_tokens, rates) if is_ahead else sums.tolist()
        )
        mean_loss, mean_grad_norm = loss_sum / batch_tokens, grad_norm_sum / self.context.world_size

        skip_reason = self.spike_guard.skip_reason(mean_loss, mean_grad_norm)
        if skip_reason is None and not is_ahead:
            self.update(rates)
            if self.ema:
                update_average(self.optimizer, self.ema, step)
        self.optimizer.zero_grad()
        if self.loss_scale:
            self.loss_scale.update(mean_grad_norm)
        return StepResult(
            loss=mean_loss,
            grad_norm=mean_grad_norm,
            small_batch_norm2=norm2_sum / self.context.world_size,
            skip_reason=skip_reason,
            stop_requested=bool(stops),
            checkpoint_requested=bool(checkpoints),
            seconds=time.perf_counter() - start,
            data_seconds=data_seconds,
            own_seconds=self.small_batch_norm.own_time.seconds(),
            loss_by_source=by_source,
        )

    def _decides_on_device(self) -> bool:
        """Return whether the GPU decides on the update, so that it has work while numbers travel.

        Fused AdamW reads from the device whether to skip; an average of the weights does not.
        """
        return self.context.device.type == "cuda" and type(self.optimizer) is AdamW and not self.ema

    def _update_ahead(self, sums: torch.Tensor, batch_tokens: int, rates: Rates) -> list[float]:
        """Launch the update before the sums of the step are known here, and return them.

        Their copy to the host does not wait for the update, which follows it.
        """
        numbers = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
        numbers.copy_(sums, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        sums64 = sums.double()  # as the host will compute
        bad = self.spike_guard.is_bad(sums64[0] / batch_tokens, sums64[2] / self.context.world_size)
        self.update_unless(bad, rates)
        arrived.synchronize()
        return numbers.tolist()

    def update_unless(self, bad: torch.Tensor, rates: Rates) -> None:
        """Apply the gradients by fused AdamW unless `bad`, a scalar on the device, is true."""
        optimizer: Any = self.optimizer
        optimizer.found_inf = bad.float()
        self.update(rates)
        del optimizer.found_inf

    def forward_backward(
        self, batches: list[MicroBatch], batch_tokens: int, step: int
    ) -> torch.Tensor:
        """Accumulate the gradient of the mean loss over the `batch_tokens` of all ranks.

        Return this rank's summed loss in nats, a scalar on the device; 0 if another rank of the
        replica reports it. The divisor is the token count of the whole batch, so the result does
        not depend on the micro-batch size or the layout.
        """
        loss_scale = self.loss_scale.value if self.loss_scale else 1.0
        # DDP and FSDP average over replicas, while the mean is over the tokens of all of them.
        scale = loss_scale * self.context.replicas / batch_tokens
        self.small_batch_norm.reset()
        first = batches[: self.context.layout.pp]
        if (
            self.context.is_model_parallel
            and step % self.rerun_every == 0
            and len(first) < len(batches)
        ):
            # Under tp and pp no rank sees a micro-batch's whole gradient on its way: run it alone.
            self._accumulate(first, scale, step)
            self.small_batch_norm.norm2 += gradient_norm(self.model, self.context).square()
            self.optimizer.zero_grad()
        if self.source_losses is not None:
            self.source_losses.sums.zero_()  # of the pass for the noise scale
        loss = self._accumulate(batches, scale, step)
        reductions = len(batches) if reduces_every_pass(self.context) else 1
        self.small_batch_norm.norm2 /= loss_scale**2 * reductions
        return loss if self.context.owns_loss else torch.zeros_like(loss)

    def _accumulate(self, batches: list[MicroBatch], scale: float, step: int) -> torch.Tensor:
        """Add the gradient of `scale` times the summed loss; return the loss, unscaled."""
        if self.pipeline is not None:
            total = self.pipeline.gradients(batches, scale, partial(self._forward_context, step))
        else:
            total = torch.zeros((), device=self.context.device)
            for index, (x_BT, y_BT) in enumerate(batches):
                set_gradient_sync(
                    self.engine,
                    self.context.layout,
                    index == len(batches) - 1,
                    reduce_once=self.context.reduce_once,
                )
                with self._forward_context(step, index):
                    loss = self.engine(x_BT, y_BT)
                (loss * scale).backward()
                total += loss.detach()
                if index == 0 and len(batches) > 1:
                    self.small_batch_norm.after_first_backward()
        if self.context.layout.tp > 1:
            reduce_partial_grads(self.model)
        return total

    def clip_gradients(self) -> torch.Tensor:
        """Undo the loss scale, clip the gradient's global norm and return the norm before it."""
        loss_scale = self.loss_scale.value if self.loss_scale else 1.0
        return clip_gradients(self.model, self.clip, self.context, loss_scale)

    def update(self, rates: Rates) -> None:
        """Apply the gradients by the learning rate, weight decay and beta2 of `rates`."""
        set_rates(self.optimizer, rates)
        self.optimizer.step()

    @torch.no_grad()
    def eval_loss(self, batches: list[MicroBatch]) -> torch.Tensor:
        """Return this rank's summed loss without dropout, a scalar on the device.

        It is 0 if another rank of the replica reports the loss.
        """
        self.model.eval()
        if self.pipeline is not None:
            total = self.pipeline.loss(batches, self.autocast)
        else:
            total = torch.zeros((), device=self.context.device)
            for x_BT, y_BT in batches:
                with self.autocast():
                    total += self.engine(x_BT, y_BT)
        self.model.train()
        reshard(self.model)
        return total if self.context.owns_loss else torch.zeros_like(total)

    def validation_loss(self, order: Order, windows: int, micro_batch: int) -> float:
        """Return the mean loss in nats per token over the first `windows` windows of `order`.

        The ranks share the windows, `micro_batch` sequences at a time, and return the same value.
        """
        where = fp64_device(self.context.device)
        total = torch.zeros((), dtype=torch.float64, device=where)
        # With pipeline stages, one micro-batch per stage keeps all of them busy.
        group = micro_batch * self.context.replicas * self.context.layout.pp
        with averaged_weights(self.model, self.optimizer) if self.ema else contextlib.nullcontext():
            for first in range(0, windows, group):
                count = min(group, windows - first)
                batches = micro_batches(order, first, count, micro_batch, self.context)
                total += self.eval_loss(batches).to(where)
        return self.context.all_reduce_sum(total).item() / (windows * order.n_ctx)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which matrix products run in `compute_dtype`."""
        enabled = self.compute_dtype is not None
        return torch.autocast(self.context.device.type, self.compute_dtype, enabled=enabled)

    def _forward_context(
        self, step: int, micro_batch: int
    ) -> contextlib.AbstractContextManager[object]:
        """Seed the dropout of one micro-batch and return the context of its forward pass."""
        if self.source_losses is not None:
            # on the last stage, the passes of the stages before it come first
            passes = (
                micro_batch + 1
                if self.pipeline is None
                else self.pipeline.passes(len(self.source_losses.rows))
            )
            self.source_losses.micro_batch = micro_batch % passes
        if self.dropout_seed is not None:
            torch.manual_seed(dropout_seed(self.dropout_seed, step, self.context.rank, micro_batch))
        return self.autocast()


class SourceLosses:
    """Summed training loss of each source of the data, as this rank's passes see it."""

    def __init__(self, count: int, context: RankContext) -> None:
        """Sum the losses of `count` sources."""
        self.context = context
        self.sums = torch.zeros(count, device=context.device)
        """Summed losses in nats."""
        self.micro_batch = 0
        """Number of the micro-batch whose forward pass is under way."""
        self.rows: list[torch.Tensor] = []
        """Source of each row, by micro-batch; none outside a step."""

    def begin(self, rows: Sequence[torch.Tensor]) -> None:
        """Start a step whose micro-batches have rows of these sources."""
        self.rows = list(rows)
        self.sums.zero_()

    def add(self, nats_N: torch.Tensor) -> None:
        """Add the losses of the positions of a micro-batch; those of an evaluation are not."""
        if self.micro_batch < len(self.rows):
            rows = self.rows[self.micro_batch]
            self.sums.index_add_(0, rows, nats_N.detach().view(len(rows), -1).sum(1))

    def end(self) -> torch.Tensor:
        """Return the sums of the step, 0 if another rank of the replica reports them."""
        self.rows = []
        return self.sums if self.context.owns_loss else torch.zeros_like(self.sums)


def dropout_seed(seed: int, step: int, rank: int, micro_batch: int) -> int:
    """Return the dropout seed of one micro-batch, 63 bits.

    It depends on the position in the run alone, so checkpoints contain no generator state.
    """
    key = f"{seed} {step} {rank} {micro_batch}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def micro_batches(
    order: Order, first: int, count: int, micro_batch: int, context: RankContext
) -> list[MicroBatch]:
    """Return this rank's share of sequences `first` to `first + count`, in micro-batches.

    Every rank gets the same number of micro-batches of one shape, so that collectives match and
    nothing is compiled twice. Missing sequences are padded with rows whose targets are IGNORE.
    """
    share, begin, own = _own_share(count, context)
    rows = -(-share // micro_batch) * micro_batch
    inputs_targets = np.zeros((2, rows, order.n_ctx), np.int64)  # one copy to the device
    if own:
        inputs_targets[0, :own], inputs_targets[1, :own] = order.batch(first + begin, own)
    inputs_targets[1, own:] = IGNORE
    x, y = _to_device(inputs_targets, context.device)
    return list(zip(x.split(micro_batch), y.split(micro_batch), strict=True))


def micro_batch_sources(
    order: MixedOrder, first: int, count: int, micro_batch: int, context: RankContext
) -> list[torch.Tensor]:
    """Return the number of the source of each row of `micro_batches`, 0 for a row that pads."""
    share, begin, own = _own_share(count, context)
    rows = np.zeros(-(-share // micro_batch) * micro_batch, np.int64)
    rows[:own] = order.owners(first + begin, own)
    return list(_to_device(rows, context.device).split(micro_batch))


def _own_share(count: int, context: RankContext) -> tuple[int, int, int]:
    """Return the most sequences of a rank among `count`, and this rank's first one and number."""
    share = -(-count // context.replicas)
    begin = min(context.replica_rank * share, count)
    return share, begin, min(begin + share, count) - begin


def _to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
