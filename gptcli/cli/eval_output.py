"""Output of `gpt eval`: reports, tasks, forecasts, comparisons and prompts."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.cli.console import REPORT_COLUMNS, columns, print_json, screen, wrap_lines
from gptcli.errors import GptError, UsageError
from gptcli.files import atomic_write, write_json
from gptcli.model.source import RUN_TOML
from gptcli.numbers import amount, counted, in_bytes
from gptcli.settings import split_list
from gptcli.toml_json import dumps

if TYPE_CHECKING:
    from rich.console import Console

    from gptcli.evals.compare import Comparison, Items
    from gptcli.evals.evaluate import Evaluation
    from gptcli.evals.report import TableRows
    from gptcli.evals.results import TaskResult
    from gptcli.evals.rolling import LossReport
    from gptcli.evals.task import Task
    from gptcli.model.source import ModelSource

PIPE_WIDTH = REPORT_COLUMNS  # if there is no terminal
GAP = 3  # columns of the screen between two of a table
BLANKS_AT_END = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$")  # before the codes that end a style
NARROW_GAP = 2  # where the table would otherwise fold words


def print_evaluation(evaluation: Evaluation, *, markdown: bool) -> None:
    """Print an evaluation: losses, scores, and what is said of a suite."""
    from gptcli.evals.report import suite_parts

    print_report(_title(evaluation), evaluation.losses, evaluation.tasks, markdown=markdown)
    if extent := _extent_while_training(evaluation):
        _print_parts([extent], markdown=markdown)
    if evaluation.suite is not None:
        left_out = evaluation.core.missing if evaluation.core else evaluation.left_out
        _print_parts(suite_parts(evaluation.core, left_out), markdown=markdown)


def _extent_while_training(evaluation: Evaluation) -> str:
    """Return the sentence on the tokens behind the run's own validation loss, if that is measured."""
    from gptcli.evals.rolling import find_run_shards
    from gptcli.runs.record import validation_extent

    folder = evaluation.loaded.source.folder
    try:
        shards = find_run_shards(folder)
        extent = validation_extent((folder / RUN_TOML).read_text(encoding="utf-8-sig"))
    except (GptError, OSError, ValueError):  # a model without a run, or without its shards
        return ""
    if not extent or all(loss.name != f"{shards} (val)" for loss in evaluation.losses):
        return ""
    return f"The run's own validation loss, in its report and card, is on {extent}."


def _title(evaluation: Evaluation) -> str:
    """Return the first line of the printed report: folder, step, size, device, precision."""
    loaded = evaluation.loaded
    step = "" if loaded.source.step is None else f", step {loaded.source.step:,}"
    parameters = counted(loaded.model.config.parameters, "parameter")
    return f"{evaluation.model}{step}: {parameters}, {loaded.device.type}, {loaded.precision}"


def write_evaluation(
    evaluation: Evaluation,
    output: Path | None,
    samples: Path | None,
    *,
    as_json: bool,
    markdown: bool,
) -> None:
    """Write the items and the report to their files, and print the report."""
    from gptcli.runs.record import EVAL_SCHEMA

    report = evaluation.report()
    if samples is not None:
        with atomic_write(samples, "w") as out:
            out.writelines(dumps(item) + "\n" for item in evaluation.items)
    if output is not None:  # last, because a Makefile waits for it
        write_json(output, {"schema": EVAL_SCHEMA, **report})
    if as_json:
        print_json("eval", report)
    else:
        print_evaluation(evaluation, markdown=markdown)


def print_report(
    title: str, losses: list[LossReport], results: list[TaskResult], *, markdown: bool
) -> None:
    """Print the report on stdout."""
    from gptcli.evals.report import report_parts

    _print_parts(report_parts(title, losses, results), markdown=markdown)


def print_comparison(comparisons: list[Comparison], names: list[str], *, markdown: bool) -> None:
    """Print the difference of two models, task by task."""
    from gptcli.evals.report import comparison_parts

    _print_parts(comparison_parts(comparisons, names), markdown=markdown)


