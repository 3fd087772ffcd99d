"""Contents of a run folder: configuration, metrics, samples and the evaluations of the model."""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gptcli
from gptcli.devices import gpu_name
from gptcli.errors import InputError
from gptcli.model.source import METRICS, RUN_TOML, SAMPLES, WEIGHTS
from gptcli.numbers import counted
from gptcli.runs.metrics import Line, read_lines
from gptcli.runtime import available_cores, processor

EVALUATION_FILES = "*eval*.json"  # pattern of the file names of evaluation reports
EVAL_SCHEMA = "gpt.eval/1"
# keys of every line of metrics.jsonl that a report needs
REQUIRED_METRICS = {"step", "tokens", "loss", "lr", "batch_tokens", "tokens_per_second"}
# metrics of a task that are not percentages
NON_PERCENT_METRICS = (
    "perplexity",
    "bits_per_byte",
    "bits_per_character",
    "bleu",
    "bleu_intl",
    "multi_bleu",
)
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
    def chosen(self) -> set[str]:
        """Names of the settings that options or a file set, by the comments of run.toml."""
        rows = (line.rpartition("  # ") for line in self.resolved.splitlines())
        return {
            row.partition(" = ")[0]
            for row, _, origin in rows
            if " = " in row and (origin == "option" or origin.endswith(".toml"))
        }

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
    def validation_extent(self) -> str:
        """Part of the validation tokens that the run's validation loss is measured on, or ""."""
        return validation_extent(self.resolved)

    @property
    def seconds(self) -> float:
        """Seconds spent in training steps."""
        return sum(map(_step_seconds, self.lines))

    def axes(self, max_points: int) -> dict[str, list[float]]:
        """Return tokens, step and seconds in steps of at most `max_points` lines, the last included."""
        seconds = list(itertools.accumulate(map(_step_seconds, self.lines)))
        every = -(-len(self.lines) // max_points)
        kept = range((len(self.lines) - 1) % every, len(self.lines), every)
        return {
            "tokens": [self.lines[place]["tokens"] for place in kept],
            "step": [self.lines[place]["step"] for place in kept],
            "seconds": [round(seconds[place], 2) for place in kept],
        }

    def series(self, name: str) -> list[tuple[float, float]]:
        """Return (tokens, value) of each step that measured the metric as a finite number."""
        return [
            (line["tokens"], line[name])
            for line in self.lines
            if isinstance(line.get(name), int | float) and math.isfinite(line[name])
        ]


def _step_seconds(line: Line) -> float:
    """Return the seconds that a step took; 0 if unknown."""
    speed = line["tokens_per_second"]
    return float(line["batch_tokens"] / speed) if speed else 0.0


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
        if not (folder / METRICS).exists() and (folder / WEIGHTS).exists():
            raise InputError(
                "the measurements of the run's steps are missing", where=folder / METRICS
            )
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
            count = f"{counted(loss['tokens'], 'token')}"
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
            f"{counted(task['items'], 'item')}",
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


FACTS = ("date", "host", "device", "torch", "python", "commit", "data", "passes")  # in this order
# facts whose changes a resume records
ENVIRONMENT = ("host", "device", "torch", "python", "commit")
RESUMED, UNCHANGED = "resumed", "as at first"
LINE = re.compile(r"# (\w+): (.*)")
# absolute paths: in quotes, before the facts about the data, and elsewhere; a URL is none
PATHS = re.compile(
    r"""(?P<open>["'])(?P<quoted>/[^"'\n]*)(?P=open)|(?<=^\# data: )(?P<data>/.*)(?=, [\d,]+ training)"""
    r"""|(?<![^\s=,:([])(?P<bare>/(?!/)[^\s"',:;)\]]+)""",
    re.MULTILINE,
)


def provenance(
    processes: int, data: Path, sha256: str, data_tokens: int, tokens: int
) -> dict[str, str]:
    """Return the facts of a run that starts on this machine; unknown ones are left out.

    It trains on `tokens` tokens, and the shards in `data` have `data_tokens`.
    """
    import torch

    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "host": platform.node(),
        "device": device_name(processes),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(Path(gptcli.__file__).parent.parent),
        "data": f"{data.resolve()}, {data_tokens:,} training tokens, sha256 {sha256}",
        "passes": f"{tokens / data_tokens:.3g}" if data_tokens else "",
    }
    return {name: _one_line(text) for name, text in found.items() if text}


