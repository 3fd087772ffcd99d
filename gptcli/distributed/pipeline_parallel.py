"""Pipeline parallelism: stages of consecutive layers, run by torch's schedules (GPipe, 1F1B, ...).

A process holds one stage, or with an interleaved schedule every pp-th of several times as many
(Narayanan et al. 2021). A stage is a GPT pruned to its layers, under the plain parameter names. In
a tied model both the first and the last stage hold the token embedding; they exchange its gradient
once a step, and the two copies stay bitwise equal.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleLoopedBFS,
)
from torch.distributed.tensor import DTensor

from gptcli.cost.layout import layers_of_stage
from gptcli.cost.memory import SCHEDULES, PipelineSchedule, padded_micro_batches
from gptcli.distributed.context import RankContext
from gptcli.model.loss import IGNORE
from gptcli.model.transformer import GPT, document_ids

SCHEDULE_CLASSES = {
    "1f1b": Schedule1F1B,
    "gpipe": ScheduleGPipe,
    "interleaved1f1b": ScheduleInterleaved1F1B,
    "loopedbfs": ScheduleLoopedBFS,
}

Batch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets of a micro-batch, each (B, T) int64."""


def split_stages(model: GPT, context: RankContext, schedule: PipelineSchedule) -> list[GPT]:
    """Return the stages of this process, in order, as pruned copies of `model`."""
    count = SCHEDULES[schedule] * context.layout.pp
    sizes = [layers_of_stage(model.config.n_layer, count, stage) for stage in range(count)]
    ends = [sum(sizes[: stage + 1]) for stage in range(count)]
    return [
        _prune(model, range(ends[stage] - sizes[stage], ends[stage]))
        for stage in range(context.pp_rank, count, context.layout.pp)
    ]


def _prune(model: GPT, layers: range) -> GPT:
    """Copy `model` without the modules that the stage with `layers` does not need."""
    stage = copy.deepcopy(model)
    is_first, is_last = layers.start == 0, layers.stop == model.config.n_layer
    unused = []
    if not is_first:
        unused += ["wpe"] if is_last and model.config.tied else ["wpe", "wte"]
    if not is_last:
        unused += ["ln_f", "lm_head"]
    for name in unused:
        stage.register_module(name, None)
    blocks = nn.ModuleDict({str(layer): stage.h[layer] for layer in layers})
    stage.register_module("h", blocks)
    return stage


def merge_stages(stages: list[GPT]) -> nn.Module:
    """Return one module with the parameters of all `stages` under the plain names."""
    if len(stages) == 1:
        return stages[0]
    merged = nn.Module()
    for stage in stages:
        for name, child in stage.named_children():
            if name != "h":
                merged.register_module(name, child)
    merged.h = nn.ModuleDict(
        {name: block for stage in stages for name, block in stage.h.named_children()}
    )
    return merged


