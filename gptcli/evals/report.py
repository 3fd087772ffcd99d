"""Tables and remarks of an evaluation report: losses on text, and scores on tasks with the papers'.

A table is a list of rows, each with its cells by column; every row has the same columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.errors import GptError, InputError
from gptcli.evals.find_data import find_data
from gptcli.numbers import counted
from gptcli.runs.record import NON_PERCENT_METRICS

if TYPE_CHECKING:  # the list of tasks imports no torch
    from gptcli.evals.compare import Comparison
    from gptcli.evals.core import CoreReport
    from gptcli.evals.results import PaperScore, TaskResult
    from gptcli.evals.rolling import LossReport
    from gptcli.evals.task import Task

# left-aligned columns; numbers are right-aligned
TEXT_COLUMNS = ("text", "task", "scoring", "kind", "data", "what", "metric")
OWN_MARK = "*"
GENERATED = "generated"  # data that no file has

TableRows = list[dict[str, str]]


def report_parts(
    title: str, losses: list[LossReport], results: list[TaskResult]
) -> list[TableRows | str]:
    """Return the report's title, tables and sentences, from top to bottom."""
    parts: list[TableRows | str] = [title]
    if losses:
        first = losses[0]
        parts += [[_loss_row(loss) for loss in losses]]
        parts += [
            f"Loss and entropy in nats per token; windows of {counted(first.n_ctx, 'token')}, "
            f"{first.stride} apart."
        ]
    if results:
        same = len({tuple(result.metrics) for result in results}) == 1
        rows = [[_wide_row(result)] if same else _metric_rows(result) for result in results]
        parts += [_without_empty([row for some in rows for row in some])]
        if any(result.conditions.own_shots for result in results):
            parts += [
                f"{OWN_MARK} The examples are from the evaluated set, without the item itself."
            ]
        parts += [
            line
            for result in {result.task: result for result in results}.values()
            for line in _remarks(result)
        ]
    return parts


def task_rows(tasks: list[tuple[Task, Path | None]]) -> TableRows:
    """Return a table of tasks, with the paper's K and whether the folder next to each has its data.

    Raises InputError if there is no such folder.
    """
    rows = []
    for task, data in tasks:
        place, found = _data_location(task, data)
        there = "here" if found else "" if data is None else "not here"
        rows.append(
            {
                "task": task.name,
                "K": str(task.shots or ""),
                "data": place if place == GENERATED else there,
                "what": task.title,
            }
        )
    return rows


def task_details(task: Task, data: Path | None) -> dict[str, str]:
    """Return where a task's data is from, what its files are called, and where they belong.

    Raises InputError if there is no `data`.
    """
    split = task.hub
    hub = (
        f"{split['dataset']}, {split.get('config', 'default')}, {split['items']}"
        + (f"; examples: {split['shots']}" if "shots" in split else "")
        if split
        else "not there"
    )
    return {
        "kind": task.kind.replace("_", " "),
        "source": task.source,
        "licence": task.licence or "not stated",
        "items": f"{task.count:,}" if task.count else "one running text" * (task.kind == "text"),
        "files": task.files["items"].replace("|", " or ")
        + (
            f"; examples: {task.files['shots'].replace('|', ' or ')}"
            if "shots" in task.files
            else ""
        ),
        "hub": f"{hub}; as Parquet, Arrow, JSON lines or CSV" if split else hub,
        "folder": f"{data or 'DATA'}/{task.name}/",
        "here": _data_location(task, data)[0],
        "K": f"{task.shots} in the paper" if task.shots else "zero-shot",
        "scores": ", ".join(task.metric),
    }


