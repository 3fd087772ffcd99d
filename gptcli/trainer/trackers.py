"""Records of a run's metrics: metrics.jsonl, report.html, and trackers by name.

A new tracker is a subclass of `Tracker` here and an entry in TRACKERS: `gpt train --track NAME`
finds it there.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import secrets
import time
import tomllib
from pathlib import Path
from typing import Any, ClassVar

from gptcli.errors import UsageError, install_hint, nearest
from gptcli.files import atomic_write
from gptcli.runs.metrics import Line, MetricsLog, smoothed_loss
from gptcli.runs.report import write_report
from gptcli.trainer.callbacks import Callback, RunProgress
from gptcli.trainer.config import import_object
from gptcli.trainer.step import StepResult

METRICS_CSV = "metrics.csv"
PROJECT = "gpt"  # name of the project or experiment in a tracker


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
    """Base class of trackers, which show a run's metrics in a program of their own.

    A tracker that is not of this package is named by its import path, "module:Class"; any other
    `Callback` may be named so too.
    """

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

    @property
    def settings(self) -> dict[str, Any]:
        """Values of the run by name, as in run.toml."""
        return tomllib.loads(self.progress.run.resolved)

    def run_id(self, folder: str) -> str:
        """Return the name by which the program knows this run, the same after a resume.

        It is kept in `folder` of the run folder.
        """
        path = Path(self.progress.run.out) / folder / "run_id"
        if not path.is_file():
            with atomic_write(path, "w") as file:
                file.write(secrets.token_hex(8))
        return path.read_text(encoding="utf-8").strip()


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


class Csv(Tracker):
    """Tracker that writes RUN/metrics.csv, with a column for each metric and a row for each step."""

    title, package = "CSV", "csv"

    def __init__(self, progress: RunProgress) -> None:
        """Keep the rows of the steps before this run's last one: that one comes again."""
        super().__init__(progress)
        self.path = Path(progress.run.out) / METRICS_CSV
        kept: list[dict[str, Any]] = []
        if self.path.is_file():
            with open(self.path, encoding="utf-8", newline="") as file:
                kept = [
                    row for row in csv.DictReader(file) if int(row["step"]) < progress.position.step
                ]
        self.columns = list(kept[0]) if kept else ["step"]
        self._rewrite(kept)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Append a row. A metric that is new gets a column, empty in the rows before."""
        if new := [name for name in numbers if name not in self.columns]:
            with open(self.path, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            self.columns += new
            self._rewrite(rows)
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(
                {"step": step, **numbers}
            )

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with atomic_write(self.path, "w") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


class WeightsAndBiases(Tracker):
    """Tracker that logs to Weights & Biases: online if an account is set up, else in RUN/wandb.

    WANDB_MODE, WANDB_PROJECT and the program's other variables count.
    """

    title, package = "Weights & Biases", "wandb"

    def __init__(self, progress: RunProgress) -> None:
        """Start the program's run, or continue it after a resume."""
        import wandb

        super().__init__(progress)
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        out = Path(progress.run.out)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=out.resolve().name,
            id=self.run_id("wandb"),
            resume="allow",
            dir=str(out),
            config=self.settings,
            mode=mode,
        )

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Log the numbers at their step."""
        self.run.log(numbers, step=step)

    def close(self) -> None:
        """Send or write what is buffered."""
        self.run.finish()


class Mlflow(Tracker):
    """Tracker that logs to the MLflow server of MLFLOW_TRACKING_URI, or else in RUN/mlruns."""

    title, package = "MLflow", "mlflow"

    def __init__(self, progress: RunProgress) -> None:
        """Start the program's run, or continue it after a resume."""
        from mlflow import MlflowClient

        super().__init__(progress)
        store = Path(progress.run.out).resolve() / "mlruns"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or store.as_uri()
        # newer versions ask for this before they write plain files
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self.client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        self.experiment = (
            self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        )
        self.id = self._find_or_start(self.run_id("mlruns"))
        logged = self.client.get_metric_history(self.id, "tokens")
        self.logged = max((metric.step for metric in logged), default=0)
        """Last step that was logged; none is logged twice."""

    def _find_or_start(self, token: str) -> str:
        tag = "gpt_run_id"
        found = self.client.search_runs([self.experiment], f"tags.{tag} = '{token}'")
        if found:
            return str(found[0].info.run_id)
        name = Path(self.progress.run.out).resolve().name
        made = self.client.create_run(self.experiment, run_name=name, tags={tag: token})
        for key, value in self.settings.items():
            self.client.log_param(made.info.run_id, key, str(value)[:500])
        return str(made.info.run_id)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Log the numbers of a step that was not logged before."""
        from mlflow.entities import Metric

        if step <= self.logged:
            return
        now = time.time_ns() // 10**6
        metrics = [Metric(name, float(value), now, step) for name, value in numbers.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        """End the program's run."""
        self.client.set_terminated(self.id)


class Trackio(Tracker):
    """Tracker that logs to Trackio, which keeps a local database (TRACKIO_DIR)."""

    title, package = "Trackio", "trackio"

    def __init__(self, progress: RunProgress) -> None:
        """Start the program's run, or continue it after a resume."""
        import trackio

        super().__init__(progress)
        name = f"{Path(progress.run.out).resolve().name}-{self.run_id('trackio')}"
        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=name,
            resume="allow",
            config=self.settings,
            embed=False,
        )

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Log the numbers at their step."""
        self.run.log(numbers, step=step)

    def close(self) -> None:
        """Write what is buffered."""
        self.run.finish()


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "csv": Csv,
    "wandb": WeightsAndBiases,
    "mlflow": Mlflow,
    "trackio": Trackio,
}
"""Trackers by their names in --track."""


def find_tracker(name: str) -> type[Callback]:
    """Return the tracker of this name, or the callback of this import path.

    Raises UsageError if there is none, or if its package is not installed.
    """
    if ":" in name:
        found = import_object(name, "track")
        if not (isinstance(found, type) and issubclass(found, Callback)):
            raise UsageError(
                f"{name} is no subclass of gptcli.trainer.callbacks.Callback",
                field="track",
                code="not_a_callback",
            )
        return found
    if name not in TRACKERS:
        raise UsageError(
            f"unknown tracker {name!r}",
            field="track",
            code="unknown_tracker",
            hint=nearest(name, TRACKERS, beyond="or your own, as module:Class"),
        )
    tracker = TRACKERS[name]
    if importlib.util.find_spec(tracker.package) is None:
        raise UsageError(
            f"{tracker.title} is not installed",
            field="track",
            code="not_installed",
            hint=install_hint(tracker.package),
        )
    return tracker