def print_items(items: list[dict[str, Any]]) -> None:
    """Print what the model reads for each item, with nothing changed or cut."""
    for item in items:
        shots = f"{item['shots']} shots" + (", cut" if item["truncated"] else "")
        print(f"--- {item['task']}, item {item['index']} ({item['id']}), {shots}")
        for number, context in enumerate(item["contexts"]):
            tokens = item["context_tokens"][number]
            print(
                f"[context, {counted(len(tokens), 'token')}: "
                f"{' '.join(map(str, tokens))}]\n{context}"
            )
        for number, text in enumerate(item.get("continuations", ())):
            mark = "*" if number in item["gold"] else " "
            tokens = " ".join(map(str, item["continuation_tokens"][number]))
            print(f"{mark}[{number}: {tokens}] {text!r}")
        if "accepted" in item:
            print(f"[accepted] {' | '.join(item['accepted'])}")


def _print_parts(parts: list[TableRows | str], *, markdown: bool) -> None:
    from gptcli.evals.report import markdown_table

    if markdown:
        texts = [part if isinstance(part, str) else markdown_table(part) for part in parts]
        print("\n\n".join(texts))
        return
    console = _console(PIPE_WIDTH)
    for part in parts:
        if isinstance(part, str):
            print(wrap_lines(part, columns(sys.stdout)))
        else:
            _print_table(console, part)


def print_tasks(tasks: list[tuple[Task, Path | None]]) -> None:
    """Print the tasks, with the paper's K and whether the folder next to each has its data."""
    from gptcli.evals.report import task_rows

    _print_table(_console(PIPE_WIDTH), task_rows(tasks))


def print_task_details(tasks: list[tuple[Task, Path | None]]) -> None:
    """Print where each task's data is from, what it is called, and where it belongs."""
    from gptcli.evals.report import task_details

    found = [task_details(task, data) for task, data in tasks]
    for (task, data), details in zip(tasks, found, strict=True):
        print(f"{task.name}: {task.title}")
        for name, text in details.items():
            option = f", named with --data {data or 'DATA'}" if name == "folder" else ""
            print(f"  {name:<9} {text}{option}")


def _console(width: int) -> Console:
    """Return the console of stdout, of this width in a pipe; nothing is cut there."""
    return screen(width=None if sys.stdout.isatty() else width)


