"""Training loop: step, checkpoint, evaluation and record, in this order, until the run's end."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch

from gptcli.distributed.context import RankContext, check_numeric_environment, pin_thread_count
from gptcli.distributed.gpu import check_gpus, use_deterministic_kernels
from gptcli.errors import Interrupted, RunError
from gptcli.events import Events
from gptcli.interrupts import Answer, leave
from gptcli.model.source import initial_weights_folder
from gptcli.model.tensor_file import CheckpointStateDict
from gptcli.runs.metrics import Line, window
from gptcli.runtime import launched_processes
from gptcli.shards.order import Mixture, open_order
from gptcli.toml_json import finite
from gptcli.trainer.callbacks import Callback, RunProgress
from gptcli.trainer.checkpoint import (
    Checkpoints,
    CheckpointState,
    load_weights_,
    plain_named_parameters,
)
from gptcli.trainer.config import Run
from gptcli.trainer.evaluation import (
    BestCheckpoint,
    EarlyStop,
    SampleWriter,
    TaskEvaluation,
    Validation,
    ValidationOrder,
    open_validations,
)
from gptcli.trainer.export import (
    ModelCardWriter,
    TransformersCopy,
    export_model,
    is_small,
    prepare_run_folder,
)
from gptcli.trainer.memory import process_memory
from gptcli.trainer.monitors import (
    GarbageCollection,
    MemoryAndDataTime,
    NoiseScaleMonitor,
    Profiler,
    ProgressReporter,
    RankMonitor,
    SourceMonitor,
    Throughput,
)
from gptcli.trainer.parallelize import build_train_step, fuses_layers
from gptcli.trainer.remote import CheckpointCopies
from gptcli.trainer.schedule import Position, Schedule
from gptcli.trainer.step import MicroBatch, StepResult, micro_batch_sources, micro_batches
from gptcli.trainer.trackers import MetricsLogger, ReportWriter, find_tracker

TRAINER_STATE = "running"  # key of the trainer's state in the metrics of a checkpoint

Report = dict[str, Any]


def train(run: Run, context: RankContext, events: Events) -> Report:
    """Train to the end, or to the step in which a signal to stop arrives, and return the report.

    All ranks call it together. Raises RunError if too many updates in a row were skipped or a
    checkpoint cannot be written, Interrupted if a signal arrived after the last step.
    """
    return Trainer(run, context, events).train()


class Trainer:
    """One rank of a training run."""

    def __init__(self, run: Run, context: RankContext, events: Events) -> None:
        """Build model and optimizer, load the newest checkpoint of a resumed run, add callbacks."""
        self.run, self.context, self.events = run, context, events
        self.stop, self.saved_at = StopSignal(events), time.monotonic()
        n_ctx, config = run.model.n_ctx, run.train
        self.schedule = Schedule(config, n_ctx)
        # Opened before the main rank writes anything: all ranks report missing data alike.
        self.order = open_order(
            run.data, "train", n_ctx, config.seed, mixture=config.mixture, verify=False
        )
        validations = open_validations(run)
        if context.is_main:
            prepare_run_folder(run)
        sequences = min(self.schedule.full_batch, self.schedule.total_sequences)
        if config.deterministic:
            use_deterministic_kernels(context.device, events)
        check_gpus(context, process_memory(run.model, run.layout, config, sequences), events)
        self.train_step = build_train_step(run, context, events)
        self.context = context = self.train_step.context
        if isinstance(self.order, Mixture):
            self.train_step.observe_sources(len(self.order.sources))
        self.parameters = plain_named_parameters(self.train_step.model)
        self.checkpoints = Checkpoints(
            run.out, context, keep=config.keep, keep_every=config.keep_every
        )
        self.progress = RunProgress(run, context, events, self.schedule)
        trainer_state = self._load_weights()
        self.callbacks = self._build_callbacks(validations)
        self.load_trainer_state(trainer_state)

    def _load_weights(self) -> dict[str, Any]:
        """Load the newest checkpoint of a resumed run, or the weights that a new one starts from.

        Return the trainer's state in the checkpoint; empty for a new run.
        """
        run = self.run
        if run.resume and (folder := self.checkpoints.newest(self.events)) is not None:
            state = self.checkpoints.load(folder, self.parameters, self.train_step.optimizer)
            self.progress.position, self.progress.line = state.position, state.metrics
            self.events.info(f"resuming after step {state.position.step:,}")
            trainer_state: dict[str, Any] = self.progress.line.pop(TRAINER_STATE, {})
            return trainer_state
        if run.init_from is not None:
            folder = initial_weights_folder(run.out, run.init_from)
            load_weights_(folder, self.parameters, run.init_step)
        return {}

    def _build_callbacks(self, validations: dict[str, ValidationOrder]) -> list[Callback]:
        """Return this rank's callbacks, in the order in which they are called."""
        run, progress = self.run, self.progress
        callbacks: list[Callback] = [GarbageCollection(progress)]
        if self.context.is_main:
            callbacks.append(Throughput(progress))
            if isinstance(self.order, Mixture):
                callbacks.append(SourceMonitor(progress, self.order))
        callbacks.append(NoiseScaleMonitor(progress))
        if self.context.world_size > 1:
            callbacks.append(RankMonitor(progress))
        if validations:
            callbacks.append(Validation(progress, self.train_step, validations))
            if run.train.stop_early:
                callbacks.append(EarlyStop(progress))
        if run.measure is not None:
            callbacks.append(TaskEvaluation(progress, self.checkpoints))
        if not self.context.is_main:
            return callbacks
        kinds: list[type[Callback]] = [MemoryAndDataTime, MetricsLogger]
        if run.train.samples:
            kinds.append(SampleWriter)
        kinds += [ReportWriter, ModelCardWriter]
        if run.checkpoint_to is not None:
            kinds.append(CheckpointCopies)
        if run.train.keep_best:
            kinds.append(BestCheckpoint)
        if is_small(run.model):
            kinds.append(TransformersCopy)
        kinds += [find_tracker(name) for name in run.track]
        if run.profile:
            kinds.append(Profiler)
        kinds.append(ProgressReporter)
        return callbacks + [kind(progress) for kind in kinds]

    def trainer_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs besides weights, optimizer and position."""
        state: dict[str, Any] = {}
        for callback in self.callbacks:
            if callback.state_key is not None:
                state[callback.state_key] = callback.state_dict()
        state["guard"] = self.train_step.spike_guard.state
        state["batch"] = self.next_batch_size
        state["threads"], state["arithmetic"] = self.threads, self.arithmetic
        if self.train_step.loss_scale:
            state["loss_scale"] = self.train_step.loss_scale.state
        return state

    def load_trainer_state(self, state: dict[str, Any]) -> None:
        """Restore the state in a checkpoint, or begin with an empty one."""
        for callback in self.callbacks:
            if callback.state_key in state:
                callback.load_state_dict(state[callback.state_key])
        if "guard" in state:
            self.train_step.spike_guard.state = state["guard"]
        if self.train_step.loss_scale and "loss_scale" in state:
            self.train_step.loss_scale.state = state["loss_scale"]
        self.next_batch_size: int = state.get("batch", self.schedule.first_batch)
        """Sequences of the next batch, if it follows the noise scale."""
        # The last bits of a sum depend on both of these.
        on_cpu = self.context.device.type == "cpu"
        self.threads = pin_thread_count(state.get("threads"), self.events) if on_cpu else None
        self.arithmetic = check_numeric_environment(
            state.get("arithmetic"),
            self.events,
            precision=self.run.train.precision,
            compiled=self.run.train.compile,
            fused=fuses_layers(self.train_step.model, self.run.train),
        )

    def train(self) -> Report:
        """Train to the end, or until a signal to stop, and return the report: see `train`."""
        start = time.perf_counter()
        with contextlib.ExitStack() as stack:
            for callback in self.callbacks:
                stack.callback(callback.close)
            for callback in self.callbacks:
                callback.on_start()
            if self.progress.line:
                # A run killed after its checkpoint may lack that step's evaluation and record.
                self._evaluate_and_record()
            with self.stop:
                interrupted = self._train_steps()
            if not interrupted and self.stop.requested:
                raise stopped_after(self.progress.position.step, self.run.out)
            for callback in self.callbacks:
                callback.on_end(interrupted=interrupted)
            if not interrupted:
                self._export()
        return self._report(time.perf_counter() - start, interrupted=interrupted)

    def _train_steps(self) -> bool:
        """Train, and return True if a signal ended it; the last step has a checkpoint then too."""
        batches, interrupted = self._next_batches(), False
        while not (self.progress.is_finished or interrupted):
            batches, result = self._step(batches)
            interrupted = result.stop_requested
            due = self.progress.is_due(self.run.train.checkpoint_every)
            if is_saved := due or interrupted or result.checkpoint_requested:
                self._save_checkpoint()
            self._evaluate_and_record()
            if self.progress.ended and not is_saved:
                self._save_checkpoint()
        self.events.finish("train")
        self.checkpoints.wait()
        return interrupted

    def _step(self, batches: list[MicroBatch]) -> tuple[list[MicroBatch], StepResult]:
        """Run one step; return the next one's micro-batches, and the result."""
        progress, n_ctx = self.progress, self.run.model.n_ctx
        first, size = progress.position.sequences, self._batch_size()
        progress.position = Position(progress.position.step + 1, progress.position.sequences + size)
        tokens, batch_tokens = progress.position.sequences * n_ctx, size * n_ctx
        rates = self.schedule.rates(tokens)
        next_batches: list[MicroBatch] = []
        result = self.train_step(
            batches,
            step=progress.position.step,
            batch_tokens=batch_tokens,
            rates=rates,
            stop_requested=self.stop.requested,
            checkpoint_requested=self._is_checkpoint_overdue(),
            while_device_works=lambda: next_batches.extend(self._next_batches()),
            sources=self._sources(first, size),
        )
        progress.line = line = {
            "step": progress.position.step,
            "tokens": tokens,
            "loss": finite(result.loss),
            "lr": rates.lr,
            "grad_norm": finite(result.grad_norm),
            "batch_tokens": batch_tokens,
        }
        changing = {"weight_decay": rates.weight_decay, "beta2": rates.beta2}
        line.update({name: value for name, value in changing.items() if value is not None})
        for callback in self.callbacks:
            callback.on_step_end(result, line)
        if result.skip_reason is not None:
            self._record_skip(result, line)
        if self._grow_batch(line["noise_scale"]):
            next_batches = self._next_batches()
        return next_batches, result

    def _is_checkpoint_overdue(self) -> bool:
        """Return True if the last checkpoint is older than `checkpoint_minutes`, by this clock."""
        minutes = self.run.train.checkpoint_minutes
        return 0 < minutes <= (time.monotonic() - self.saved_at) / 60

    def _batch_size(self) -> int:
        """Return the sequences of the next step, over all ranks."""
        sequences = self.progress.position.sequences
        if self.run.train.follow_noise:
            return min(self.next_batch_size, self.schedule.total_sequences - sequences)
        return self.schedule.batch(sequences)

    def _grow_batch(self, noise_scale: float | None) -> bool:
        """Let the batch size follow the noise scale, if configured; return True if it grew."""
        step, before = self.progress.position.step, self.next_batch_size
        if self.run.train.follow_noise:
            self.next_batch_size = self.schedule.grown_batch(before, step, noise_scale)
        return self.next_batch_size != before

    def _next_batches(self) -> list[MicroBatch]:
        """Return this rank's micro-batches of the next step."""
        first, size = self.progress.position.sequences, self._batch_size()
        return micro_batches(self.order, first, size, self.run.train.micro_batch, self.context)

    def _sources(self, first: int, size: int) -> list[torch.Tensor]:
        """Return the sources of the rows of this rank's micro-batches; none without a mixture."""
        if not isinstance(self.order, Mixture):
            return []
        micro_batch = self.run.train.micro_batch
        return micro_batch_sources(self.order, first, size, micro_batch, self.context)

    def _record_skip(self, result: StepResult, line: Line) -> None:
        """Record a skipped update. Raises RunError after too many in a row."""
        line["skipped"] = result.skip_reason
        step, max_skipped = self.progress.position.step, self.run.train.max_skipped
        self.events.warn(f"step {step:,}: {result.skip_reason}: its update is skipped")
        if self.train_step.spike_guard.state["in_a_row"] >= max_skipped:
            raise RunError(
                f"{max_skipped:,} updates in a row were skipped; "
                f"at step {step:,} {result.skip_reason}",
                where=self.run.out,
                hint="start over with a lower {option:lr} or a longer {option:warmup_tokens}: "
                "{option:force} deletes what is there",
            )

    def _save_checkpoint(self) -> None:
        """Start to write a checkpoint of this step."""
        self.checkpoints.wait()  # for the one before, whose callbacks use their own state
        for callback in self.callbacks:
            callback.before_checkpoint()
        checkpoint, self.saved_at = self.progress.checkpoint, time.monotonic()
        metrics = {**self.progress.line, TRAINER_STATE: self.trainer_state()}
        state = CheckpointState(self.progress.position, self.run.identity(), metrics)

        def on_written() -> None:
            for callback in self.callbacks:
                callback.after_checkpoint(checkpoint)

        self.checkpoints.save(
            state, self.parameters, self.train_step.optimizer, on_written=on_written
        )

    def _evaluate_and_record(self) -> None:
        """Complete the step's line with what is due to be evaluated, and record it."""
        line = dict(self.progress.line)
        for callback in self.callbacks:
            callback.on_evaluation(line)
        for callback in self.callbacks:
            callback.on_record(line)

    def _export(self) -> None:
        """Write the finished model, from the last checkpoint, while the other ranks wait."""
        progress = self.progress
        if self.context.is_main:
            tensors = CheckpointStateDict(progress.checkpoint.folder)
            last = {**progress.line, "smoothed_loss": progress.smoothed_loss}
            export_model(self.run, tensors, last, progress.val_loss)
            for callback in self.callbacks:
                callback.on_finished()
        self.checkpoints.barrier()

    def _report(self, seconds: float, *, interrupted: bool) -> Report:
        progress, step = self.progress, self.progress.position.step
        copies = {"failed_copies": progress.failed_copies} if self.run.checkpoint_to else {}
        return {
            "out": str(self.run.out),
            "parameters": self.run.model.parameters,
            "step": step,
            "tokens": progress.line["tokens"],
            "loss": progress.line["loss"],
            "smoothed_loss": progress.smoothed_loss,
            "smoothed_steps": window(step),
            "val_loss": progress.val_loss,
            "skipped": self.train_step.spike_guard.state["skipped"],
            "seconds": round(seconds, 3),
            **copies,
            "interrupted": interrupted,
        }


