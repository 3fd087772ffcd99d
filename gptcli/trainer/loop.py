"""A run from its first step to its model: step, checkpoint, evaluation, record, in this order."""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from gptcli.distributed.context import Place
from gptcli.errors import Interrupted, RunError
from gptcli.events import Events
from gptcli.interrupts import Answer, leave
from gptcli.model.checkpoint_tensors import SavedModel
from gptcli.numbers import WEEK, amount, rough_duration
from gptcli.runs.metrics import Line, MetricsLog, smoothed_loss, window
from gptcli.runtime import launched_processes, pin_thread_count
from gptcli.shards.loader import open_split
from gptcli.shards.manifest import read_manifest
from gptcli.shards.order import Mixture, open_order
from gptcli.trainer.batches import InOrder, MicroBatch, micro_batches
from gptcli.trainer.checkpoint import (
    Checkpoints,
    State,
    canonical_parameters,
    folder_of,
    take_weights,
)
from gptcli.trainer.config import Run
from gptcli.trainer.evaluate import validation_loss
from gptcli.trainer.export import (
    TransformersCopy,
    export,
    is_copied,
    model_card,
    prepare,
    write_card,
)
from gptcli.trainer.noise_scale import NoiseScale, part_of
from gptcli.trainer.parallelize import build
from gptcli.trainer.precision import check_numeric_environment
from gptcli.trainer.profile import Profiler
from gptcli.trainer.report import write_report
from gptcli.trainer.samples import Sampler, model_of
from gptcli.trainer.schedule import Position, Schedule
from gptcli.trainer.speed import Pace, Speed, peak_memory
from gptcli.trainer.spike_guard import Guard
from gptcli.trainer.start import start_folder
from gptcli.trainer.tracking import TensorBoard

# steps between garbage collections, by all processes at the same one: a collection stops a step for
# up to a second
COLLECT_EVERY = 1000
RUNNING = "running"  # the key of a checkpoint's metrics that holds the running means

Report = dict[str, Any]


def train(run: Run, place: Place, events: Events) -> Report:
    """Train to the end, or to the step in which a signal to stop comes, and report; every process
    of the run calls it together.

    Raises RunError where too many updates in a row were skipped or a checkpoint cannot be written,
    Interrupted where a signal came too late to stop at a step.
    """
    training = Training(run, place, events)
    with collected_by_hand(), training:
        return training.run_to_end()


