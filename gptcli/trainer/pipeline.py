"""Pipeline parallelism: consecutive layers form stages, and torch's schedules run micro-batches
through them.

A process holds one stage, or, interleaved, every pp-th of several times as many (Narayanan et al.
2021). Of a tied model the first and the last stage each hold the table; after every step's backward
passes they exchange its gradients, and stay equal to the bit.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
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
from gptcli.cost.memory import SCHEDULES
from gptcli.distributed.context import Place
from gptcli.model.config import ModelConfig
from gptcli.model.loss import IGNORE, next_token_loss
from gptcli.model.transformer import GPT
from gptcli.trainer.auto import padded_micro_batches
from gptcli.trainer.batches import MicroBatch

Context = contextlib.AbstractContextManager[object]


RUNS = {  # how the passes of micro-batches are ordered
    "1f1b": Schedule1F1B,
    "gpipe": ScheduleGPipe,
    "interleaved1f1b": ScheduleInterleaved1F1B,
    "loopedbfs": ScheduleLoopedBFS,
}


class Stage(nn.Module):
    """Some consecutive layers of a GPT, with the embeddings before the first and the head after the
    last, under the plain names.
    """

    head_loss = staticmethod(next_token_loss)

    def __init__(self, model: GPT, layers: range) -> None:
        super().__init__()
        self.config = config = model.config
        self.first, self.last = layers.start == 0, layers.stop == config.n_layer
        self.begin: Callable[[], Context] = contextlib.nullcontext
        """What a forward pass runs in."""
        if self.first:
            self.wte, self.wpe, self.drop = model.wte, model.wpe, model.drop
        elif (
            self.last and config.tied
        ):  # a table of its own, under the name that the first stage's has
            self.wte = nn.Embedding(
                config.vocab_size, config.d_model, device=model.wte.weight.device
            )
        self.h = nn.ModuleDict({str(layer): model.h[layer] for layer in layers})
        if self.last:
            self.ln_f, self.lm_head = model.ln_f, model.lm_head
            if config.tied:
                self.lm_head.weight = self.wte.weight

    def forward(self, x: torch.Tensor, target_BT: torch.Tensor | None = None) -> torch.Tensor:
        """The tokens (B, T) of the first stage, otherwise the stream (B, T, C), to the stream; of
        the last stage to the summed loss.
        """
        with self.begin():
            if self.first:
                x = self.drop(self.wte(x) + self.wpe(torch.arange(x.shape[1], device=x.device)))
            for block in self.h.values():
                x = block(x)
            if not self.last:
                return x
            assert target_BT is not None
            return self.head_loss(
                self.ln_f(x).flatten(0, 1), self.lm_head.weight, target_BT.flatten()
            )


def cut(model: GPT, place: Place, schedule: str) -> list[Stage]:
    """This process's stages."""
    stages = SCHEDULES[schedule] * place.layout.pp
    sizes = [layers_of_stage(model.config.n_layer, stages, stage) for stage in range(stages)]
    mine = range(place.stage, stages, place.layout.pp)
    return [Stage(model, range(sum(sizes[:stage]), sum(sizes[: stage + 1]))) for stage in mine]


def held_by(stages: list[Stage]) -> nn.Module:
    """All that several stages of a process hold, in one module under the plain names."""
    if len(stages) == 1:
        return stages[0]
    held = nn.Module()
    for stage in stages:
        for name, child in stage.named_children():
            if name != "h":
                held.add_module(name, child)
    held.h = nn.ModuleDict({name: block for stage in stages for name, block in stage.h.items()})
    return held


