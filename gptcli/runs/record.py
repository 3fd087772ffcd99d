"""Contents of a run folder: configuration, metrics, samples and the evaluations of the model."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptcli.errors import InputError
from gptcli.model.source import METRICS, RUN_TOML, SAMPLES
from gptcli.runs.metrics import Line, read_lines
from gptcli.runs.provenance import read_provenance

EVALUATION_FILES = "*eval*.json"  # pattern of the file names of evaluation reports
EVAL_SCHEMA = "gpt.eval/1"
# keys of every line of metrics.jsonl that a report needs
REQUIRED_METRICS = {"step", "tokens", "loss", "lr", "batch_tokens", "tokens_per_second"}
# metrics of a task that are not percentages
NON_PERCENT_METRICS = ("perplexity", "bits_per_byte", "bits_per_character", "bleu")
LOSS_METRICS = {  # keys of an evaluated loss, and their units in a report
    "loss": "nats per token",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Record of a run, as its folder tells it."""

    folder: Path
    """Run folder."""
    resolved: str
    """Text of run.toml."""
    lines: list[Line]
    """Lines of metrics.jsonl, one per step."""
    samples: list[Line] = field(default_factory=list)
    """Lines of samples.jsonl, one per sample."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Reports of `gpt eval` on the run's model."""

    @property
    def settings(self) -> dict[str, Any]:
        """Options of the run, by name."""
        return tomllib.loads(self.resolved)

    @property
    def title(self) -> str:
        """Model size and folder name."""
        return f"{self.settings.get('size', 'GPT')}: {self.folder.resolve().name}"

    @property
    def parameters(self) -> str:
        """Number of parameters with thousands separators, from the head of run.toml."""
        found = re.search(r"^# parameters: ([\d,]+)", self.resolved, re.MULTILINE)
        return found[1] if found else "n/a"

    @property
    def provenance(self) -> dict[str, str]:
        """Date, machine and data of the run, from the head of run.toml."""
        return read_provenance(self.resolved)

    @property
    def seconds(self) -> float:
        """Seconds spent in training steps."""
        return sum(
            line["batch_tokens"] / line["tokens_per_second"]
            for line in self.lines
            if line["tokens_per_second"]
        )

    def series(self, name: str) -> list[tuple[float, float]]:
        """Return (tokens, value) of each step that measured the metric."""
        return [(line["tokens"], line[name]) for line in self.lines if line.get(name) is not None]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value of an evaluation."""

    subject: str
    """Name of the text, or of the task with its scoring and number of examples."""
    measure: str
    """Name of the metric."""
    value: float
    stderr: float | None
    """Standard error; None if it was not estimated."""
    count: str
    """Number of tokens or items that the value is a mean of."""
    paper: str = ""
    """Value that a paper reports, with its model."""


def read_record(folder: Path) -> Record:
    """Read a run folder.

    Raises InputError if it is not a run folder, or if no step has been trained in it.
    """
    config = folder / RUN_TOML
    try:
        resolved = config.read_text(encoding="utf-8-sig")
        tomllib.loads(resolved)
        lines = read_lines(folder / METRICS)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            "no such run", where=config, hint="name a run folder that gpt train has written"
        ) from None
    except ValueError as error:
        raise InputError(f"cannot be read as a run: {error}", where=folder) from None
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or REQUIRED_METRICS - line.keys():
            raise InputError(
                f"not the metrics of a step: it needs {', '.join(sorted(REQUIRED_METRICS))}",
                where=f"{folder / METRICS}:{number}",
            )
    if not lines:
        raise InputError("the run has no steps yet", where=folder / METRICS)
    return Record(
        folder=folder,
        resolved=resolved,
        lines=lines,
        samples=read_lines(folder / SAMPLES),
        evaluations=read_evaluations(folder),
    )


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Read the reports of `gpt eval RUN -o FILE` whose file name contains "eval".

    They are in the run folder, or next to it if they are about this run. Files that are not such
    reports are skipped.
    """
    name = folder.resolve().name
    found = []
    for path in [
        *sorted(folder.glob(EVALUATION_FILES)),
        *sorted(folder.resolve().parent.glob(EVALUATION_FILES)),
    ]:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            if report["schema"] == EVAL_SCHEMA and (
                path.parent == folder or Path(report["model"]).name == name
            ):
                figures([report])
                found.append(report)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            # another program's file, or one that is being written: a report must not fail for it
            continue
    return found


def figures(evaluations: Iterable[dict[str, Any]]) -> list[Figure]:
    """Return the measured values of evaluation reports.

    These are the losses on texts, and of a task the metrics that have a standard error.
    """
    found = []
    for report in evaluations:
        for loss in report.get("losses", []):
            count = f"{loss['tokens']:,} tokens"
            for key, measure in LOSS_METRICS.items():
                if loss.get(key) is not None:
                    stderr = _float_or_none(loss.get(f"{key}_stderr"))
                    found.append(
                        Figure(str(loss["name"]), measure, float(loss[key]), stderr, count)
                    )
        for task in report.get("tasks", []):
            found += _task_figures(task)
    return found


def _task_figures(task: dict[str, Any]) -> list[Figure]:
    name = " ".join(str(task[key]) for key in ("task", "scoring", "mode") if task.get(key))
    papers = {
        score["metric"]: f"{score['score']:g} ({score['model']})"
        for score in task.get("paper") or []
    }
    return [
        Figure(
            f"{name}, K={task.get('shots', 0)}",
            key,
            float(value),
            _float_or_none(task[f"{key}_stderr"]),
            f"{task['items']:,} items",
            papers.get(key, ""),
        )
        for key, value in task.items()
        if f"{key}_stderr" in task and value is not None
    ]


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' names, or if two are equal, their paths below their common parent."""
    paths = [folder.resolve() for folder in folders]
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    root = Path(os.path.commonpath(paths))
    return [path.relative_to(root).as_posix() for path in paths]


def _float_or_none(value: Any) -> float | None:
    return None if value is None else float(value)
