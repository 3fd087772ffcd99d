"""A run from its first step to its model: step, checkpoint, evaluation, record, in this order."""

from __future__ import annotations

import math
import signal
import time
from typing import Any

import torch

from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import identify_gpu
from gptcli.errors import RunError
from gptcli.events import Events
from gptcli.shards.loader import open_split
from gptcli.shards.manifest import read_manifest
from gptcli.shards.order import Windows
from gptcli.trainer import checkpoint
from gptcli.trainer.batches import InOrder, MicroBatch, micro_batches
from gptcli.trainer.config import Run
from gptcli.trainer.engine import build
from gptcli.trainer.evaluate import validation_loss
from gptcli.trainer.export import export
from gptcli.trainer.layout import Place
from gptcli.trainer.metrics import Line, MetricsLog
from gptcli.trainer.report import write_report
from gptcli.trainer.schedule import Position, Schedule

Report = dict[str, Any]


def train(run: Run, place: Place, events: Events) -> Report:
    """Train to the end, or to the step in which SIGTERM or SIGINT comes, and report; every process of the run calls it together.

    Raises RunError where the loss is not finite or a checkpoint cannot be written.
    """
    stop = StopSignal(events, patient=place.world > 1)
    try:
        return Training(run, place, events, stop).run_to_end()
    finally:
        stop.release()


class Training:
    """One process's part in a run."""

    def __init__(self, run: Run, place: Place, events: Events, stop: StopSignal) -> None:
        self.run, self.place, self.events, self.stop = run, place, events, stop
        n_ctx = run.model.n_ctx
        self.schedule = Schedule(run.train, n_ctx)
        self.order = Windows(open_split(run.data, "train", verify=False), n_ctx, run.train.seed)
        self.validation = open_validation(run)
        self.stepper = build(run, place, events)
        self.position = Position()
        self.val_loss: float | None = None
        self.last: Line = {}
        if run.checkpoint is not None:
            state = checkpoint.load(run.checkpoint, self.stepper.model, self.stepper.optimizer)
            self.position, self.last = state.position, state.metrics
            events.info(f"going on after step {self.position.step:,} of {self.schedule.steps():,}")
        self.log = MetricsLog(run.out, before=self.position.step) if place.leads else None

    def run_to_end(self) -> Report:
        begin = time.perf_counter()
        stopped = False
        if self.last:  # its checkpoint was written; its evaluation and its line may not have been
            self._record()
        batches = self._fetch()
        while not (self._done() or stopped):
            batches, stopped = self._step(batches)
            if self._due(self.run.train.checkpoint_every) or stopped:
                self._save()
            self._record()
        self.events.finish("train")
        if not stopped:
            self._finish()
        return {
            "out": str(self.run.out),
            "parameters": self.run.model.parameters,
            "step": self.position.step,
            "tokens": self.last["tokens"],
            "loss": self.last["loss"],
            "val_loss": self.val_loss,
            "seconds": round(time.perf_counter() - begin, 3),
            "interrupted": stopped,
        }

    def _step(self, batches: list[MicroBatch]) -> tuple[list[MicroBatch], bool]:
        """One update. Returns the next step's batches, and whether any process was told to stop."""
        started = time.perf_counter()
        after = self.schedule.after(self.position)
        n_ctx = self.run.model.n_ctx
        tokens, batch_tokens = after.sequences * n_ctx, (after.sequences - self.position.sequences) * n_ctx
        lr = self.schedule.lr(tokens)
        loss = self.stepper.gradients(batches, batch_tokens, after.step)
        norm = self.stepper.update(lr)
        self.position = after
        following = self._fetch()  # while the device is still at work
        told = torch.full_like(loss, self.stop.told)
        loss_sum, stopped = self.place.total(torch.stack([loss, told])).tolist()
        grad_norm = norm.item()
        mean = loss_sum / batch_tokens
        if not (math.isfinite(mean) and math.isfinite(grad_norm)):
            raise RunError(
                f"the loss is {mean} and its gradient {grad_norm} at step {after.step}",
                where=self.run.out,
                hint="start over with a lower --lr or a longer --warmup-tokens: gpt train ... --force",
            )
        speed = batch_tokens / (time.perf_counter() - started)
        self.last = {
            "step": after.step,
            "tokens": tokens,
            "loss": mean,
            "lr": lr,
            "grad_norm": grad_norm,
            "batch_tokens": batch_tokens,
            "tokens_per_second": round(speed, 1),
            "mfu": model_flops_utilisation(self.run, self.place, speed),
        }
        return following, bool(stopped)

    def _fetch(self) -> list[MicroBatch]:
        """This process's part of the step that comes."""
        first, count = self.position.sequences, self.schedule.batch(self.position.sequences)
        return micro_batches(self.order, first, count, self.run.train.micro_batch, self.place)

    def _save(self) -> None:
        state = checkpoint.State(self.position, self.run.identity(), self.last)
        checkpoint.save(self.run.out, state, self.stepper.model, self.stepper.optimizer, self.place, keep=self.run.train.keep)

    def _record(self) -> None:
        """Evaluate where it is due, and write the step's line."""
        train = self.run.train
        line = dict(self.last)
        if self.validation and self._due(train.eval_every):
            windows = min(self.validation.windows, max(1, train.eval_tokens // self.run.model.n_ctx))
            self.val_loss = line["val_loss"] = validation_loss(self.stepper, self.validation, windows, train.micro_batch)
        if self.log:
            self.log.write(line)
            if self._due(train.checkpoint_every):
                write_report(self.run)
        facts = {name: line[name] for name in ("loss", "lr", "tokens_per_second")}
        if self.val_loss is not None:
            facts["val_loss"] = self.val_loss
        total = self.schedule.total * self.run.model.n_ctx
        self.events.progress("train", line["tokens"], total, "tokens", **facts)

    def _finish(self) -> None:
        tensors = checkpoint.model_tensors(self.stepper.model)
        if self.place.leads:
            export(self.run, tensors, self.last, self.val_loss)
        self.place.wait()

    def _done(self) -> bool:
        return self.position.sequences >= self.schedule.total

    def _due(self, every: int) -> bool:
        """At every so many steps, and at the end."""
        return self.position.step % every == 0 or self._done()


def open_validation(run: Run) -> InOrder | None:
    """The validation windows, or None where the shards hold not one."""
    if read_manifest(run.data).tokens("val") <= run.model.n_ctx:
        return None
    return InOrder(open_split(run.data, "val", verify=False), run.model.n_ctx)


def model_flops_utilisation(run: Run, place: Place, tokens_per_second: float) -> float | None:
    """The model's FLOPs (PaLM's count: 6N + 12·L·C·T a token) over the GPUs' peak; None on a CPU and for a GPU that has no row."""
    if place.device.type != "cuda" or (gpu := identify_gpu(torch.cuda.get_device_name(place.device))) is None:
        return None
    return flops_per_token(run.model, "palm") * tokens_per_second / (place.world * gpu.peak_flops)


class StopSignal:
    """SIGTERM and SIGINT as a wish to stop after the step. Asked twice, a process that is alone stops at once (`patient` ones do not:
    one Ctrl-C reaches them from the terminal and from their parent)."""

    def __init__(self, events: Events, *, patient: bool) -> None:
        self.events, self.patient, self.told = events, patient, False
        self.before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}

    def release(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        if self.told and not self.patient:
            raise KeyboardInterrupt
        if not self.told:
            self.events.info("stopping: this step and a checkpoint first")
        self.told = True