class Pipeline:
    """Runs micro-batches through all stages of a replica; its processes call together, with the
    same sequences.
    """

    def __init__(
        self,
        stages: list[Stage],
        place: Place,
        group: dist.ProcessGroup,
        model: ModelConfig,
        schedule: str,
        micro_batch: int,
    ) -> None:
        self.stages, self.place, self.group, self.model = stages, place, group, model
        self.schedule, self.micro_batch = schedule, micro_batch
        self.runs: dict[int, Any] = {}
        self.scale, self.total = 1.0, torch.zeros((), device=place.device)

    def gradients(
        self, batches: list[MicroBatch], scale: float, begin: Callable[[int], Context]
    ) -> torch.Tensor:
        """Add the gradient of `scale` times the summed loss to the parameters'; returns the loss on
        the last stage, 0 on the others.

        `begin` is what a forward pass of this process runs in, by its number.
        """
        count = padded_micro_batches(len(batches), self.place.layout.pp, self.schedule)
        # every schedule runs a stage's micro-batches in order
        for index, stage in enumerate(self.stages):
            stage.begin = _counting(begin, index * count)
        x_BT, y_BT = (
            torch.cat(parts)
            for parts in zip(*batches, *[_empty(batches[0])] * (count - len(batches)), strict=True)
        )
        self.scale = scale
        self.total.zero_()
        self._run(count).step(x_BT, target=y_BT, target_BT=y_BT, return_outputs=False)
        if self.model.tied:
            self._exchange_table()
        return self.total.clone()

    @torch.no_grad()
    def loss(self, batches: list[MicroBatch], begin: Callable[[], Context]) -> torch.Tensor:
        """The summed loss, on the last stage; 0 on the others. Forward passes only: stage after
        stage, nothing waits for a send.
        """
        total, sends = torch.zeros((), device=self.place.device), []
        for stage in self.stages:
            stage.begin = begin
            for x_BT, y_BT in batches:
                x = x_BT if stage.first else self._stream(x_BT)
                if not stage.first:
                    dist.recv(
                        x, group=self.group, group_src=(self.place.stage - 1) % self.place.layout.pp
                    )
                y = stage(x, y_BT)
                if stage.last:
                    total += y
                else:
                    sends.append(
                        dist.isend(
                            y,
                            group=self.group,
                            group_dst=(self.place.stage + 1) % self.place.layout.pp,
                        )
                    )
        for send in filter(None, sends):
            send.wait()
        return total

    def _run(self, count: int) -> Any:
        """Torch's schedule of `count` micro-batches."""
        if count not in self.runs:
            stages = [self._torch_stage(stage, index) for index, stage in enumerate(self.stages)]
            several = SCHEDULES[self.schedule] > 1
            self.runs[count] = RUNS[self.schedule](
                stages if several else stages[0],
                n_microbatches=count,
                loss_fn=self._scaled,
                scale_grads=False,
            )
        return self.runs[count]

    def _torch_stage(self, stage: Stage, index: int) -> PipelineStage:
        tokens = torch.empty(self.micro_batch, self.model.n_ctx, dtype=torch.long, device="meta")
        number, of = (
            self.place.stage + index * self.place.layout.pp,
            len(self.stages) * self.place.layout.pp,
        )
        return PipelineStage(
            stage,
            number,
            of,
            self.place.device,
            input_args=tokens if stage.first else self._stream(tokens).requires_grad_(),
            output_args=torch.empty((), device="meta", requires_grad=True)
            if stage.last
            else self._stream(tokens).requires_grad_(),
            group=self.group,
        )

    def _stream(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Room for what goes from stage to stage: this process's slice of the residual stream."""
        B, T = tokens_BT.shape
        return torch.empty(
            B, T // self.place.layout.tp, self.model.d_model, device=tokens_BT.device
        )

    def _scaled(self, loss: torch.Tensor, target_BT: torch.Tensor) -> torch.Tensor:
        self.total += loss.detach()
        return loss * self.scale

    def _exchange_table(self) -> None:
        """Sum the gradient of the first and the last stage's table; a + b is b + a to the bit."""
        mine = [stage for stage in self.stages if stage.first or stage.last]
        if not mine:
            return
        gradient = mine[0].wte.weight.grad
        assert gradient is not None
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        other = torch.empty_like(local)
        peer = self.place.layout.pp - 1 if mine[0].first else 0
        ops = [
            dist.P2POp(dist.isend, local, group=self.group, group_peer=peer),
            dist.P2POp(dist.irecv, other, group=self.group, group_peer=peer),
        ]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        local += other


def _counting(begin: Callable[[int], Context], first: int) -> Callable[[], Context]:
    """`begin` of the next number each time, from `first` on."""
    numbers = itertools.count(first)
    return lambda: begin(next(numbers))


def _empty(like: MicroBatch) -> MicroBatch:
    """A micro-batch that counts for nothing."""
    return torch.zeros_like(like[0]), torch.full_like(like[1], IGNORE)