class Training:
    """One process's part in a run."""

    def __init__(self, run: Run, place: Place, events: Events) -> None:
        self.run, self.place, self.events, self.stop = run, place, events, StopSignal(events)
        n_ctx = run.model.n_ctx
        self.schedule = Schedule(run.train, n_ctx)
        # Before anything that the first process does alone, so that all report missing data alike.
        self.order = open_order(run.data, "train", n_ctx, run.train.seed, verify=False)
        self.validation = open_validation(run)
        if place.leads:
            prepare(run)
        self.stepper = build(run, place, events)
        self.position = Position()
        self.val_loss: float | None = None
        self.last: Line = {}
        running: dict[str, Any] = {}
        self.checkpoints = Checkpoints(run.out, place, keep=run.train.keep)
        self.parameters = canonical_parameters(self.stepper.model)
        if run.resume and (folder := self.checkpoints.newest(events)) is not None:
            state = self.checkpoints.load(folder, self.parameters, self.stepper.optimizer)
            self.position, self.last = state.position, state.metrics
            running = self.last.pop(RUNNING, {})
            events.info(f"going on after step {self.position.step:,}")
        elif run.init_from is not None:
            take_weights(start_folder(run.out, run.init_from), self.parameters, run.init_step)
        self.noise = NoiseScale(running.get("noise"))
        self.guard = Guard(run.train.spike, running.get("guard"))
        if self.stepper.loss_scale and "loss_scale" in running:
            self.stepper.loss_scale.state = running["loss_scale"]
        self.threads = (
            pin_thread_count(running.get("threads"), events) if place.device.type == "cpu" else None
        )
        self.arithmetic = check_numeric_environment(running.get("arithmetic"), run.train, events)
        self.grown: int = running.get("batch", self.schedule.first)
        """Sequences of the next batch where it follows the noise scale."""
        self.speed, self.pace = Speed(run, place), Pace(self.schedule.total * n_ctx)
        done, leads = self.position.step, place.leads
        self.log = MetricsLog(run.out, before=done) if leads else None
        self.sampler = Sampler(run, events, upto=done) if leads and run.train.samples else None
        self.copy = (
            TransformersCopy(run.out, run.model, events, upto=done)
            if leads and is_copied(run.model)
            else None
        )
        self.followers = [
            follower for follower in (self.copy, self.sampler) if follower is not None
        ]
        self.tracker = (
            TensorBoard(run.out, before=done) if leads and run.track == "tensorboard" else None
        )
        self.profiler = Profiler(run.out, place.device, events) if leads and run.profile else None

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *exception: object) -> None:
        """However the run ends, no thread of it goes on."""
        for follower in self.followers:
            follower.leave()

    def run_to_end(self) -> Report:
        begin = time.perf_counter()
        if self.last:  # its checkpoint was written; its evaluation and its line may not have been
            self._record()
        with self.stop:
            stopped = self._steps()
        if not stopped:
            if self.stop.told:
                raise stopped_after(self.position.step, self.run.out)
            self._finish()
        elif self.copy:
            self.copy.finish(*self._newest())
        for watcher in (self.tracker, self.profiler):
            if watcher is not None:
                watcher.close()
        return {
            "out": str(self.run.out),
            "parameters": self.run.model.parameters,
            "step": self.position.step,
            "tokens": self.last["tokens"],
            "loss": self.last["loss"],
            "smoothed_loss": self.smoothed_loss(),
            "smoothed_steps": window(self.position.step),
            "val_loss": self.val_loss,
            "skipped": self.guard.state["skipped"],
            "seconds": round(time.perf_counter() - begin, 3),
            "interrupted": stopped,
        }

    def _steps(self) -> bool:
        """Whether the run was stopped before its end; its last step has a checkpoint on disk in
        either case.
        """
        batches, stopped = self._fetch(), False
        while not (self._done() or stopped):
            batches, stopped = self._step(batches)
            if self._due(self.run.train.checkpoint_every) or stopped:
                self._save()
            self._record()
            if self.profiler:
                self.profiler.step()
        self.events.finish("train")
        self.checkpoints.wait()
        return stopped

    def _step(self, batches: list[MicroBatch]) -> tuple[list[MicroBatch], bool]:
        """One update. Returns the next step's batches, and whether any process was told to stop."""
        started = time.perf_counter()
        n_ctx, size = self.run.model.n_ctx, self._size()
        self.position = Position(self.position.step + 1, self.position.sequences + size)
        tokens, batch_tokens = self.position.sequences * n_ctx, size * n_ctx
        loss = self.stepper.gradients(batches, batch_tokens, self.position.step)
        norm = self.stepper.clip_gradients()
        following = self._fetch()  # while the device is still at work
        told = torch.full_like(loss, self.stop.told)
        # The one moment in a step that waits for the device: all processes then hold the same four
        # numbers, and decide alike.
        loss_sum, part, norms, stopped = self.place.total(
            torch.stack([loss, self.stepper.part.norm2, norm, told])
        ).tolist()
        mean, grad_norm = loss_sum / batch_tokens, norms / self.place.world
        lr = self.schedule.lr(tokens)
        objection = self.guard.objection(mean, grad_norm)
        if objection is None:
            self.stepper.update(lr)
            self._measure_noise(part, grad_norm, size)
        else:
            self.stepper.skip()
        self.last = {
            "step": self.position.step,
            "tokens": tokens,
            "loss": finite(mean),
            "lr": lr,
            "grad_norm": finite(grad_norm),
            "batch_tokens": batch_tokens,
            **self.speed.fields(batch_tokens / (time.perf_counter() - started)),
            "noise_scale": self.noise.tokens,
            "peak_memory": peak_memory(self.place.device),
        }
        if objection is not None:
            self._object(objection)
        grown = self.schedule.followed(self.grown, self.position.step, self.noise.tokens)
        if self.run.train.follow_noise and grown != self.grown:
            self.grown = grown
            following = self._fetch()
        if self.position.step % COLLECT_EVERY == 0:
            gc.collect()
        return following, bool(stopped)

    def _measure_noise(self, part: float, grad_norm: float, size: int) -> None:
        """`part` is the sum over processes of the squared norm of a part of the gradient, of the
        batch's `size` sequences.
        """
        held = part_of(size, self.run.train.micro_batch, self.place, self.position.step)
        if held is None:
            return
        # scaled for the mean over the whole batch; a part that each process has of its own, for its
        # share of that mean
        scale = size / (held * (1 if self.place.sliced else self.place.world))
        n_ctx = self.run.model.n_ctx
        self.noise.add(part / self.place.world * scale**2, grad_norm**2, held * n_ctx, size * n_ctx)

    def _object(self, objection: str) -> None:
        """Record a skipped update. Raises RunError where there have been too many in a row."""
        self.last["skipped"] = objection
        step, most = self.position.step, self.run.train.max_skipped
        self.events.warn(f"step {step:,}: {objection}: its update is skipped")
        if self.guard.state["in_a_row"] >= most:
            raise RunError(
                f"{most:,} updates in a row were skipped; at step {step:,} {objection}",
                where=self.run.out,
                hint="start over with a lower {option:lr} or a longer {option:warmup_tokens}, "
                "and with {option:force}",
            )

    def _size(self) -> int:
        """Sequences of the step that comes."""
        if self.run.train.follow_noise:
            return min(self.grown, self.schedule.total - self.position.sequences)
        return self.schedule.batch(self.position.sequences)

    def _fetch(self) -> list[MicroBatch]:
        """This process's part of the step that comes."""
        return micro_batches(
            self.order,
            self.position.sequences,
            self._size(),
            self.run.train.micro_batch,
            self.place,
        )

    def _save(self) -> None:
        running = {"noise": self.noise.state, "guard": self.guard.state, "batch": self.grown}
        running |= {"threads": self.threads, "arithmetic": self.arithmetic}
        if self.stepper.loss_scale:
            running["loss_scale"] = self.stepper.loss_scale.state
        state = State(self.position, self.run.identity(), {**self.last, RUNNING: running})
        for log in (self.log, self.sampler.log if self.sampler else None):
            if log is not None:
                log.sync()
        self.checkpoints.save(state, self.parameters, self.stepper.optimizer, then=self._card())
        for follower in self.followers:
            follower.begin(*self._newest())

    def _card(self) -> Callable[[], None] | None:
        """What writes a model card of this step; None at the last one, whose card comes with the
        finished model.
        """
        if self.log is None or self._done():
            return None
        last = {**self.last, "smoothed_loss": smoothed_loss([*self.log.newest, self.last])}
        card = model_card(self.run, last, self.val_loss, None, finished=False)

        def write() -> None:
            # a full disk costs no run: the card says at which step it was written
            with contextlib.suppress(OSError):
                write_card(self.run, card)

        return write

    def _newest(self) -> tuple[Path, int, int]:
        """The checkpoint of this step: where it will be, its step and its tokens."""
        return folder_of(self.run.out, self.position.step), self.position.step, self.last["tokens"]

    def _record(self) -> None:
        """Evaluate where it is due, and write the step's line."""
        train = self.run.train
        line = dict(self.last)
        if self.validation and self._due(train.eval_every):
            windows = min(
                self.validation.windows, max(1, train.eval_tokens // self.run.model.n_ctx)
            )
            self.val_loss = line["val_loss"] = validation_loss(
                self.stepper, self.validation, windows, train.micro_batch
            )
        if self.run.measure and self._due(train.checkpoint_every):
            self.checkpoints.wait()  # from there the model comes, whatever the layout
            if self.place.leads:
                line |= self.run.measure(
                    model_of(self.run, self._newest()[0]).to(self.place.device)
                )
            self.checkpoints.meet()
        if self.log:
            self.log.write(line)
            if self._due(train.checkpoint_every):
                write_report(self.run)
        if self.tracker:
            self.tracker.write(line)
        total = self.schedule.total * self.run.model.n_ctx
        ramping = 2 * line["batch_tokens"] < self.schedule.full * self.run.model.n_ctx
        if (
            pace := self.pace.step(line["tokens"], time.perf_counter(), ramping=ramping)
        ) is not None:
            seconds, speed = pace
            say = self.events.warn if seconds > WEEK else self.events.info
            say(
                f"about {rough_duration(seconds)} left, by the first steps: {amount(speed)} tokens/s"
            )
        facts = {**line, "val_loss": self.val_loss, "smoothed_loss": self.smoothed_loss()}
        self.events.progress("train", line["tokens"], total, "tokens", **facts)

    def _finish(self) -> None:
        if self.sampler:
            self.sampler.finish(*self._newest())
            write_report(self.run)
        if self.copy:
            self.copy.leave()  # the finished model takes its place
        if self.place.leads:
            last = {**self.last, "smoothed_loss": self.smoothed_loss()}
            export(
                self.run,
                SavedModel(folder_of(self.run.out, self.position.step)),
                last,
                self.val_loss,
            )
        self.checkpoints.meet()

    def smoothed_loss(self) -> float | None:
        """Of the first process, which keeps the lines."""
        return smoothed_loss(self.log.newest) if self.log else None

    def _done(self) -> bool:
        return self.position.sequences >= self.schedule.total

    def _due(self, every: int) -> bool:
        """At every so many steps, and at the end."""
        return self.position.step % every == 0 or self._done()


def open_validation(run: Run) -> InOrder | Mixture | None:
    """The validation windows as they stand, or, of several sources, mixed as in training; None
    where one source does not fill a window.
    """
    manifest, n_ctx = read_manifest(run.data), run.model.n_ctx
    sources = list(manifest.shares("val"))
    if len(sources) < 2:
        return (
            InOrder(open_split(run.data, "val", verify=False), n_ctx)
            if manifest.tokens("val") > n_ctx
            else None
        )
    if min(manifest.tokens("val", name) for name in sources) <= n_ctx:
        return None
    order = open_order(run.data, "val", n_ctx, seed=0, verify=False)
    assert isinstance(order, Mixture)
    return order


@contextlib.contextmanager
def collected_by_hand() -> Iterator[None]:
    """No garbage collection but the loop's own, and none of what is there already: one in the
    middle of a step stops every process.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def finite(value: float) -> float | None:
    """JSON has no word for the others."""
    return value if math.isfinite(value) else None


def stopped_after(step: int, out: Path) -> Interrupted:
    """The last message of a run that was told to stop and has done so."""
    return Interrupted(
        f"stopped after step {step:,}, with a checkpoint", where=out, hint="{option:resume} goes on"
    )


class StopSignal(Answer):
    """A signal to stop as a wish: the step under way and a checkpoint come first. The second one
    ends the process at once.

    In a process that torchrun or Slurm started, no second one does: a Ctrl-C reaches it from the
    terminal and from its launcher.
    """

    def __init__(self, events: Events) -> None:
        self.events, self.told, self.shown = events, False, False
        self.patient = launched_processes() is not None and multiprocessing.parent_process() is None

    def note(self, number: int) -> None:
        self.told = True

    def act(self, number: int) -> None:
        self.told = True
        if not self.shown:
            self.shown = True
            self.events.info(
                "stopping: this step and a checkpoint first"
                + "; a second Ctrl-C stops at once" * (not self.patient)
            )
        elif not self.patient:
            leave()
