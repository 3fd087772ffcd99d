"""`gpt eval`: what a model scores, on text and on the papers' tasks."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli import __version__
from gptcli.cli.config import count
from gptcli.cli.console import ConsoleEvents, print_json
from gptcli.errors import UsageError
from gptcli.files import atomic_write, claim_file, write_json

if TYPE_CHECKING:
    from numpy import ndarray
    from rich.table import Table

    from gptcli.evals.loss import LossReport
    from gptcli.evals.runner import TaskResult
    from gptcli.evals.task import Task
    from gptcli.sampling.loading import Loaded
    from gptcli.shards.loader import TokenStream

WHAT, HOW, OUTPUT, MACHINE = "What to score", "How", "Output", "Machine"
PIPE_WIDTH = 200  # columns, where there is no terminal to fit


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def _complete_task(incomplete: str) -> list[str]:
    from gptcli.evals.task import task_names

    return [name for name in task_names() if name.startswith(incomplete)]


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="A run folder, or a transformers GPT-2 folder with its tokenizer.", show_default=False),
    ] = None,
    text: Annotated[list[Path] | None, typer.Option(help="The loss on a text file; several are allowed.", rich_help_panel=WHAT)] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task, or a .toml file of your own; several are allowed.", autocompletion=_complete_task, rich_help_panel=WHAT),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="With --task: the folder or file of its data. Else: shards instead of the run's own.", rich_help_panel=WHAT),
    ] = None,
    list_tasks: Annotated[bool, typer.Option("--list", help="List the tasks and stop.", rich_help_panel=WHAT)] = False,
    limit: Annotated[str | None, typer.Option(help="Only the first N items, or windows of text.", metavar="N", rich_help_panel=HOW)] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens from one window of text to the next; fewer give each token more context.",
            metavar="N",
            show_default="the model's context",
            rich_help_panel=HOW,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Sequences at once; scores do not depend on it.", metavar="N", show_default="8,192 tokens", rich_help_panel=HOW
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the report here, as JSON; - is stdout.", rich_help_panel=OUTPUT)
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Write every item's scores here, a JSON object a line.", rich_help_panel=OUTPUT)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace these files.", rich_help_panel=OUTPUT)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as one JSON object on stdout.", rich_help_panel=OUTPUT)] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.", rich_help_panel=MACHINE)] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or auto.", rich_help_panel=MACHINE)] = "fp32",
) -> None:
    """Score a model: loss, perplexity and bits per byte on text, and the papers' tasks.

    Without --text, --task or --data, the text is the validation shards that the run was trained beside.

    Examples:

        gpt eval runs/350M --text book.txt --stride 256

        gpt eval runs/350M --task lambada --data data/lambada -o eval.json
    """
    from gptcli.cli.finetune import evaluate_finetuned, is_finetuned
    from gptcli.evals.task import find_data, find_task, task_names

    if list_tasks:
        _print_tasks([find_task(name) for name in task_names()])
        return
    if run is None:
        raise UsageError("RUN is missing", hint="name a run folder: gpt eval runs/350M")
    if not task and not text and is_finetuned(run):
        evaluate_finetuned(run, data, as_json=as_json)
        return
    if samples is not None and not task:
        raise UsageError("--samples goes with --task: text has no items")
    if stride is not None and task and not text:
        raise UsageError("--stride goes with text: a task's items are not read in windows")
    most = None if limit is None else count(limit)
    if most == 0:
        raise UsageError("--limit 0 leaves nothing to score")
    if output == Path("-"):
        output, as_json = None, True
    tasks = [find_task(name) for name in task or []]
    files = [find_data(one, data) for one in tasks]
    for path in (output, samples):
        if path is not None:
            claim_file(path, force=force)

    from gptcli.evals.loss import evaluate_loss
    from gptcli.evals.runner import run_task
    from gptcli.evals.texts import own_shards, shard_tokens, text_tokens, token_bytes
    from gptcli.sampling.loading import load

    events = ConsoleEvents()
    loaded = load(run, device=device, precision=precision)
    model, tokenizer = loaded.model, loaded.tokenizer
    streams: dict[str, TokenStream | ndarray] = {}
    if not tasks and (data is not None or not text):
        shards = data or own_shards(run)
        streams[f"{shards} (val)"] = shard_tokens(shards, tokenizer)
    streams |= {str(path): text_tokens(path, tokenizer) for path in text or []}
    lengths = token_bytes(tokenizer)
    losses = [
        evaluate_loss(model, tokens, lengths, name=name, stride=stride, limit=most, batch_size=batch_size, events=events)
        for name, tokens in streams.items()
    ]
    results, records = [], []
    for one, file in zip(tasks, files, strict=True):
        found, items = run_task(model, tokenizer, one, file, limit=most, batch_size=batch_size, events=events)
        results += found
        records += items

    report = {
        "version": __version__,
        "model": str(run),
        "parameters": model.config.parameters,
        "tokenizer_sha256": tokenizer.sha256,
        "device": loaded.device.type,
        "precision": loaded.precision,
        "losses": [asdict(loss) for loss in losses],
        "tasks": [asdict(result) for result in results],
    }
    if samples is not None:
        with atomic_write(samples, "w") as out:
            out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if output is not None:  # last, because a Makefile waits for it
        write_json(output, {"schema": "gpt.eval/1", **report})
    if as_json:
        print_json("eval", report)
    else:
        _print_report(run, loaded, losses, results)


def _print_report(run: Path, loaded: Loaded, losses: list[LossReport], results: list[TaskResult]) -> None:
    from rich.console import Console

    # A pipe has no width: nothing is cut there.
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(f"{run}: {loaded.model.config.parameters:,} parameters, {loaded.device.type}, {loaded.precision}", markup=False)
    if losses:
        table = _table("text", "tokens", "loss", "perplexity", "bits per byte", "unigram entropy")
        for loss in losses:
            table.add_row(
                loss.name,
                f"{loss.tokens:,}",
                _figure(loss.loss, loss.loss_stderr, digits=4),
                _figure(loss.perplexity),
                "" if loss.bits_per_byte is None else _figure(loss.bits_per_byte, digits=4),
                _figure(loss.unigram_entropy, digits=4),
            )
        console.print(table)
        first = losses[0]
        console.print(f"Loss and entropy in nats per token; windows of {first.n_ctx} tokens, {first.stride} apart.")
    if results:
        table = _table("task", "scoring", "K", "items", "accuracy", "perplexity", "paper")
        for result in results:
            paper = ", ".join(f"{score.score:g}{'%' * (score.metric == 'accuracy')}" for score in result.paper)
            table.add_row(
                result.task,
                result.scoring,
                str(result.shots),
                f"{result.items:,}",
                _figure(result.accuracy, result.accuracy_stderr, unit="%"),
                _figure(result.perplexity, result.perplexity_stderr),
                paper,
            )
        console.print(table)
    for result in {result.task: result for result in results}.values():
        cut = f"; {result.truncated:,} longer than the context, their beginning cut" if result.truncated else ""
        console.print(f"{result.task}: {result.data}, sha256 {result.data_sha256[:12]}{cut}", markup=False)
        if result.paper:
            console.print(f"Paper: {result.paper[0].model}, the nearest in size, in {result.paper[0].source}.", markup=False)


def _print_tasks(tasks: list[Task]) -> None:
    from rich.console import Console

    table = _table("task", "kind", "what")
    for task in tasks:
        table.add_row(task.name, task.kind, task.title)
    Console(highlight=False).print(table)


def _table(*names: str) -> Table:
    """A plain table; figures stand on the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in names:
        words = name in ("text", "task", "scoring", "kind", "what")
        table.add_column(name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    return table


def _figure(value: float, stderr: float | None = None, *, digits: int = 2, unit: str = "") -> str:
    """A value with its standard error: 45.99% ±0.69. An untrained model's perplexities need the exponent."""
    form = f",.{digits}f" if value < 1e6 else ".3g"
    return f"{value:{form}}{unit}" + ("" if stderr is None else f" ±{stderr:{form}}")
