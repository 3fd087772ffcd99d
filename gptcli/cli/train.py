"""`gpt train`: train a model on shards, by the papers' recipes.

Editors complete and check TOML with a JSON schema of `--config`:

    gpt train --schema > examples/config.schema.json

A file that begins with `#:schema PATH` is checked against it by Taplo, and so in most editors.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli import toml_json
from gptcli.cli.command import Command, Mode, hold, releasing
from gptcli.cli.console import ConsoleEvents, print_json, print_made
from gptcli.cli.dashboard import Dashboard, print_forecast, print_plan
from gptcli.cli.options import (
    command_line,
    config_schema,
    declaring,
    flag,
    help_texts,
    model_path,
    quantity,
    read_option,
    shared,
    value,
)
from gptcli.cli.train_options import (
    CONSTANTS,
    MACHINE,
    MODEL,
    OPTIONS,
    OUTPUT,
    READERS,
    RECIPE,
    WATCH,
    given_values,
)
from gptcli.errors import RunError, UsageError
from gptcli.events import SILENT, Events
from gptcli.locks import own_folder
from gptcli.numbers import counted, duration
from gptcli.runtime import is_main, is_main_on_node, restarted, unused_launch
from gptcli.settings import NUMBERS, Resolved
from gptcli.trainer.config import check_keep_best, check_optimizer
from gptcli.trainer.resolve import ResolvedRun, resolve_run

if TYPE_CHECKING:
    from gptcli.shards.manifest import Manifest
    from gptcli.trainer.config import Run

OF_THE_LOSS = (  # options that a range test of the learning rate replaces or leaves out
    *("lr", "scale_lr", "min_lr_ratio", "warmup_tokens", "decay_tokens", "lr_schedule"),
    *("cooldown_tokens", "ramp_tokens", "ema", "spike", "max_skipped"),
)
MODES = (
    Mode("print_schema", "only prints the JSON schema of --config", ()),
    Mode("report", "only draws runs", ("runs", "out", "force", "json")),
    Mode(
        "export",
        "only writes a model for other programs",
        ("runs", "out", "checkpoint", "precision", "force", "json"),
    ),
    Mode(
        "finetune",
        "takes its settings from the task file",
        ("init_from", "checkpoint", "out", "seed", "layout", "resume", "force", "json"),
        hint="leave it out, or set it in the task file",
    ),
    Mode(
        "sweep",
        "only writes a Makefile of runs",
        (*OPTIONS, "config", "seeds", "force", "json"),
        hint="leave it out, or add it to the commands in the Makefile",
    ),
    Mode(
        "seeds",
        "trains several runs",
        (*OPTIONS, "config", "resume", "force", "strict", "json"),
        hint="leave out --seeds for one run",
    ),
    Mode(
        "lr_range",
        "only sweeps the learning rate",
        (
            *(
                name
                for name, row in OPTIONS.items()
                if row.panel != WATCH and name not in OF_THE_LOSS
            ),
            *("config", "resume", "force", "strict", "json", "dry_run"),
        ),
    ),
)


class TrainCommand(Command):
    """`gpt train`, whose modes train nothing or more than one run."""

    modes = MODES


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("train", cls=TrainCommand)(releasing(train))


@declaring(OPTIONS)
def train(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            parser=model_path,
            show_default=False,
            help="Run folders to draw, with --report; or the model to convert, with --export.",
        ),
    ] = None,
    finetune: Annotated[
        Path | None,
        value(
            "Fine-tune on the labelled examples of a task file, as GPT-1 does.",
            "TASK.toml",
            MODEL,
            False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        value(
            "TOML file with any of these options, and beta1, beta2, eps, clip, ramp_from; "
            "an earlier run.toml works too.",
            "FILE",
            OUTPUT,
            False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        flag("--resume", "Continue from the newest checkpoint, with that run's values.", OUTPUT),
    ] = False,
    force: Annotated[bool, flag("--force", "Empty the run folder and start over.", OUTPUT)] = False,
    json: Annotated[bool, shared("json", OUTPUT)] = False,
    seeds: Annotated[
        int | None,
        quantity(
            "seeds",
            "Train this many runs, with the seeds from --seed on, in OUT/seed-N, and report their"
            " mean loss; --resume continues them.",
            RECIPE,
            False,
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        value(
            "Train nothing: write OUT/Makefile, with a run for each value X, Y, ... of the option"
            " KEY, and OUT/commands.txt for job arrays; repeat it for all combinations of several"
            " options.",
            "KEY=X,Y",
            RECIPE,
            False,
        ),
    ] = None,
    lr_range: Annotated[
        bool,
        flag(
            "--lr-range",
            "Range test: raise the learning rate over the run's tokens until the "
            "loss grows, and suggest a value for --lr.",
            WATCH,
        ),
    ] = False,
    report: Annotated[
        bool,
        flag(
            "--report",
            "Train nothing: draw the report of one RUN, or compare several; with -o FILE.svg, "
            "draw the losses alone.",
            WATCH,
        ),
    ] = False,
    export: Annotated[
        bool,
        flag(
            "--export",
            "Train nothing: convert the model RUN to -o FILE.gguf for llama.cpp, or to -o FOLDER "
            "for transformers; --checkpoint and --precision (fp32, fp16 or bf16) choose what is "
            "written.",
            WATCH,
        ),
    ] = False,
    profile: Annotated[
        bool, flag("--profile", "Profile a few steps and show where their time goes.", WATCH)
    ] = False,
    dry_run: Annotated[
        bool,
        flag(
            "--dry-run",
            "Show configuration, steps, passes over the data, time, memory and disk, and stop.",
            MACHINE,
        ),
    ] = False,
    strict: Annotated[
        bool,
        flag(
            "--strict",
            "Treat warnings, such as too few steps, as errors: exit with code 2.",
            MACHINE,
        ),
    ] = False,
    print_schema: Annotated[
        bool,
        flag("--schema", "Print the JSON schema of --config, for editors, and stop.", MACHINE),
    ] = False,
    **options: Any,
) -> None:
    """Train a GPT on shards with the recipe of the paper that defined its size.

    report.html in the run folder shows the progress at any time. --resume continues a stopped run.
    model.safetensors is written last.

    Examples:

        gpt train --size 350M

        gpt train --size gpt2 --n-layer 4 --tokens 10M -o runs/small

        gpt train --report runs/350M runs/small -o compare.html

        gpt train --export runs/350M -o 350M.gguf --precision fp16
    """
    if print_schema:
        print(toml_json.dumps(schema(), indent=2))
        return
    given_options = {
        name: value for name, value in options.items() if value not in (None, False, [])
    }
    if report or export:
        from gptcli.cli.train_modes import draw_report, export_model

        if report:
            draw_report(runs or [], options["out"], force=force, as_json=json)
        else:
            export_model(runs or [], given_options, force=force, as_json=json)
        return
    if runs:
        raise _unexpected(str(runs[0]))
    if restarted():
        resume, force = True, False
    if finetune is not None:
        _finetune(finetune, given_options, resume=resume, force=force, as_json=json)
        return
    if sweep:
        from gptcli.cli.train_modes import write_sweep_files

        write_sweep_files(sweep, given_options, config, seeds, force=force, as_json=json)
        return
    if seeds is not None:
        from gptcli.cli.train_modes import train_seeds

        train_seeds(
            seeds, given_options, config, resume=resume, force=force, strict=strict, as_json=json
        )
        return
    if resume and not dry_run:
        fetch_missing(given_options, config)
    given = given_values(given_options, config, resume=resume)
    name, configured = given.values.get("init_from"), fetch_initial_model(given, dry_run=dry_run)
    if configured is not None:
        given.values["init_from"] = str(configured)
    if lr_range and resume:
        raise UsageError(
            "a range test cannot be resumed", where="--lr-range", hint="run it again, with --force"
        )

    from gptcli.shards.manifest import planned_manifest, read_manifest

    folder = Path(given.values.get("data", "shards"))
    if dry_run:
        manifest = planned_manifest(folder)
        plan = resolve_run(given, manifest.vocab_size if manifest else None, lr_range=lr_range)
        if configured is not None:
            plan.resolved.values["init_from"] = name
        # refuse what the run would
        _measure(plan.resolved.values)
        check_optimizer(plan.train)
        print_plan(plan, manifest, as_json=json, strict=strict)
        return
    manifest = read_manifest(folder)
    plan = resolve_run(given, manifest.vocab_size, lr_range=lr_range)
    events = events_of_process(Dashboard(given.values["out"]))
    run = prepare(plan, manifest, events, resume=resume, force=force, strict=strict)
    if run is None:
        events.info(
            f"{(out := given.values['out'])} is finished; --init-from {out} --continue trains it "
            "for more --tokens, in a new folder"
        )
    elif lr_range:
        _test_range(run, events, as_json=json)
    else:
        done = train_and_tell(replace(run, profile=profile), events)
        if is_main():
            print_made(run.out, done, as_json=json)


def fetch_initial_model(given: Resolved, *, dry_run: bool = False) -> Path | None:
    """Download the model of --init-from if it is a name on the Hub, unless the run has begun.

    With `dry_run`, say what that would take, and return the folder of its configuration.
    """
    from gptcli.model.hub import fetch_model
    from gptcli.model.source import begun_folder

    start = given.values.get("init_from")
    if start is not None and begun_folder(Path(given.values["out"])) is None:
        return fetch_model(start, ConsoleEvents(), dry_run=dry_run)
    return None


def fetch_missing(options: dict[str, Any], config: Path | None) -> None:
    """Bring a checkpoint to the run folder from --checkpoint-to, if there is none."""
    values = given_values(options, config, resume=False).values
    if (url := values.get("checkpoint_to")) is None:
        return
    from gptcli.trainer.remote import fetch_checkpoint

    out, events = Path(values["out"]), events_of_process(ConsoleEvents())
    with own_folder(out, read_only=True, events=events) if is_main() else nullcontext():
        fetch_checkpoint(url, out, events, fetches=is_main())


def events_of_process(main: Events) -> Events:
    """Return `main` on the main process, and what tells of the joining on the first of each host."""
    if is_main():
        return main
    return ConsoleEvents() if is_main_on_node() else SILENT


def prepare(
    plan: ResolvedRun,
    manifest: Manifest,
    events: Events,
    *,
    resume: bool,
    force: bool,
    strict: bool,
) -> Run | None:
    """Own the run folder until the command ends, and prepare the run; None if it is finished."""
    from gptcli.trainer.train import prepare_run

    if (note := unused_launch()) is not None:
        events.warn(note)
    if is_main():
        out = Path(plan.resolved.values["out"])
        hold(own_folder(out, read_only=resume, events=events))
    return prepare_run(
        plan,
        manifest,
        events,
        command=command_line(),
        resume=resume,
        force=force,
        measure=_measure(plan.resolved.values),
        announce=lambda run: print_forecast(plan, manifest, events, run, strict=strict),
    )


def train_and_tell(run: Run, events: Events) -> dict[str, Any]:
    """Train, and return the report. Raises Interrupted if the run was stopped."""
    from gptcli.trainer.train import interrupted, launch_run

    done = launch_run(run, events)
    if not is_main():
        return done
    if done["interrupted"]:
        raise interrupted(done, run.out)
    loss = (
        ""
        if (mean := done["smoothed_loss"]) is None
        else f", loss {mean:.4f} (mean of the last {counted(done['smoothed_steps'], 'step')})"
    )
    events.info(
        f"trained on {counted(done['tokens'], 'token')} in {duration(done['seconds'])}{loss}"
    )
    return done


def _finetune(
    task_file: Path,
    given: dict[str, Any],
    *,
    resume: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Fine-tune the model of --init-from and print the run folder."""
    if "init_from" not in given:
        raise UsageError(
            "--finetune needs a model to start from",
            hint="name a run or a GPT-2 folder with --init-from",
        )

    from gptcli.finetune.run import run_task

    events = events_of_process(ConsoleEvents())
    if (note := unused_launch()) is not None:
        events.warn(note)
    out = Path(given.get("out", Path("runs", task_file.stem)))
    numbers = {
        name: read_option(name, given[name], NUMBERS[name])
        for name in ("checkpoint", "seed")
        if name in given
    }
    report = run_task(
        task_file,
        given["init_from"],
        out,
        layout=given.get("layout"),
        resume=resume,
        force=force,
        events=events,
        **numbers,
    )
    if report is None:
        events.info(f"{out} is finished")
    elif is_main():
        events.info(
            f"{counted(report['steps'], 'step')} on {counted(report['examples'], 'example')}, "
            f"validation accuracy {report['val_accuracy']:.2%}"
        )
        print_made(out, {**report, "out": str(out)}, as_json=as_json)


