"""Callbacks of the training loop: the base class, and the base of those that work in a thread.

The loop's parts are the step, the checkpoint, the evaluation and the record, in this order; a
callback has a hook after each. What a new tracker needs is one entry in
`gptcli.trainer.trackers`.
"""

from __future__ import annotations

import atexit
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from gptcli.distributed.context import RankContext
from gptcli.errors import GptError, message_of
from gptcli.events import Events
from gptcli.runs.metrics import Line
from gptcli.trainer.checkpoint import checkpoint_folder
from gptcli.trainer.config import Run
from gptcli.trainer.schedule import Position, Schedule
from gptcli.trainer.step import StepResult


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A checkpoint of the run, on disk or about to be."""

    folder: Path
    step: int
    tokens: int
    """Tokens that the run had read by then."""


@dataclass(slots=True)
class RunProgress:
    """State of a run that the loop advances and callbacks read."""

    run: Run
    context: RankContext
    events: Events
    schedule: Schedule
    position: Position = field(default_factory=Position)
    """Position after the last step."""
    line: Line = field(default_factory=dict)
    """Metrics of the last step, before its evaluation."""
    val_loss: float | None = None
    """Newest validation loss, in nats per token."""
    failed_copies: int = 0
    """Number of checkpoints that could not be copied to the store."""
    ended: bool = False
    """True if a rule ended the run before its last token."""
    smoothed_loss: float | None = None
    """Mean training loss of recent steps; None on ranks other than the main one."""

    @property
    def is_finished(self) -> bool:
        """True after the last step."""
        return self.ended or self.position.sequences >= self.schedule.total_sequences

    @property
    def checkpoint(self) -> SavedCheckpoint:
        """Checkpoint of the last step."""
        step, n_ctx = self.position.step, self.run.model.n_ctx
        folder = checkpoint_folder(self.run.out, step)
        return SavedCheckpoint(folder, step, self.position.sequences * n_ctx)

    def is_due(self, every: int) -> bool:
        """Return True at every `every`-th step and at the last one."""
        return self.position.step % every == 0 or self.is_finished


class Callback:
    """Base class of what accompanies training; every hook does nothing by default.

    Hooks run on every rank, or on the main one alone if `main_only`. Callbacks are called in the
    order of `Trainer.callbacks`; `close` in the reverse order.
    """

    main_only: ClassVar[bool] = True
    """True to exist on the main rank alone; such a callback must not communicate."""
    state_key: ClassVar[str | None] = None
    """Key of this callback's state in checkpoints; None for a callback without state."""

    def __init__(self, progress: RunProgress) -> None:
        self.progress = progress

    def on_start(self) -> None:
        """Run before the first step, after a checkpoint was loaded."""

    def on_step_end(self, result: StepResult, line: Line) -> None:
        """Run after the update: add metrics to the step's `line`."""

    def before_checkpoint(self) -> None:
        """Run before a checkpoint is written; no other one is being written then."""

    def after_checkpoint(self, checkpoint: SavedCheckpoint) -> None:
        """Run once `checkpoint` is on disk, on the main rank and in the thread that wrote it."""

    def on_evaluation(self, line: Line) -> None:
        """Run after the checkpoint: add metrics of the model to the step's `line`."""

    def on_record(self, line: Line) -> None:
        """Run with the complete `line` of the step; once more for the step that a run resumes."""

    def on_end(self, *, interrupted: bool) -> None:
        """Run after the last step, before the finished model is written."""

    def on_finished(self) -> None:
        """Run once the finished model is written."""

    def close(self) -> None:
        """Run at the end of training, also if it failed."""

    def state_dict(self) -> Any:
        """Return this callback's state, as JSON values; needs `state_key`."""
        return None

    def load_state_dict(self, state: Any) -> None:
        """Restore the state of a checkpoint, before `on_start`."""


class Cancelled(Exception):  # noqa: N818 - not an error: training ends
    """Raised by `BackgroundCallback.process` to stop early, once `cancelled` is set."""


class BackgroundCallback(Callback):
    """Callback that processes checkpoints in a thread on the CPU, without delaying training.

    A checkpoint that is written while another one is processed is left out, unless `finish` asks
    for it.
    """

    product: ClassVar[str]
    """Name of what is made from a checkpoint, for messages."""

    def __init__(self, progress: RunProgress) -> None:
        super().__init__(progress)
        self.processed_step = progress.position.step
        """Step of the newest checkpoint whose processing was started."""
        self.thread: threading.Thread | None = None
        self.cancelled = threading.Event()
        # A thread that is inside torch when the interpreter exits would abort the process.
        atexit.register(self.close)

    def process(self, checkpoint: SavedCheckpoint) -> None:
        """Process one checkpoint, checking `cancelled` often.

        GptError and OSError become a warning, Cancelled ends it in silence.
        """
        raise NotImplementedError

    def after_checkpoint(self, checkpoint: SavedCheckpoint) -> None:
        """Start to process the checkpoint, unless one is being processed."""
        if self.cancelled.is_set() or (self.thread is not None and self.thread.is_alive()):
            return
        self.processed_step = checkpoint.step
        self.thread = threading.Thread(target=self._process, args=(checkpoint,), daemon=True)
        self.thread.start()

    def finish(self) -> None:
        """Return once the last checkpoint is processed."""
        self._join()
        if self.processed_step != (checkpoint := self.progress.checkpoint).step:
            self.after_checkpoint(checkpoint)
            self._join()

    def close(self) -> None:
        """Cancel the processing and wait for its end; nothing more is started."""
        self.cancelled.set()
        self._join()
        atexit.unregister(self.close)

    def _join(self) -> None:
        if self.thread is not None:
            self.thread.join()

    def _process(self, checkpoint: SavedCheckpoint) -> None:
        torch.set_num_threads(1)  # of this thread's operations: the other cores train
        try:
            self.process(checkpoint)
        except Cancelled:
            return
        except (GptError, OSError) as error:  # newer checkpoints replaced it, or the disk is full
            warning = f"no {self.product} from step {checkpoint.step:,}: {message_of(error)}"
            self.progress.events.warn(warning)
