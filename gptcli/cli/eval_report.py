"""Tables of `gpt eval`: losses on text and scores on tasks, next to the papers', or as Markdown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.cli.console import screen
from gptcli.errors import GptError
from gptcli.runs.record import NON_PERCENT_METRICS

if TYPE_CHECKING:
    from rich.console import Console

    from gptcli.evals.results import PaperScore, TaskResult
    from gptcli.evals.rolling import LossReport
    from gptcli.evals.task import Task

PIPE_WIDTH = 200  # columns, if there is no terminal
# left-aligned columns; numbers are right-aligned
WORDS = ("text", "task", "scoring", "kind", "data", "what")

Rows = list[dict[str, str]]


def print_report(
    title: str, losses: list[LossReport], results: list[TaskResult], *, markdown: bool
) -> None:
    """Print the report on stdout."""
    parts: list[Rows | str] = [title]
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
    if markdown:
        print("\n\n".join(_markdown(part) if isinstance(part, list) else part for part in parts))
        return
    console = _console(soft_wrap=True)
    for part in parts:
        if isinstance(part, list):
            _print_table(console, part)
        else:
            console.print(part, soft_wrap=not console.is_terminal)


def print_tasks(tasks: list[Task], data: Path | None) -> None:
    """Print the tasks, with the paper's K and the location of each one's data."""
    rows = [
        {
            "task": task.name,
            "kind": task.kind,
            "K": str(task.shots or ""),
            "data": _state(task, data),
            "what": task.title,
        }
        for task in tasks
    ]
    _print_table(_console(), rows)


def _console(*, soft_wrap: bool = False) -> Console:
    """Return the console of stdout; into a pipe nothing is cut."""
    return screen(width=None if sys.stdout.isatty() else PIPE_WIDTH, soft_wrap=soft_wrap)


def _state(task: Task, data: Path | None) -> str:
    from gptcli.evals.task_data import find_data

    try:
        found = find_data(task, data)
    except GptError:
        found = None
    if found is not None:
        return str(found)
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
        found = result.metrics.get(name)
        unit = "" if name in NON_PERCENT_METRICS else "%"
        row[name.replace("_", " ")] = (
            "" if found is None else figure(found.value, found.stderr, unit=unit)
        )
    row["paper"] = ", ".join(
        f"{score.score:g}{'' if score.metric in NON_PERCENT_METRICS else '%'}"
        for score in result.paper
    )
    return row


def _remarks(result: TaskResult) -> list[str]:
    """Return the conditions of a task, in sentences."""
    under = result.conditions
    facts = [f"{under.data}, sha256 {under.data_sha256[:12]}"]
    if under.shots:
        drawn = (
            f"the same {under.shots} shots for all items"
            if under.shared_shots
            else f"{under.shots} shots drawn for each item"
        )
        fitting = (
            ""
            if under.mean_shots == under.shots
            else f", {under.mean_shots:.1f} of them fit on average"
        )
        facts.append(f"{drawn} from {under.shots_from}, seed {under.shots_seed}{fitting}")
    if under.truncated:
        facts.append(f"{under.truncated:,} longer than the context, their beginning cut")
    facts += [f"{count:,} not asked: {reason}" for reason, count in under.skipped.items()]
    if under.stride is not None:
        facts.append(f"windows {under.stride} tokens apart")
    facts += [f"{name}: {signature}" for name, signature in result.signatures.items()]
    lines = [f"{result.task}: {'; '.join(facts)}"]
    if under.note:
        lines.append(f"{result.task}: {' '.join(under.note.split())}")
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
    found = result.contamination
    contamination_note = (
        f"{found['dirty_items']:,} of {found['items']:,} items occur in {found['shards']} "
        f"(any {found['n']} words in a row)"
    )
    parts = [
        f"{name} {found[name]:.2f}%"
        for name in ("clean", "dirty", "all")
        if found.get(name) is not None
    ]
    difference = (
        "" if found.get("difference") is None else f", clean over all {found['difference']:+.2f}%"
    )
    return f"{result.task}: {contamination_note}{': ' * bool(parts)}{', '.join(parts)}{difference}"


def _paper(score: PaperScore) -> str:
    return f"Paper: {score.model}, the nearest in size, in {score.source}."


def figure(value: float, stderr: float | None = None, *, digits: int = 2, unit: str = "") -> str:
    """Format a value with its standard error, 45.99% ±0.69, with an exponent from a million on."""
    form = f",.{digits}f" if value < 1e6 else ".3g"
    return f"{value:{form}}{unit}" + ("" if stderr is None else f" ±{stderr:{form}}")


def _print_table(console: Console, rows: Rows) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in rows[0]:
        table.add_column(
            name,
            justify="left" if name in WORDS else "right",
            no_wrap=name not in WORDS,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def _markdown(rows: Rows) -> str:
    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    names = list(rows[0])
    rule = "|" + "|".join("---" if name in WORDS else "---:" for name in names) + "|"
    return "\n".join([line(names), rule, *(line(list(row.values())) for row in rows)])