def _print_table(console: Console, rows: TableRows) -> None:
    """Print rows as a table; on a screen too narrow for its numbers, each row on lines of its own.

    A number that is cut is another number, and so is a word.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table

    from gptcli.evals.report import TEXT_COLUMNS

    widths = {
        name: max(cell_len(name), *(cell_len(str(row[name])) for row in rows)) for name in rows[0]
    }
    least = [
        min(width, _longest_word(rows, name)) if name in TEXT_COLUMNS else width
        for name, width in widths.items()
    ]
    gaps = len(widths) - 1
    gap = GAP if sum(widths.values()) + GAP * gaps <= console.width else NARROW_GAP
    if sum(least) + gap * gaps > console.width:
        for row in rows:
            first, *rest = [(name, text) for name, text in row.items() if text]
            print(first[1])
            print("".join(f"  {name}: {text}\n" for name, text in rest), end="")
        return
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, gap - NARROW_GAP)
    )
    for name in rows[0]:
        table.add_column(
            name,
            justify="left" if name in TEXT_COLUMNS else "right",
            no_wrap=name not in TEXT_COLUMNS,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row.values())
    with console.capture() as drawn:
        console.print(table)
    for line in drawn.get().splitlines():  # a cell is filled up with blanks
        print(BLANKS_AT_END.sub(r"\1", line))


def _longest_word(rows: TableRows, name: str) -> int:
    from rich.cells import cell_len

    return max(cell_len(word) for row in rows for word in (name, *str(row[name]).split()))


def print_forecast(report: dict[str, Any], source: ModelSource) -> None:
    """Print the report of --dry-run, one line for each text and task."""
    if source.step is not None:
        print(f"weights: {source}")
    for one in report["work"]:
        facts = [
            f"{one['name']}: {counted(one['items'], 'item')}, at most "
            f"{counted(one['tokens'], 'token', amount)} read"
        ]
        if one.get("cut"):
            facts.append(f"{one['cut']:,} cut to the context")
        left_out = one.get("left_out", {})
        facts += [f"{count:,} left out: {reason}" for reason, count in left_out.items()]
        print(wrap_lines("; ".join(facts), columns(sys.stdout)))
    print(
        f"work: at most {report['flops']:.2e} FLOP; "
        f"memory: {in_bytes(report['memory_bytes'])} of weights in fp32"
    )


def compare_records(
    runs: list[Path], output: Path | None, *, as_json: bool, markdown: bool
) -> None:
    """Compare two models by the records of earlier evaluations; write the report to `output`.

    Raises UsageError if one of `runs` is a model, InputError if its records cannot be read.
    """
    from gptcli.evals.compare import group_items, read_records

    models = []
    for run in runs:
        paths = [Path(part) for part in split_list(str(run))]
        for path in paths:
            if (path / "config.json").is_file():
                raise UsageError(
                    "a model has no scores yet: name the tasks to compare on",
                    where=path,
                    hint="gpt eval A B --compare --task NAME --data FOLDER\n"
                    "the losses of two runs side by side: gpt train --report A B -o compare.html",
                )
        models.append([group_items(read_records(path), str(path)) for path in paths])
    _print_comparison(models, [str(run) for run in runs], output, as_json, markdown)


def compare_evaluations(
    evaluations: list[Evaluation], output: Path | None, *, as_json: bool, markdown: bool
) -> None:
    """Compare two evaluated models."""
    from gptcli.evals.compare import group_items

    models = [[group_items(one.items, one.model)] for one in evaluations]
    _print_comparison(models, [one.model for one in evaluations], output, as_json, markdown)


def _print_comparison(
    models: list[list[Items]], names: list[str], output: Path | None, as_json: bool, markdown: bool
) -> None:
    from gptcli.evals.compare import compare_items

    comparisons = compare_items(models[0], models[1])
    report = {
        "a": names[0],
        "b": names[1],
        "comparisons": [{**asdict(one), "verdict": one.verdict} for one in comparisons],
    }
    if output is not None:
        write_json(output, report)
    if as_json:
        print_json("eval", report)
    else:
        print_comparison(comparisons, names, markdown=markdown)


def evaluate_finetuned(folder: Path, data: Path | None, *, as_json: bool) -> None:
    """Print the accuracy of a fine-tuned run."""
    from gptcli.finetune.run import evaluate_finetuned

    report = evaluate_finetuned(folder, data)
    if as_json:
        print_json("eval", report)
    else:
        correct, examples = report["correct"], report["examples"]
        print(
            f"accuracy {report['accuracy']:.2%} ({correct:,} of {examples:,}) on {report['data']}"
        )


def not_one_run(runs: list[Path]) -> UsageError:
    """Return the error for no run, several runs, or a task's name among them."""
    from gptcli.evals.task import task_names
    from gptcli.model.source import is_model_file

    if not runs:
        return UsageError("is missing", where="RUN", hint="name a run folder: gpt eval runs/350M")
    tasks = [str(run) for run in runs if str(run) in task_names() and not run.exists()]
    others = [str(run) for run in runs if str(run) not in tasks]
    if tasks and len(others) == 1:
        line = shlex.join(["gpt", "eval", others[0], "--task", ",".join(tasks), "--data", "FOLDER"])
        return UsageError("a task is an option", where=tasks[0], hint=line)
    if len(runs) == 2 and runs[1].is_file() and not is_model_file(runs[1]):
        line = shlex.join(["gpt", "eval", str(runs[0]), "--text", str(runs[1])])
        return UsageError("a text is an option", where=runs[1], hint=line)
    hint = f"name one run folder: gpt eval {shlex.quote(str(runs[0]))}"
    if len(runs) == 2 and all(run.is_dir() for run in runs):
        both = shlex.join(map(str, runs))
        hint = (
            f"name one, or compare them by a task: gpt eval {both} --compare --task NAME --data "
            f"FOLDER\nby their losses: gpt train --report {both} -o compare.html"
        )
    return UsageError(f"{counted(len(runs), 'run')} at once", where=runs[1], hint=hint)
