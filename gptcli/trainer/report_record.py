"""What is known of a run, from its folder alone: configuration, metrics, samples, and the
evaluations beside it.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptcli.errors import InputError
from gptcli.model.source import RUN_TOML
from gptcli.runs.metrics import METRICS, SAMPLES, Line, read_lines
from gptcli.trainer.provenance import read_provenance

EVALUATIONS = "*eval*.json"
SCHEMA = "gpt.eval/1"
# in every line of metrics.jsonl
MEASURED = {"step", "tokens", "loss", "lr", "batch_tokens", "tokens_per_second"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    folder: Path
    resolved: str
    """run.toml's text."""
    lines: list[Line]
    samples: list[Line] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        return tomllib.loads(self.resolved)

    @property
    def title(self) -> str:
        return f"{self.settings.get('size', 'GPT')}: {self.folder.resolve().name}"

    @property
    def parameters(self) -> str:
        """As run.toml says at its top."""
        found = re.search(r"^# parameters: ([\d,]+)", self.resolved, re.MULTILINE)
        return found[1] if found else "n/a"

    @property
    def provenance(self) -> dict[str, str]:
        """When, where and by what it was made, as run.toml says at its top."""
        return read_provenance(self.resolved)

    @property
    def seconds(self) -> float:
        """Spent in steps."""
        return sum(
            line["batch_tokens"] / line["tokens_per_second"]
            for line in self.lines
            if line["tokens_per_second"]
        )


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of an evaluation."""

    of: str
    """The text, or the task with scoring and shots."""
    measure: str
    value: float
    stderr: float | None
    count: str
    paper: str = ""


def read_record(folder: Path) -> Record:
    """Raises InputError where `folder` is no run folder, or nothing has been trained in it yet."""
    config = folder / RUN_TOML
    try:
        resolved = config.read_text(encoding="utf-8-sig")
        tomllib.loads(resolved)
        lines = read_lines(folder / METRICS)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            "no such run", where=config, hint="name run folders that gpt train has written"
        ) from None
    except ValueError as error:
        raise InputError(f"does not read as a run: {error}", where=folder) from None
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or MEASURED - line.keys():
            raise InputError(
                f"not a step's figures: it needs {', '.join(sorted(MEASURED))}",
                where=f"{folder / METRICS}:{number}",
            )
    if not lines:
        raise InputError("has no steps to draw yet", where=folder / METRICS)
    return Record(
        folder=folder,
        resolved=resolved,
        lines=lines,
        samples=read_lines(folder / SAMPLES),
        evaluations=read_evaluations(folder),
    )


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The reports of `gpt eval RUN -o FILE` whose name holds "eval", in the run's folder or, where
    they are of this run, beside it.
    """
    name = folder.resolve().name
    found = []
    for path in [
        *sorted(folder.glob(EVALUATIONS)),
        *sorted(folder.resolve().parent.glob(EVALUATIONS)),
    ]:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            if report["schema"] == SCHEMA and (
                path.parent == folder or Path(report["model"]).name == name
            ):
                figures([report])
                found.append(report)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            # somebody else's file, or one that is being written: no reason to lose a report, let
            # alone a run
            continue
    return found


def figures(evaluations: list[dict[str, Any]]) -> list[Figure]:
    """Every figure of the evaluations: losses on texts, and of a task what has a standard error
    beside it.
    """
    found = []
    for report in evaluations:
        for loss in report.get("losses", []):
            count = f"{loss['tokens']:,} tokens"
            for key, measure in (
                ("loss", "nats a token"),
                ("perplexity", "perplexity"),
                ("bits_per_byte", "bits a byte"),
            ):
                if loss.get(key) is not None:
                    found.append(
                        Figure(
                            str(loss["name"]),
                            measure,
                            float(loss[key]),
                            known(loss.get(f"{key}_stderr")),
                            count,
                        )
                    )
        for task in report.get("tasks", []):
            of = " ".join(str(task[key]) for key in ("task", "scoring", "mode") if task.get(key))
            papers = {
                score["metric"]: f"{score['score']:g} ({score['model']})"
                for score in task.get("paper") or []
            }
            for key in task:
                if f"{key}_stderr" in task and task[key] is not None:
                    shots = f"{of}, K={task.get('shots', 0)}"
                    value, stderr = float(task[key]), known(task[f"{key}_stderr"])
                    found.append(
                        Figure(
                            shots,
                            key,
                            value,
                            stderr,
                            f"{task['items']:,} items",
                            papers.get(key, ""),
                        )
                    )
    return found


def known(value: Any) -> float | None:
    return None if value is None else float(value)