def suite_parts(core: CoreReport | None, left_out: list[str]) -> list[TableRows | str]:
    """Return the table of CORE, if that is the suite, and the tasks that were not scored."""
    parts: list[TableRows | str] = []
    if core is not None:
        parts.append(
            [
                {
                    "task": one.task,
                    "kind": one.kind.replace("_", " "),
                    "K": str(one.shots),
                    "items": f"{one.items:,}",
                    "accuracy": figure(one.accuracy, one.stderr, unit="%"),
                    "random": f"{one.baseline:g}%",
                    "shuffled": "" if one.shuffled is None else f"{one.shuffled:.1f}%",
                    "centred": f"{one.centred:.4f}",
                }
                for one in core.tasks
            ]
        )
        value = (
            f"CORE {core.core:.4f}"
            if core.core is not None
            else f"mean centred accuracy of {len(core.tasks)} of 22 tasks: {core.mean:.4f}"
        )
        parts.append(f"{value}, by the prompts of {core.convention}.")
        if skipped := sum(one.skipped for one in core.tasks):
            parts.append(
                f"{counted(skipped, 'item')} not asked: the answer is longer than the context."
            )
    if left_out:
        parts.append(f"Not scored, because their data is not there: {', '.join(left_out)}.")
    return parts


def comparison_parts(comparisons: list[Comparison], names: list[str]) -> list[TableRows | str]:
    """Return the table of a comparison, with the sentences that explain it."""
    rows = [
        {
            "task": one.task,
            "score": one.score.replace("_", " "),
            "items": f"{one.items:,}",
            "first": figure(one.a, unit=_score_unit(one)),
            "second": figure(one.b, unit=_score_unit(one)),
            "difference": f"{one.difference:+.2f}",
            "95 %": f"{one.low:+.2f} to {one.high:+.2f}",
            "p": "<0.0001" if one.p < 1e-4 else f"{one.p:.4f}",
            "needed": "" if one.items_needed is None else f"{one.items_needed:,}",
            "what": one.verdict,
        }
        for one in comparisons
    ]
    unshared = sum(one.unshared for one in comparisons)
    return [
        f"first: {names[0]}; second: {names[1]}",
        rows,
        "The same items for both. Differences with their 95 % confidence interval, by the paired "
        "bootstrap; p by McNemar's test where items are right or wrong, else by the bootstrap; "
        "needed: items with which a true difference of this size is found in 80 % of cases.",
        *(
            [f"Left out, because not all were asked them: {counted(unshared, 'item')}."]
            if unshared
            else []
        ),
    ]


def _score_unit(comparison: Comparison) -> str:
    return "" if comparison.score == "loss" else "%"


def markdown_table(rows: TableRows) -> str:
    """Return a table as Markdown."""

    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    names = list(rows[0])
    rule = "|" + "|".join("---" if name in TEXT_COLUMNS else "---:" for name in names) + "|"
    return "\n".join([line(names), rule, *(line(list(row.values())) for row in rows)])


def figure(value: float, stderr: float | None = None, *, digits: int = 2, unit: str = "") -> str:
    """Format a value with its standard error, 45.99% ±0.69, with an exponent from a million on."""
    form = f",.{digits}f" if value < 1e6 else ".3g"
    return f"{value:{form}}{unit}" + ("" if stderr is None else f" ±{stderr:{form}}")


def _data_location(task: Task, data: Path | None) -> tuple[str, bool]:
    """Return the file with a task's data, or why there is none, and whether there is one.

    Raises InputError if there is no `data`.
    """
    if data is None:
        return GENERATED if task.generated else "unknown: no folder is named", False
    if not data.exists():
        raise InputError("no such file or folder", where=data, field="data")
    try:
        path = find_data(task, data, generate=True)
    except GptError as error:
        return f"no: {error.what}", False
    return (GENERATED, False) if path is None else (str(path), True)


def _loss_row(loss: LossReport) -> dict[str, str]:
    return {
        "text": loss.name,
        "tokens": f"{loss.tokens:,}",
        "loss": figure(loss.loss, loss.loss_stderr, digits=4),
        "perplexity": figure(loss.perplexity),
        "bits per byte": "" if loss.bits_per_byte is None else figure(loss.bits_per_byte, digits=4),
        "unigram entropy": figure(loss.unigram_entropy, digits=4),
    }


def _task_row(result: TaskResult) -> dict[str, str]:
    return {
        "task": result.task,
        "scoring": result.scoring.replace("_", " "),  # folds between words
        "K": _shots(result),
        "items": f"{result.conditions.items:,}",
    }


def _unit(metric: str) -> str:
    return "" if metric in NON_PERCENT_METRICS else "%"