def _unexpected(argument: str) -> UsageError:
    """Return the error for an argument without --report: a size, perhaps, or a run to continue."""
    from gptcli.model.config import size_names

    if size := next((name for name in size_names() if name.lower() == argument.lower()), None):
        return UsageError("a size is an option", where=argument, hint=f"gpt train --size {size}")
    if Path(argument).is_dir():
        hint = f"--report draws a run; --resume --out {argument} continues it"
        return UsageError("unexpected run folder", where=argument, hint=hint)
    path = Path(argument)
    if path.suffix in (".toml", ".yml", ".json", ".py") and not path.name.startswith("-"):
        return UsageError(
            "a configuration is an option, and TOML",
            where=argument,
            hint="gpt train --config FILE.toml; a line of it is lr = 3e-4",
        )
    if path.is_file():
        return UsageError(
            "text is turned into shards first",
            where=argument,
            hint=f"gpt build-shards {shlex.quote(argument)} --tokenizer gpt2 -o shards\n"
            "gpt train --data shards --size gpt2",
        )
    return UsageError(
        "unexpected argument",
        where=argument,
        hint="gpt train takes options alone: gpt train --help lists them",
    )


def _test_range(run: Run, events: Events, *, as_json: bool) -> None:
    """Run the learning-rate range test instead of the run, and print the suggested rate."""
    from gptcli.distributed.launch import launch
    from gptcli.model.source import LR_RANGE_REPORT
    from gptcli.trainer.checkpoint import newest_step
    from gptcli.trainer.lr_range import lr_range

    report = launch(run, events, lr_range, newest_step)
    if not is_main():
        return
    if report["suggested_lr"] is None:
        raise RunError(
            "the loss was not a finite number at any step",
            where=run.out,
            hint="check the data and the model it starts from, or try --precision fp32",
        )
    events.info(
        f"the smoothed loss is lowest at {report['lowest_loss_lr']:.2g}; "
        f"a tenth of it is suggested: see {run.out / LR_RANGE_REPORT}"
    )
    print_json("train", report) if as_json else print(f"{report['suggested_lr']:.2g}")


