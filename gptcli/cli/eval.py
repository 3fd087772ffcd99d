"""`gpt eval`: evaluate a model on text and on the papers' tasks."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gptcli import toml_json
from gptcli.cli import options
from gptcli.cli.command import Command, hold, releasing
from gptcli.cli.console import ConsoleEvents, print_json, screen
from gptcli.cli.options import flag, quantity, value
from gptcli.errors import UsageError, nearest
from gptcli.events import SILENT
from gptcli.files import atomic_write, claim_file, write_json, written_through
from gptcli.locks import own_file, own_folder
from gptcli.numbers import amount, in_bytes
from gptcli.runtime import is_main, unused_launch

if TYPE_CHECKING:
    from rich.console import Console

    from gptcli.evals.evaluate import Evaluation
    from gptcli.evals.report import TableRows
    from gptcli.evals.results import TaskResult
    from gptcli.evals.rolling import LossReport
    from gptcli.evals.task import Task
    from gptcli.model.source import ModelSource
    from gptcli.sampling.load import PrecisionChoice

PIPE_WIDTH = 200  # columns, if there is no terminal
WHAT, FEW, HOW, OUTPUT, MACHINE = "What to score", "Few-shot", "How", "Output", "Machine"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("eval", cls=Command)(releasing(evaluate))


def _complete_task(incomplete: str) -> list[str]:
    from gptcli.evals.task import task_names

    return [name for name in task_names() if name.startswith(incomplete)]


def evaluate(
    run: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="Run folder, or a transformers GPT-2 folder with its tokenizer; "
            "with --plot, reports.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        int | None,
        quantity(
            "checkpoint",
            "Score the run's checkpoint of this step.",
            WHAT,
            "the finished model, or the newest checkpoint",
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        value("Text file to measure the loss on; several with commas.", "FILE", WHAT),
    ] = None,
    task: Annotated[
        list[str] | None,
        value(
            "Task to score, by its name or its .toml file; several with commas.",
            "NAME",
            WHAT,
            complete=_complete_task,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        value(
            "With --task, the folder or file of its data; otherwise shards to use "
            "instead of the run's own.",
            "FOLDER",
            WHAT,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        value(
            "Training shards to search for the items of each --task; "
            "clean items are scored separately.",
            "FOLDER",
            WHAT,
        ),
    ] = None,
    list_tasks: Annotated[
        bool, flag("--list", "List the tasks and whether their data is in --data, and stop.", WHAT)
    ] = False,
    shots: Annotated[
        int, quantity("shots", "Solved examples in front of each item.", FEW, metavar="K")
    ] = 0,
    shots_seed: Annotated[
        int,
        quantity(
            "shots_seed",
            "Random seed that chooses the solved examples, for each item by a hash.",
            FEW,
        ),
    ] = 0,
    shared_shots: Annotated[
        bool,
        flag(
            "--shared-shots",
            "Use the same solved examples for all items: not the papers' protocol, "
            "but much faster.",
            FEW,
        ),
    ] = False,
    limit: Annotated[
        int | None,
        quantity("limit", "Score only the first N items, or windows of text.", HOW, "all"),
    ] = None,
    stride: Annotated[
        int | None,
        quantity(
            "stride",
            "Tokens from one window of text to the next; a smaller stride gives "
            "tokens more context.",
            HOW,
            "the model's context",
        ),
    ] = None,
    normalise: Annotated[
        str | None,
        value(
            "Normalisation of the choices' likelihoods: token, sum, character or unconditional.",
            "RULE",
            HOW,
            "the task's",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        quantity(
            "batch_size", "Items scored at once; scores do not depend on it.", HOW, "what fits"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        options.out("File to write the report to, as JSON; - is stdout.", "FILE", OUTPUT),
    ] = None,
    records: Annotated[
        Path | None,
        value(
            "Folder that keeps the result of every item as soon as it is measured.",
            "FOLDER",
            OUTPUT,
            "beside -o",
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        value("File for every item's scores, one JSON object per line.", "FILE", OUTPUT),
    ] = None,
    plot: Annotated[
        Path | None,
        value(
            "Draw accuracy by shots and size, from reports, as an SVG, and stop.",
            "FILE.svg",
            OUTPUT,
        ),
    ] = None,
    resume: Annotated[
        bool,
        flag("--resume", "Continue an evaluation that was stopped, from its --records.", OUTPUT),
    ] = False,
    force: Annotated[
        bool, flag("--force", "Replace existing output files and --records.", OUTPUT)
    ] = False,
    dry_run: Annotated[
        bool, flag("--dry-run", "Print what would be read, its sizes and work, and stop.", OUTPUT)
    ] = False,
    markdown: Annotated[bool, flag("--markdown", "Print the tables as Markdown.", OUTPUT)] = False,
    as_json: Annotated[
        bool, flag("--json", "Print the report as one JSON object on stdout.", OUTPUT)
    ] = False,
    device: Annotated[
        str, value("Device to run on: auto, cpu, cuda or cuda:1.", "NAME", MACHINE)
    ] = "auto",
    precision: Annotated[str, value("Precision: fp32, bf16 or auto.", "KIND", MACHINE)] = "fp32",
) -> None:
    """Evaluate a model: loss, perplexity and bits per byte on text, and the papers' tasks.

    Without --text, --task or --data, the text is the validation split of the run's shards.

    Examples:

        gpt eval runs/350M --text book.txt --stride 256

        gpt eval runs/350M --task hellaswag --shots 20 --data data -o eval.json
    """
    from gptcli.evals.task import NORMALISERS, find_task, find_tasks, task_names
    from gptcli.evals.task_data import find_data
    from gptcli.model.source import find_model, is_finetuned

    if list_tasks:
        print_tasks([find_task(name) for name in task_names()], data)
        return
    if plot is not None:
        from gptcli.runs.plots import plot_reports

        plot_reports(run or [], plot, force=force)
        return
    if not run or len(run) > 1:
        raise _not_one_run(run or [])
    folder = run[0]
    if not task and not text and checkpoint is None and is_finetuned(folder):
        _evaluate_finetuned(folder, data, as_json=as_json)
        return
    tasks = find_tasks(task or [])
    for name, given in {
        "--samples": samples,
        "--against": against,
        "--records": records,
        "--normalise": normalise,
        "--shots": shots or None,
    }.items():
        if given is not None and not tasks:
            raise UsageError(f"{name} goes with --task: it applies to the items of a task")
    if stride is not None and tasks and not text and all(one.kind != "text" for one in tasks):
        raise UsageError("--stride goes with text: a task's items are not read in windows")
    if normalise is not None and normalise not in NORMALISERS:
        raise UsageError(
            f"unknown rule {normalise!r}", where="--normalise", hint=nearest(normalise, NORMALISERS)
        )
    if shared_shots and not shots:
        raise UsageError("--shared-shots goes with --shots")
    if resume and force:
        raise UsageError("--resume and --force contradict each other", hint="choose one")
    if output == Path("-"):
        output, as_json = None, True
    for one in tasks:
        find_data(one, data)
    fewshot: dict[str, Any] = {"shots": shots, "seed": shots_seed, "shared": shared_shots}
    scoring: dict[str, Any] = {"normalise": normalise, "limit": limit, "stride": stride}
    if dry_run:
        from gptcli.evals.evaluate import forecast_evaluation
        from gptcli.evals.fewshot import FewShotConfig

        source = find_model(folder, checkpoint)
        forecast = forecast_evaluation(
            source, tasks, text or [], data, FewShotConfig(**fewshot), **scoring
        )
        print_json("eval", forecast) if as_json else _print_forecast(forecast, source)
        return
    events = ConsoleEvents() if is_main() else SILENT
    if (note := unused_launch()) is not None:
        events.warn(note)
    if records is None and output is not None and tasks and not written_through(output):
        records = output.with_suffix(".records")
    if is_main():
        for path in (output, samples):
            if path is not None:
                hold(own_file(path, events=events))
                claim_file(path, force=force or resume)
        if records is not None:
            from gptcli.evals.records import claim_records

            hold(own_folder(records, events=events))
            claim_records(records, resume=resume, force=force)

    from gptcli.evals.evaluate import evaluate_folder, fingerprint_of
    from gptcli.evals.fewshot import FewShotConfig
    from gptcli.evals.runner import EvalOptions
    from gptcli.runs.record import EVAL_SCHEMA

    evaluation = evaluate_folder(
        folder,
        tasks,
        text or [],
        data,
        lambda loaded: EvalOptions(
            fewshot=FewShotConfig(**fewshot),
            **scoring,
            batch_size=batch_size,
            records=records,
            against=against,
            fingerprint=fingerprint_of(loaded, weights=records is not None),
        ),
        checkpoint=checkpoint,
        device=device,
        precision=cast("PrecisionChoice", precision),
        events=events,
    )
    if not is_main():
        return

    report = evaluation.report()
    if samples is not None:
        with atomic_write(samples, "w") as out:
            out.writelines(toml_json.dumps(item) + "\n" for item in evaluation.items)
    if output is not None:  # last, because a Makefile waits for it
        write_json(output, {"schema": EVAL_SCHEMA, **report})
    if as_json:
        print_json("eval", report)
    else:
        print_report(_title(evaluation), evaluation.losses, evaluation.tasks, markdown=markdown)


def _title(evaluation: Evaluation) -> str:
    """Return the first line of the printed report: folder, step, size, device, precision."""
    loaded = evaluation.loaded
    step = "" if loaded.source.step is None else f", step {loaded.source.step:,}"
    parameters = f"{loaded.model.config.parameters:,} parameters"
    return f"{evaluation.model}{step}: {parameters}, {loaded.device.type}, {loaded.precision}"


def print_report(
    title: str, losses: list[LossReport], results: list[TaskResult], *, markdown: bool
) -> None:
    """Print the report on stdout."""
    from gptcli.evals.report import markdown_table, report_parts

    parts = report_parts(title, losses, results)
    if markdown:
        texts = [part if isinstance(part, str) else markdown_table(part) for part in parts]
        print("\n\n".join(texts))
        return
    console = _console(soft_wrap=True)
    for part in parts:
        if isinstance(part, str):
            console.print(part, soft_wrap=not console.is_terminal)
        else:
            _print_table(console, part)


def print_tasks(tasks: list[Task], data: Path | None) -> None:
    """Print the tasks, with the paper's K and the location of each one's data."""
    from gptcli.evals.report import task_rows

    _print_table(_console(), task_rows(tasks, data))


def _console(*, soft_wrap: bool = False) -> Console:
    """Return the console of stdout; into a pipe nothing is cut."""
    return screen(width=None if sys.stdout.isatty() else PIPE_WIDTH, soft_wrap=soft_wrap)


def _print_table(console: Console, rows: TableRows) -> None:
    from rich import box
    from rich.table import Table

    from gptcli.evals.report import TEXT_COLUMNS

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in rows[0]:
        table.add_column(
            name,
            justify="left" if name in TEXT_COLUMNS else "right",
            no_wrap=name not in TEXT_COLUMNS,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def _print_forecast(report: dict[str, Any], source: ModelSource) -> None:
    """Print the report of --dry-run, one line for each text and task."""
    if source.step is not None:
        print(f"weights: {source}")
    for one in report["work"]:
        facts = [
            f"{one['name']}: {one['items']:,} items, at most {amount(one['tokens'])} tokens read"
        ]
        if one.get("cut"):
            facts.append(f"{one['cut']:,} cut to the context")
        left_out = one.get("left_out", {})
        facts += [f"{count:,} left out: {reason}" for reason, count in left_out.items()]
        print("; ".join(facts))
    print(
        f"work: at most {report['flops']:.2e} FLOP; "
        f"memory: {in_bytes(report['memory_bytes'])} of weights in fp32"
    )


def _evaluate_finetuned(folder: Path, data: Path | None, *, as_json: bool) -> None:
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


def _not_one_run(runs: list[Path]) -> UsageError:
    """Return the error for no run, several runs, or a task's name among them."""
    from gptcli.evals.task import task_names

    if not runs:
        return UsageError("is missing", where="RUN", hint="name a run folder: gpt eval runs/350M")
    tasks = [str(run) for run in runs if str(run) in task_names() and not run.exists()]
    others = [str(run) for run in runs if str(run) not in tasks]
    if tasks and len(others) == 1:
        line = shlex.join(["gpt", "eval", others[0], "--task", ",".join(tasks), "--data", "FOLDER"])
        return UsageError("a task is an option", where=tasks[0], hint=line)
    return UsageError(
        f"{len(runs)} runs at once", where=runs[1], hint="name one run folder: gpt eval runs/350M"
    )
