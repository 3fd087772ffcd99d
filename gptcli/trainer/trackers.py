"""Records of a run's metrics: metrics.jsonl, report.html, progress events, and trackers by name.

A new tracker is a subclass of `Tracker` here and an entry in TRACKERS: `gpt train --track NAME`
finds it there.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import ClassVar

from gptcli.errors import UsageError, install_hint, nearest
from gptcli.runs.metrics import Line, MetricsLog, smoothed_loss
from gptcli.runs.report import write_report
from gptcli.trainer.callbacks import Callback, RunProgress
from gptcli.trainer.step import StepResult


class MetricsLogger(Callback):
    """Callback that writes metrics.jsonl, one line per step."""

    def __init__(self, progress: RunProgress) -> None:
        super().__init__(progress)
        self.log = MetricsLog(progress.run.out, before=progress.position.step)
        if progress.line:
            progress.smoothed_loss = smoothed_loss([*self.log.newest, progress.line])

    def on_step_end(self, result: StepResult, line: Line) -> None:
        """Update the smoothed loss."""
        self.progress.smoothed_loss = smoothed_loss([*self.log.newest, line])

    def before_checkpoint(self) -> None:
        """Bring all lines to disk: a resume continues them."""
        self.log.sync()

    def on_record(self, line: Line) -> None:
        """Append the line."""
        self.log.write(line)


class ReportWriter(Callback):
    """Callback that draws report.html at every checkpoint."""

    def on_record(self, line: Line) -> None:
        """Draw the report if a checkpoint is due at this step."""
        if self.progress.is_due(self.progress.run.train.checkpoint_every):
            self._write()

    def on_end(self, *, interrupted: bool) -> None:
        """Draw the samples of the last checkpoint too."""
        if self.progress.run.train.samples and not interrupted:
            self._write()

    def _write(self) -> None:
        run = self.progress.run
        write_report(Path(run.out), run.resolved)


class Tracker(Callback):
    """Base class of trackers, which show a run's metrics in a program of their own."""

    title: ClassVar[str]
    """Name of the program, for messages."""
    package: ClassVar[str]
    """Python package that it needs."""

    def on_record(self, line: Line) -> None:
        """Log the numbers of a metrics line, except for its step."""
        numbers = {
            name: value
            for name, value in line.items()
            if name != "step" and isinstance(value, int | float)
        }
        self.log(line["step"], numbers)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Log numbers of one step, by name."""
        raise NotImplementedError


class TensorBoard(Tracker):
    """Tracker that writes RUN/tensorboard."""

    title, package = "TensorBoard", "tensorboard"

    def __init__(self, progress: RunProgress) -> None:
        """Hide the steps of an earlier process from this run's last one on: they come again."""
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(progress)
        folder = Path(progress.run.out) / "tensorboard"
        self.writer = SummaryWriter(str(folder), purge_step=progress.position.step)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Write one scalar per number."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self.writer.close()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard}
"""Trackers by their names in --track."""


def check_tracker(name: str) -> None:
    """Raise UsageError if no tracker has this name, or if its package is not installed."""
    if name not in TRACKERS:
        raise UsageError(f"unknown tracker {name!r}", where="--track", hint=nearest(name, TRACKERS))
    tracker = TRACKERS[name]
    if importlib.util.find_spec(tracker.package) is None:
        raise UsageError(
            f"{tracker.title} is not installed",
            where="--track",
            hint=install_hint(tracker.package),
        )