def _measure(values: dict[str, Any]) -> Callable[[Any], dict[str, float]] | None:
    """Return what scores the tasks of --eval-task at every checkpoint; None without tasks.

    Raises UsageError for a task that cannot be scored, and for a metric of --keep-best that is
    neither a loss nor a task's.
    """
    names: list[str] = []
    if "eval_task" in values:
        from gptcli.evals.task import find_tasks

        names = [task.name for task in find_tasks(values["eval_task"], field="eval_task")]
    check_keep_best(
        values.get("keep_best"),
        ["val_loss", *(f"{name}_accuracy" for name in names)],
        prefixes=("val_loss_", *(f"{name}_" for name in names)),
        beyond="{option:eval_task} adds the metrics of tasks",
    )
    if not names:
        return None
    from gptcli.evals.evaluate import MAX_CHECKPOINT_ITEMS, checkpoint_measure

    return checkpoint_measure(
        values["eval_task"],
        Path(values["eval_data"]) if "eval_data" in values else None,
        Path(values["data"]),
        items=values.get("eval_items", MAX_CHECKPOINT_ITEMS),
        events=ConsoleEvents(),
    )


def schema() -> dict[str, Any]:
    """Return the JSON schema of `--config`, with the help text of each option."""
    from gptcli.model.config import size_names

    schema = config_schema("gpt train --config", READERS, CONSTANTS | help_texts(train))
    schema["properties"]["size"]["examples"] = size_names()
    return schema