def stopped_after(step: int, out: Path) -> Interrupted:
    """Return the error of a run that a signal stopped after `step`, whose checkpoint is saved."""
    return Interrupted(
        f"stopped after step {step:,}, with a checkpoint",
        where=out,
        code="interrupted",
        hint="{option:resume} continues it",
    )


class StopSignal(Answer):
    """Answer to signals that requests a stop after the step under way and its checkpoint.

    A second signal ends the process at once, unless another process started it and sees to that:
    what a terminal or Slurm sends to all of them reaches it twice, the second time through its
    parent.
    """

    unfinished = (
        "  no checkpoint was written now: the same gpt train with --resume continues from\n"
        "  the newest one, or from the start if there is none\n"
    )

    def __init__(self, events: Events) -> None:
        self.events, self.requested, self.announced = events, False, False
        self.is_launched = launched_processes() is not None

    def note(self, number: int) -> None:
        """Request the stop; runs in the main thread."""
        self.requested = True

    def act(self, number: int) -> None:
        """Request the stop and say so, or end the process; runs in the thread of signals."""
        self.requested = True
        if not self.announced:
            self.announced = True
            by_torchrun = self.is_launched and multiprocessing.parent_process() is None
            second = "" if by_torchrun else "; a second Ctrl-C stops at once"
            self.events.info(f"stopping: this step and a checkpoint first{second}")
        elif not self.is_launched:
            leave()