class Pipeline:
    """Runs micro-batches through the stages of a replica.

    All processes of the replica call each method together, with the same sequences.
    """

    def __init__(
        self,
        stages: list[GPT],
        context: RankContext,
        group: dist.ProcessGroup,
        schedule: PipelineSchedule,
        micro_batch: int,
    ) -> None:
        """Run `stages` by the named schedule, `micro_batch` sequences at a time, within `group`."""
        self.context, self.group = context, group
        self.schedule, self.micro_batch = schedule, micro_batch
        self.config, self.eot_id = stages[0].config, stages[0].eot_id
        self.stages = stages
        self.schedules: dict[int, Any] = {}
        """Torch's schedule by number of micro-batches."""
        self.pass_context: Callable[[int], AbstractContextManager[object]]
        self.loss_scale, self.loss_sum = 1.0, torch.zeros((), device=context.device)
        # connects all processes of the group: NCCL would do so at the first transfer, in which
        # some of them have no part
        dist.all_reduce(torch.zeros(1, device=context.device), group=group)

    def gradients(
        self,
        batches: list[Batch],
        scale: float,
        pass_context: Callable[[int], AbstractContextManager[object]],
    ) -> torch.Tensor:
        """Add the gradient of `scale` times the summed loss; return the loss, 0 before the last
        stage.

        Forward pass number n of this process in the step runs in `pass_context(n)`.
        """
        count = self.passes(len(batches))
        padding = [_empty_batch(batches[0])] * (count - len(batches))
        x_BT, y_BT = (torch.cat(parts) for parts in zip(*batches, *padding, strict=True))
        self.loss_scale, self.pass_context = scale, pass_context
        self.loss_sum.zero_()
        # Every process has read the tokens: each stage numbers the documents by itself.
        inputs = self._stage_inputs(x_BT, y_BT)
        self._torch_schedule(count).step(x_BT, target=y_BT, return_outputs=False, **inputs)
        if self.config.tied:
            self._sum_embedding_gradient()
        return self.loss_sum.clone()

    def passes(self, batches: int) -> int:
        """Return the forward passes of a stage for so many micro-batches, those of padding too."""
        return padded_micro_batches(batches, self.context.layout.pp, self.schedule)

    @torch.no_grad()
    def loss(
        self, batches: list[Batch], pass_context: Callable[[], AbstractContextManager[object]]
    ) -> torch.Tensor:
        """Return the summed loss on the last stage, 0 on the others.

        Each process runs its part of `evaluation_ticks`. What a tick sends and receives is one
        group of transfers, in the same order on both sides, so that no process waits for another
        that waits for it.
        """
        received: dict[tuple[int, int], torch.Tensor] = {}
        summed_loss = torch.zeros((), device=self.context.device)
        ticks = evaluation_ticks(
            self.context.pp_rank, self.context.layout.pp, len(self.stages), len(batches)
        )
        for tick in ticks:
            outputs: dict[tuple[int, int], torch.Tensor] = {}
            for number, batch in tick.passes:
                stage, (x_BT, y_BT) = self.stages[number // self.context.layout.pp], batches[batch]
                x = x_BT if is_first(stage) else received.pop((number, batch))
                with pass_context():
                    y = stage(x, **self._stage_inputs(x_BT, y_BT))
                if is_last(stage):
                    summed_loss += y
                else:
                    outputs[number, batch] = y.contiguous()
            transfers = []
            operation: Callable[..., Any]
            for transfer in tick.transfers:
                key = (transfer.stage, transfer.batch)
                if transfer.is_send:
                    tensor, operation = outputs[key], dist.isend
                else:
                    tensor, operation = self._activations(batches[transfer.batch][0]), dist.irecv
                    received[transfer.stage + 1, transfer.batch] = tensor
                transfers.append(
                    dist.P2POp(operation, tensor, group=self.group, group_peer=transfer.peer)
                )
            for work in dist.batch_isend_irecv(transfers) if transfers else []:
                work.wait()
        return summed_loss

    def _stage_inputs(self, x_BT: torch.Tensor, y_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what every stage receives besides activations: targets and document numbers."""
        inputs = {"target_BT": y_BT}
        if self.eot_id is not None:
            inputs["documents_BT"] = document_ids(x_BT, self.eot_id)
        return inputs

    def _torch_schedule(self, micro_batches: int) -> Any:
        """Return torch's schedule of this many micro-batches, built at first use."""
        if micro_batches not in self.schedules:
            stages = [
                self._torch_stage(stage, index, micro_batches)
                for index, stage in enumerate(self.stages)
            ]
            self.schedules[micro_batches] = SCHEDULE_CLASSES[self.schedule](
                stages if SCHEDULES[self.schedule] > 1 else stages[0],
                n_microbatches=micro_batches,
                loss_fn=self._scaled_loss,
                scale_grads=False,
            )
        return self.schedules[micro_batches]

    def _torch_stage(self, stage: GPT, index: int, micro_batches: int) -> PipelineStage:
        """Wrap the `index`-th stage of this process for a schedule of `micro_batches`."""
        pp = self.context.layout.pp
        tokens = torch.empty(self.micro_batch, self.config.n_ctx, dtype=torch.long, device="meta")
        activations = self._activations(tokens).requires_grad_()
        loss = torch.empty((), device="meta", requires_grad=True)
        return _Stage(
            stage,
            self.context.pp_rank + index * pp,
            len(self.stages) * pp,
            self.context.device,
            input_args=tokens if is_first(stage) else activations,
            output_args=loss if is_last(stage) else activations,
            group=self.group,
            pass_context=lambda chunk: self.pass_context(index * micro_batches + chunk),
        )

    def _activations(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Allocate what one stage sends to the next: this process's slice of the residual stream,
        (B, T / tp, C).
        """
        B, T = tokens_BT.shape
        return torch.empty(
            B, T // self.context.layout.tp, self.config.d_model, device=tokens_BT.device
        )

    def _scaled_loss(self, loss: torch.Tensor, target_BT: torch.Tensor) -> torch.Tensor:
        self.loss_sum += loss.detach()
        return loss * self.loss_scale

    def _sum_embedding_gradient(self) -> None:
        """Sum the embedding's gradient over the first and the last stage.

        Addition of two numbers commutes to the bit, so both stages get the same sum.
        """
        ends = [stage for stage in self.stages if is_first(stage) or is_last(stage)]
        if not ends:
            return
        gradient = ends[0].wte.weight.grad
        assert gradient is not None
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        received = torch.empty_like(local)
        peer = self.context.layout.pp - 1 if is_first(ends[0]) else 0
        transfers = [
            dist.P2POp(dist.isend, local, group=self.group, group_peer=peer),
            dist.P2POp(dist.irecv, received, group=self.group, group_peer=peer),
        ]
        for transfer in dist.batch_isend_irecv(transfers):
            transfer.wait()
        local += received


@dataclass(frozen=True, slots=True)
class Transfer:
    """Activations of one micro-batch between two processes."""

    is_send: bool
    """True if this process sends them."""
    peer: int
    """Coordinate along `pp` of the other process."""
    stage: int
    """Number of the stage, of all, whose output they are."""
    batch: int
    """Number of the micro-batch."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Work of a process between two exchanges of an evaluation."""

    passes: list[tuple[int, int]]
    """Forward passes: number of the stage, of all, and of the micro-batch."""
    transfers: list[Transfer]
    """Exchange after them, ordered by stage; sends before receives of the same stage."""


def evaluation_ticks(rank: int, pp: int, stages_here: int, batches: int) -> list[Tick]:
    """Return the part of process `rank` in a forward pass of `batches` micro-batches.

    Stage s runs micro-batch t - s in tick t, and is on process s % pp, which has `stages_here` of
    them. All processes have the same ticks, and exchange after each what the next one needs.
    """
    stages = pp * stages_here
    ticks = []
    for tick in range(batches + stages - 1):
        passes, transfers = [], []
        for stage in range(stages):
            batch = tick - stage
            if not 0 <= batch < batches:
                continue
            if stage % pp == rank:
                passes.append((stage, batch))
            if stage == stages - 1:
                continue
            if stage % pp == rank:
                transfers.append(Transfer(True, (stage + 1) % pp, stage, batch))
            if (stage + 1) % pp == rank:
                transfers.append(Transfer(False, stage % pp, stage, batch))
        ticks.append(Tick(passes, transfers))
    return ticks


class _Stage(PipelineStage):
    """Torch's stage, with each forward pass in a context chosen by its micro-batch."""

    def __init__(
        self,
        *args: Any,
        pass_context: Callable[[int], AbstractContextManager[object]],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.pass_context = pass_context

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Run the forward pass of one micro-batch in its context."""
        with self.pass_context(fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)


def is_first(stage: GPT) -> bool:
    """Return whether a stage embeds the tokens."""
    return stage.wpe is not None


def is_last(stage: GPT) -> bool:
    """Return whether a stage computes the loss."""
    return stage.lm_head is not None


def _empty_batch(like: Batch) -> Batch:
    """Return a micro-batch whose targets are all ignored."""
    return torch.zeros_like(like[0]), torch.full_like(like[1], IGNORE)
