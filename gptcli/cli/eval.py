"""`gpt eval`: evaluate a model on text and on the papers' tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gptcli.cli import options
from gptcli.cli.command import Command, Mode, given_parameters, hold, refuse_unused, releasing
from gptcli.cli.console import ConsoleEvents, print_json
from gptcli.cli.options import flag, model_path, quantity, refuse_repeated, value
from gptcli.errors import UsageError, nearest
from gptcli.events import SILENT
from gptcli.files import claim_file, written_through
from gptcli.locks import own_file, own_folder
from gptcli.runtime import is_main, unused_launch
from gptcli.settings import OneOf

if TYPE_CHECKING:
    from gptcli.evals.core import Convention
    from gptcli.events import Events
    from gptcli.sampling.load import PrecisionChoice

PAPER_SHOTS = -1  # --shots paper
HEAD = 1 << 12  # bytes of a text that are looked at
WHAT, FEW, HOW, OUTPUT, MACHINE = "What to score", "Few-shot", "Scoring", "Output", "Machine"


SCORED = ("task", "suite", "text")
MODES = (
    Mode("list_tasks", "only lists tasks", ("run", "data")),
    Mode("plot", "only draws reports", ("run", "force")),
    Mode(
        "compare",
        "compares finished reports unless a --task, --suite or --text is named",
        ("run", "output", "force", "as_json", "markdown"),
        unless=SCORED,
    ),
    Mode(
        "show",
        "only prints what the model reads",
        (
            *("run", "checkpoint", "task", "suite", "data", "normalise", "as_json"),
            *("shots", "shots_seed", "shared_shots"),
        ),
    ),
    Mode(
        "compare",
        "evaluates two models and keeps no records of items",
        (
            *("run", *SCORED, "checkpoint", "convention", "data", "shots", "shots_seed"),
            *("shared_shots", "limit", "stride", "normalise", "batch_size", "output", "force"),
            *("dry_run", "markdown", "as_json", "device", "precision"),
        ),
        hint="leave it out, or evaluate each model with -o and compare the two reports",
    ),
)
FINETUNED = Mode(
    "a fine-tuned run",
    "is scored on the examples of its task file, or on those of --data",
    ("run", "data", "as_json"),
    hint="leave it out, or name what to score with --task or --text",
)


class EvalCommand(Command):
    """`gpt eval`, whose modes score nothing or two models."""

    modes = MODES


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("eval", cls=EvalCommand)(releasing(evaluate))


def _complete_task(incomplete: str) -> list[str]:
    from gptcli.evals.task import task_names

    return [name for name in task_names() if name.startswith(incomplete)]


def _shots(text: str) -> int:
    """Return the number of --shots; PAPER_SHOTS for the word paper."""
    return PAPER_SHOTS if str(text).strip() == "paper" else int(options.number("shots")(text))


def evaluate(
    ctx: typer.Context,
    run: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            parser=model_path,
            help="Run, transformers folder, file of nanoGPT or llm.c, or a name on the Hub such as gpt2; "
            "with --plot, reports; with --compare, two runs, reports or folders of records; "
            "with --list, tasks.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        int | None,
        quantity(
            "checkpoint",
            "Score the run's checkpoint at this step.",
            WHAT,
            "the finished model, or the newest checkpoint",
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        value("Text file to measure the loss on; separate several with commas.", "FILE", WHAT),
    ] = None,
    task: Annotated[
        list[str] | None,
        value(
            "Task to score, by its name or its .toml file; separate several with commas.",
            "NAME",
            WHAT,
            complete=_complete_task,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        value(
            "Tasks of a paper to score: gpt2 (Table 3), gpt3 (Table H.1) or core (DCLM); tasks "
            "without data are skipped and listed.",
            "NAME",
            WHAT,
        ),
    ] = None,
    convention: Annotated[
        str,
        value(
            "Prompt format of --suite core: nanochat's or DCLM's (dclm).",
            "NAME",
            WHAT,
            parser=OneOf(("nanochat", "dclm")),
        ),
    ] = "nanochat",
    data: Annotated[
        list[str] | None,
        value(
            "Data of the tasks: a folder or file, TASK=FOLDER for a single task, or hf to "
            "download it from the Hub; without --task, shards to use instead of the run's own.",
            "FOLDER",
            WHAT,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        value(
            "Training shards to search for the text of each item; the items not found there are "
            "also scored separately.",
            "FOLDER",
            WHAT,
        ),
    ] = None,
    list_tasks: Annotated[
        bool,
        flag(
            "--list",
            "List all tasks and whether --data contains their data; --list TASK says where the "
            "data of a task comes from.",
            WHAT,
        ),
    ] = False,
    shots: Annotated[
        int,
        value(
            "Number of solved examples in front of each item; the word paper stands for the paper's "
            "number for each task.",
            "K",
            FEW,
            parser=_shots,
        ),
    ] = 0,
    shots_seed: Annotated[
        int,
        quantity(
            "shots_seed",
            "Random seed for the choice of the solved examples.",
            FEW,
        ),
    ] = 0,
    shared_shots: Annotated[
        bool,
        flag(
            "--shared-shots",
            "Use the same solved examples for all items, which is much faster but not what the "
            "papers do.",
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
            "Folder that keeps the result of every item as soon as it is scored.",
            "FOLDER",
            OUTPUT,
            "next to -o",
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        value(
            "File for every item's prompt, tokens and scores, one JSON object per line.",
            "FILE",
            OUTPUT,
        ),
    ] = None,
    show: Annotated[
        int | None,
        quantity(
            "limit", "Print the model's input for the first N items, and stop.", OUTPUT, False
        ),
    ] = None,
    compare: Annotated[
        bool,
        flag(
            "--compare",
            "Compare two models on the items that both have answered, with a significance test; "
            "separate several seeds of one model with commas.",
            OUTPUT,
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        value(
            "Draw the accuracies of finished reports by shots and model size, as an SVG, and stop.",
            "FILE.svg",
            OUTPUT,
        ),
    ] = None,
    resume: Annotated[
        bool,
        flag("--resume", "Continue a stopped evaluation from its --records.", OUTPUT),
    ] = False,
    force: Annotated[
        bool, flag("--force", "Replace existing output files and --records.", OUTPUT)
    ] = False,
    dry_run: Annotated[
        bool,
        flag(
            "--dry-run",
            "Print what would be evaluated, its tokens, FLOPs and memory, and stop.",
            OUTPUT,
        ),
    ] = False,
    markdown: Annotated[bool, flag("--markdown", "Print the tables as Markdown.", OUTPUT)] = False,
    as_json: Annotated[
        bool, flag("--json", "Print the report as one JSON object on stdout.", OUTPUT)
    ] = False,
    device: Annotated[
        str, value("Device to run on: auto, cpu, cuda, cuda:1 or mps.", "NAME", MACHINE)
    ] = "auto",
    precision: Annotated[str, value("Precision: fp32, bf16 or auto.", "KIND", MACHINE)] = "fp32",
) -> None:
    """Evaluate a model: loss, perplexity and bits per byte on text, and the papers' tasks.

    Without --text, --task or --data, the text is the validation split of the run's shards.

    Examples:

        gpt eval runs/350M --text book.txt --stride 256

        gpt eval runs/350M --task hellaswag --shots 20 --data data -o eval.json
    """
    from gptcli.cli import eval_output
    from gptcli.evals.find_data import split_data
    from gptcli.evals.task import NORMALISERS, find_task, find_tasks, task_names
    from gptcli.model.hub import fetch_model
    from gptcli.model.source import check_exists, find_model, is_finetuned

    folders, place = split_data(data or [])
    if list_tasks:
        names = [str(name) for name in run or ()] or task_names()
        tasks = [find_task(name) for name in names]
        placed = [(task, folders.get(task.name, place)) for task in tasks]
        (eval_output.print_task_details if run else eval_output.print_tasks)(placed)
        return
    if plot is not None:
        from gptcli.runs.plots import plot_reports

        plot_reports(run or [], plot, force=force)
        return
    if compare and len(run or []) != 2:
        raise UsageError(
            f"--compare compares two models, not {len(run or [])}",
            hint="gpt eval A B --compare; several seeds of one model with commas: A1,A2",
        )
    if compare and not (task or suite or text):
        if output == Path("-"):
            output, as_json = None, True
        if output is not None:
            claim_file(output, force=force)
        eval_output.compare_records(run or [], output, as_json=as_json, markdown=markdown)
        return
    if not compare and (not run or len(run) > 1):
        raise eval_output.not_one_run(run or [])
    runs = run or []
    for one_run in runs:
        check_exists(one_run)
        fetch_model(one_run, ConsoleEvents())
    folder = runs[0]
    if not (task or text or suite) and checkpoint is None and is_finetuned(folder):
        refuse_unused(ctx.command, ctx, given_parameters(ctx), FINETUNED)
        eval_output.evaluate_finetuned(folder, place, as_json=as_json)
        return
    from gptcli.evals.check import EvalOptions, check_task
    from gptcli.evals.evaluate import evaluate_folder, fingerprint_of
    from gptcli.evals.fewshot import FewShotConfig
    from gptcli.evals.find_data import download_tasks
    from gptcli.evals.forecast import forecast_evaluation, show_items
    from gptcli.evals.suites import check_suite, downloadable_tasks, plan_suite

    tasks = find_tasks(task or [])
    refuse_repeated("text", text or [], "--text")
    chosen = None if suite is None else check_suite(suite)
    for name, given in {
        "--samples": samples,
        "--against": against,
        "--records": records,
        "--normalise": normalise,
        "--shots": shots or None,
        "--show": show,
        "--compare": compare or None,
    }.items():
        if given is not None and not (tasks or chosen):
            raise UsageError(f"{name} needs --task or --suite: it is about the items of a task")
    only_items = tasks and not text and all(one.kind != "text" for one in tasks)
    if stride is not None and only_items and chosen != "gpt2":
        raise UsageError("--stride needs a text: the items of a task are not read in windows")
    if normalise is not None and normalise not in NORMALISERS:
        raise UsageError(
            f"unknown rule {normalise!r}", where="--normalise", hint=nearest(normalise, NORMALISERS)
        )
    for name, is_given in {"--shots-seed": shots_seed, "--shared-shots": shared_shots}.items():
        if is_given and not shots:
            raise UsageError(
                f"{name} needs --shots, the number of solved examples", hint=f"--shots 5 {name} ..."
            )
    if "convention" in given_parameters(ctx) and chosen != "core":
        raise UsageError("--convention needs --suite core: it chooses the form of its prompts")
    if show is not None and chosen == "core":
        raise UsageError("--show cannot print the prompts of --suite core", hint="leave out one")
    if as_json and markdown:
        raise UsageError("--json and --markdown contradict each other", hint="choose one")
    if output == Path("-"):
        output, as_json = None, True
    if resume and not (tasks or chosen):
        raise UsageError(
            "--resume needs --task or --suite: only the results of items are kept",
            hint="leave it out: a text is measured from its beginning",
        )
    if resume and records is None and (output is None or written_through(output)):
        raise UsageError(
            "--resume has nothing to continue from: no results were kept",
            hint="name the folder of the stopped evaluation with --records, or its report with -o",
        )
    options_of_all = EvalOptions(
        fewshot=FewShotConfig(shots=max(0, shots), seed=shots_seed, shared=shared_shots),
        paper_shots=shots == PAPER_SHOTS,
        folders=folders,
        normalise=cast("Any", normalise),
        limit=limit if show is None else show,
        stride=stride,
        batch_size=batch_size,
        against=against,
        prompts=samples is not None,
    )
    if place == Path("hf") and not place.exists():
        others = [] if chosen is None else downloadable_tasks(chosen, shots=bool(shots))
        place = download_tasks(tasks, others, shots=bool(shots), events=ConsoleEvents())
    plan = None if chosen is None else plan_suite(chosen, place, options_of_all)
    if plan is not None:
        known = {one.name for one in tasks}
        tasks = [*tasks, *(one for one in plan.tasks if one.name not in known)]
        options_of_all = plan.options
    for one in tasks:
        check_task(one, place, options_of_all)
    if show is not None:
        items = show_items(find_model(folder, checkpoint), tasks, place, options_of_all)
        print_json("eval", {"items": items}) if as_json else eval_output.print_items(items)
        return
    if dry_run:
        source = find_model(folder, checkpoint)
        forecast = forecast_evaluation(source, tasks, text or [], place, options_of_all)
        if as_json:
            print_json("eval", forecast)
        else:
            eval_output.print_forecast(forecast, source)
        return
    events = ConsoleEvents() if is_main() else SILENT
    if (note := unused_launch()) is not None:
        events.warn(note)
    for file in text or []:
        _warn_of_structure(file, events)
    if not compare and records is None and output and tasks and not written_through(output):
        records = output.with_suffix(".records")
    if is_main():
        for path in (output, samples):
            if path is not None:
                hold(own_file(path, events=events))
                claim_file(path, force=force or resume)
        if records is not None:
            from gptcli.evals.records import claim_records

            hold(own_folder(records, events=events))
            claim_records(records, resume=resume, force=force, events=events)

    evaluations = [
        evaluate_folder(
            path,
            tasks,
            text or [],
            place,
            lambda loaded: replace(
                options_of_all,
                records=records,
                fingerprint=fingerprint_of(loaded, weights=records is not None),
            ),
            suite=plan,
            convention=cast("Convention", convention),
            checkpoint=checkpoint,
            device=device,
            precision=cast("PrecisionChoice", precision),
            events=events,
        )
        for path in (runs if compare else [folder])
    ]
    if not is_main():
        return
    evaluation = evaluations[0]
    if compare:
        eval_output.compare_evaluations(evaluations, output, as_json=as_json, markdown=markdown)
        return
    eval_output.write_evaluation(evaluation, output, samples, as_json=as_json, markdown=markdown)


def _warn_of_structure(path: Path, events: Events) -> None:
    """Warn if a text that is measured as it stands looks like a file of documents."""
    from gptcli.corpus.formats.recognize import disguise

    try:
        with open(path, "rb") as file:
            kind = disguise(file.read(HEAD))
    except OSError:
        return  # the reader says what is wrong
    if kind:
        events.warn(
            f"{path} looks like {kind}, which is measured as it stands, marks and names included: "
            "for its documents, gpt build-shards makes shards of it, and --data names them"
        )