def _wide_row(result: TaskResult) -> dict[str, str]:
    """Return a row with a column per metric, for results that have the same."""
    row = _task_row(result)
    for name, metric in result.metrics.items():
        row[name.replace("_", " ")] = figure(metric.value, metric.stderr, unit=_unit(name))
    row["chance"] = _chance(result)
    row["paper"] = ", ".join(f"{one.score:g}{_unit(one.metric)}" for one in result.paper)
    return row


def _chance(result: TaskResult) -> str:
    """Return the accuracy of random answers to multiple choice, or ""."""
    return f"{result.controls['chance']:.2f}%" if "chance" in result.controls else ""


def _without_empty(rows: TableRows) -> TableRows:
    """Return the rows without the columns that are empty in all of them."""
    kept = [name for name in rows[0] if any(row[name] for row in rows)]
    return [{name: row[name] for name in kept} for row in rows]


def _metric_rows(result: TaskResult) -> TableRows:
    """Return a row per metric, so that tasks with different ones fit into one narrow table."""
    paper = {one.metric: f"{one.score:g}{_unit(one.metric)}" for one in result.paper}
    return [
        {
            **_task_row(result),
            "metric": name.replace("_", " "),
            "score": figure(metric.value, metric.stderr, unit=_unit(name)),
            "chance": _chance(result) if name == "accuracy" else "",
            "paper": paper.get(name, ""),
        }
        for name, metric in result.metrics.items()
    ]


def _shots(result: TaskResult) -> str:
    """Return K; the mean and K if fewer fit, and a mark if they are from the evaluated set."""
    conditions = result.conditions
    fitting = "" if conditions.mean_shots == conditions.shots else f"{conditions.mean_shots:.1f}/"
    return f"{fitting}{conditions.shots}{OWN_MARK if conditions.own_shots else ''}"


def _remarks(result: TaskResult) -> list[str]:
    """Return the conditions of a task, in sentences."""
    conditions = result.conditions
    facts = [f"{conditions.data}, sha256 {conditions.data_sha256[:12]}"]
    if conditions.shots:
        drawn = (
            f"the same {conditions.shots} shots for all items"
            if conditions.shared_shots
            else f"{conditions.shots} shots drawn for each item"
        )
        fitting = (
            ""
            if conditions.mean_shots == conditions.shots
            else f", {conditions.mean_shots:.1f} of them fit on average"
        )
        facts.append(f"{drawn} from {conditions.shots_from}, seed {conditions.shots_seed}{fitting}")
    if conditions.truncated:
        facts.append(f"{conditions.truncated:,} longer than the context, their beginning cut")
    facts += [f"{count:,} not asked: {reason}" for reason, count in conditions.skipped.items()]
    if conditions.stride is not None:
        facts.append(f"windows {counted(conditions.stride, 'token')} apart")
    facts += [f"{name}: {signature}" for name, signature in result.signatures.items()]
    lines = [f"{result.task}: {'; '.join(facts)}"]
    if conditions.note:
        lines.append(f"{result.task}: {' '.join(conditions.note.split())}")
    if result.calibration:
        shares = ", ".join(f"{share}% {value:.2f}%" for share, value in result.calibration.items())
        lines.append(
            f"{result.task}: {next(iter(result.metrics)).replace('_', ' ')} of the most confident "
            f"answers: {shares}"
        )
    if result.contamination:
        lines.append(_contamination(result))
    if result.paper:
        lines.append(_paper(result.paper[0]))
    return lines


def _contamination(result: TaskResult) -> str:
    overlap = result.contamination
    contamination_note = (
        f"{overlap['dirty_items']:,} of {counted(overlap['items'], 'item')} occur in "
        f"{overlap['shards']} "
        f"(any {overlap['n']} words in a row)"
    )
    parts = [
        f"{name} {overlap[name]:.2f}%"
        for name in ("clean", "dirty", "all")
        if overlap.get(name) is not None
    ]
    difference = (
        ""
        if overlap.get("difference") is None
        else f", clean over all {overlap['difference']:+.2f}%"
    )
    return f"{result.task}: {contamination_note}{': ' * bool(parts)}{', '.join(parts)}{difference}"


def _paper(score: PaperScore) -> str:
    return f"Paper: {score.model}, the nearest in size, in {score.source}."