def validation_extent(resolved: str) -> str:
    """Return the validation tokens that a run reads at each measurement, of how many it has.

    Such as "4,992 of 52,542 tokens"; "" if the text of run.toml, `resolved`, does not tell. With
    fewer windows than those of `eval_tokens`, all whole windows are read.
    """
    found = re.search(r"^# val_tokens: ([\d,]+)", resolved.split("\n\n", 1)[0], re.MULTILINE)
    if found is None:
        return ""
    settings, total = tomllib.loads(resolved), int(found[1].replace(",", ""))
    n_ctx, limit = settings.get("n_ctx"), settings.get("eval_tokens")
    if not (isinstance(n_ctx, int) and isinstance(limit, int) and 0 < n_ctx < total):
        return ""
    windows = min(max(1, limit // n_ctx), (total - 1) // n_ctx)
    return f"{windows * n_ctx:,} of {counted(total, 'token')}"


def shareable(resolved: str) -> str:
    """Return run.toml's text for a page that others will see: no host, no folders of this machine.

    A model card and a report are made to be published; run.toml itself keeps both, for those who
    look for the run. The "# resumed" lines lose the host too.
    """
    kept = [line for line in resolved.split("\n") if not line.startswith("# host: ")]
    lines = [
        re.sub(r"; host [^;]*", "", line) if line.startswith(f"# {RESUMED}: ") else line
        for line in kept
    ]
    return short_paths("\n".join(lines))


def short_paths(text: str) -> str:
    """Return `text` with the last part alone of each absolute path."""

    def last(match: re.Match[str]) -> str:
        quotes = match["open"] or ""
        path = match["quoted"] or match["data"] or match["bare"]
        return f"{quotes}{path.rstrip('/').rpartition('/')[2] or path}{quotes}"

    return PATHS.sub(last, text)


def read_provenance(resolved: str) -> dict[str, str]:
    """Return the facts at the top of a run.toml, and the newest resume that changed any.

    Files of older versions have none.
    """
    head = resolved.split("\n\n", 1)[0]
    found = {match[1]: match[2] for match in map(LINE.fullmatch, head.splitlines()) if match}
    return {name: found[name] for name in (*FACTS, RESUMED) if name in found}


def resumed(resolved: str, now: Mapping[str, str]) -> str:
    """Return run.toml's text with a line about this resume, if its environment differs from that of
    the newest resume, or else of the start.
    """
    before = read_provenance(resolved)
    differs = (
        "; ".join(
            f"{name} {now[name]}"
            for name in ENVIRONMENT
            if name in now and now[name] != before.get(name)
        )
        or UNCHANGED
    )
    if not before or differs == (before.get(RESUMED, "").partition("; ")[2] or UNCHANGED):
        return resolved
    head, gap, rest = resolved.partition("\n\n")
    return f"{head}\n# {RESUMED}: {now['date']}; {differs}{gap}{rest}"


def device_name(processes: int) -> str:
    """Return the GPU with the number of processes, or the processor with its cores."""
    if (gpu := gpu_name()) is not None:
        return f"{processes} x {gpu}" if processes > 1 else gpu
    cores = available_cores()
    return f"{processor()[0]}, {cores} {'cores' if cores > 1 else 'core'}"


def commit(root: Path) -> str:
    """Return the commit checked out in `root`, or "" if it is not a Git work tree.

    Reads the files of .git and runs no program.
    """
    try:
        git = root / ".git"
        if git.is_file():  # an additional work tree
            git = (root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return _hash(head)
        name = head.removeprefix("ref: ")
        common = git / "commondir"
        folders = (
            [git, (git / common.read_text(encoding="utf-8").strip()).resolve()]
            if common.is_file()
            else [git]
        )
        for folder in folders:
            if (folder / name).is_file():
                return _hash((folder / name).read_text(encoding="utf-8").strip())
        packed = (folders[-1] / "packed-refs").read_text(encoding="utf-8")
        found = re.search(rf"^([0-9a-f]+) {re.escape(name)}$", packed, re.MULTILINE)
        return _hash(found[1]) if found else ""
    except (OSError, ValueError):
        return ""


def _hash(text: str) -> str:
    return text if re.fullmatch(r"[0-9a-f]{40,64}", text) else ""


def _one_line(text: str) -> str:
    """Return the text without the characters that a TOML comment must not have."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
