"""Tables and remarks of an evaluation report: losses on text, and scores on tasks with the papers'.

A table is a list of rows, each with its cells by column; every row has the same columns.
"""

from __future__ import annotations

from pathlib import Path

from gptcli.errors import GptError
from gptcli.evals.results import PaperScore, TaskResult
from gptcli.evals.rolling import LossReport
from gptcli.evals.task import Task
from gptcli.evals.task_data import find_data
from gptcli.runs.record import NON_PERCENT_METRICS

# left-aligned columns; numbers are right-aligned
TEXT_COLUMNS = ("text", "task", "scoring", "kind", "data", "what")

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
            f"Loss and entropy in nats per token; windows of {first.n_ctx} tokens, "
            f"{first.stride} apart."
        ]
    if results:
        names = list(dict.fromkeys(name for result in results for name in result.metrics))
        parts += [[_task_row(result, names) for result in results]]
        parts += [
            line
            for result in {result.task: result for result in results}.values()
            for line in _remarks(result)
        ]
    return parts


def task_rows(tasks: list[Task], data: Path | None) -> TableRows:
    """Return a table of tasks, with the paper's K and the location of each one's data."""
    return [
        {
            "task": task.name,
            "kind": task.kind,
            "K": str(task.shots or ""),
            "data": _data_location(task, data),
            "what": task.title,
        }
        for task in tasks
    ]


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


def _data_location(task: Task, data: Path | None) -> str:
    try:
        path = find_data(task, data)
    except GptError:
        path = None
    if path is not None:
        return str(path)
    if task.generated:
        return "generated"
    return "not here" if data is not None else task.files["items"].split("|")[0]


def _loss_row(loss: LossReport) -> dict[str, str]:
    return {
        "text": loss.name,
        "tokens": f"{loss.tokens:,}",
        "loss": figure(loss.loss, loss.loss_stderr, digits=4),
        "perplexity": figure(loss.perplexity),
        "bits per byte": "" if loss.bits_per_byte is None else figure(loss.bits_per_byte, digits=4),
        "unigram entropy": figure(loss.unigram_entropy, digits=4),
    }


def _task_row(result: TaskResult, names: list[str]) -> dict[str, str]:
    shots = result.conditions.shots
    row = {
        "task": result.task,
        "scoring": result.scoring,
        "K": str(shots),
        "items": f"{result.conditions.items:,}",
    }
    for name in names:
        metric = result.metrics.get(name)
        unit = "" if name in NON_PERCENT_METRICS else "%"
        row[name.replace("_", " ")] = (
            "" if metric is None else figure(metric.value, metric.stderr, unit=unit)
        )
    row["paper"] = ", ".join(
        f"{score.score:g}{'' if score.metric in NON_PERCENT_METRICS else '%'}"
        for score in result.paper
    )
    return row


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
        facts.append(f"windows {conditions.stride} tokens apart")
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
        f"{overlap['dirty_items']:,} of {overlap['items']:,} items occur in {overlap['shards']} "
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
