"""`gpt train`: train a model on shards, by the papers' recipes.

Editors complete and check TOML with a JSON schema of `--config`, which this module prints:

    python -m gptcli.cli.train > examples/config.schema.json

A file that begins with `#:schema PATH` is checked against it by Taplo, and so in most editors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli import strict_json
from gptcli.cli import options as shared_options
from gptcli.cli.command import Command, hold, releasing
from gptcli.cli.console import ConsoleEvents, as_options, print_file, print_json
from gptcli.cli.dashboard import Dashboard
from gptcli.cli.options import (
    Reader,
    command_line,
    config_schema,
    flag,
    help_texts,
    option,
    read_config,
    read_option,
    resolved_toml,
    value,
)
from gptcli.cost.hardware import PRECISIONS
from gptcli.cost.memory import RECOMPUTE, SCHEDULES
from gptcli.errors import RunError, UsageError
from gptcli.events import SILENT, Events
from gptcli.files import atomic_write, claim_file
from gptcli.locks import own_folder
from gptcli.model.config import find_size
from gptcli.model.source import RUN_TOML
from gptcli.numbers import duration, in_bytes
from gptcli.runtime import is_main, restarted, unused_launch
from gptcli.settings import NUMBERS, AutoOr, OneOf, Resolved, boolean, name_list, nonempty_text
from gptcli.trainer.resolve import SHAPE, ResolvedRun, paper_of, resolve_run

if TYPE_CHECKING:
    from gptcli.shards.manifest import Manifest
    from gptcli.trainer.config import Run
    from gptcli.trainer.forecast import Forecast
    from gptcli.trainer.preflight import StageRole

MODEL, RECIPE, OUTPUT, WATCH, MACHINE = (
    "Model",
    "Recipe",
    "Data and output",
    "Checkpoints and evaluation",
    "Machine",
)


def _read_size(value: Any) -> str:
    find_size(nonempty_text(value))
    return str(value)


NUMERIC = (
    "band", "mup", "checkpoint", "tokens", "warmup_tokens", "decay_tokens", "ramp_tokens",
    "ramp_from", "seed", "micro_batch", "checkpoint_every", "eval_every", "eval_tokens", "keep",
    "max_skipped", "samples", "eval_items", "dropout", "lr", "min_lr_ratio", "weight_decay",
    "beta1", "beta2", "eps", "clip", "spike",
)  # fmt: skip
READERS: dict[str, Reader] = {
    "size": _read_size,
    **dict.fromkeys(
        ("attention", "data", "out", "layout", "init_from", "track", "eval_data"), nonempty_text
    ),
    **{name: NUMBERS[name] for name in (*SHAPE, *NUMERIC)},
    "eval_task": name_list,
    "batch_tokens": AutoOr(NUMBERS["batch_tokens"]),
    **dict.fromkeys(("follow_noise", "document_mask", "scale_lr"), boolean),
    "compile": OneOf(("auto", "on", "off")),
    "precision": OneOf(("auto", *PRECISIONS)),
    "recompute": OneOf(("auto", *RECOMPUTE)),
    "pipeline_schedule": OneOf(tuple(SCHEDULES)),
}
"""Reader of every key of a configuration file: the options, and constants of the recipe."""
CONSTANTS = {  # keys without an option, with their descriptions
    "beta1": "Decay rate of Adam's mean of gradients.",
    "beta2": "Decay rate of Adam's mean of squared gradients.",
    "eps": "Adam's epsilon, added to the denominator of an update.",
    "clip": "Largest global norm of the gradient; a larger one is scaled down to it.",
    "ramp_from": "Tokens in the first step's batch.",
    "follow_noise": "Let the batch follow the gradient noise scale.",
}
FINETUNE_OPTIONS = ("init_from", "checkpoint", "out", "seed", "layout", "resume", "force", "json")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("train", cls=Command)(releasing(train))


def _sizes(incomplete: str) -> list[str]:
    from gptcli.model.config import size_names

    return [name for name in size_names() if name.lower().startswith(incomplete.lower())]


Value = str | None


def train(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN", show_default=False, help="Run folders to draw, with --report."
        ),
    ] = None,
    size: Annotated[
        Value,
        value(
            "Model size of the papers, which sets architecture and training recipe.",
            "NAME",
            MODEL,
            False,
            complete=_sizes,
        ),
    ] = None,
    n_layer: Annotated[Value, value("Number of layers.", "N", MODEL, "size's")] = None,
    n_head: Annotated[Value, value("Number of attention heads.", "N", MODEL, "size's")] = None,
    d_model: Annotated[
        Value, value("Width of the model: the size of an embedding.", "N", MODEL, "size's")
    ] = None,
    n_ctx: Annotated[
        Value, value("Length of the context, in tokens.", "N", MODEL, "size's")
    ] = None,
    attention: Annotated[
        Value,
        value(
            "Attention of the layers: dense, banded (every second layer), or a pattern such as "
            "dense,dense,banded.",
            "KIND",
            MODEL,
            "size's",
        ),
    ] = None,
    band: Annotated[
        Value, value("Tokens that a banded layer attends to.", "N", MODEL, "256")
    ] = None,
    dropout: Annotated[
        Value,
        value(
            "Dropout probability of embeddings, attention and residual branches.", "P", MODEL, "0"
        ),
    ] = None,
    init_from: Annotated[
        Value,
        value(
            "Start from the weights of this run or GPT-2 folder, which sets the architecture.",
            "FOLDER",
            MODEL,
            "random weights",
        ),
    ] = None,
    checkpoint: Annotated[
        Value,
        value(
            "With --init-from: start from its checkpoint of this step.",
            "N",
            MODEL,
            "the finished model, or the newest",
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
    tokens: Annotated[
        Value,
        value(
            "Length of the run, in tokens; batch and schedule scale with it.",
            "N",
            RECIPE,
            "paper's, or 20 a parameter",
        ),
    ] = None,
    batch_tokens: Annotated[
        Value,
        value(
            "Batch size, in tokens per step; auto follows the gradient noise scale.",
            "N",
            RECIPE,
            "paper's, less in a shorter run",
        ),
    ] = None,
    lr: Annotated[
        Value,
        value(
            "Peak learning rate, reached at the end of the warm-up.",
            "X",
            RECIPE,
            "paper's, more in a smaller model",
        ),
    ] = None,
    scale_lr: Annotated[
        bool,
        flag(
            "--scale-lr",
            "Set --lr from the model size by interpolating GPT-3's table.",
            RECIPE,
        ),
    ] = False,
    mup: Annotated[
        Value,
        value(
            "Maximal-update parameterisation, with the --d-model that --lr was tuned at.",
            "WIDTH",
            RECIPE,
            "off",
        ),
    ] = None,
    min_lr_ratio: Annotated[
        Value,
        value("Learning rate at the end of the decay, as a share of --lr.", "X", RECIPE, "paper's"),
    ] = None,
    warmup_tokens: Annotated[
        Value,
        value(
            "Length of the learning rate's linear warm-up, in tokens.",
            "N",
            RECIPE,
            "paper's, more in a shorter run",
        ),
    ] = None,
    decay_tokens: Annotated[
        Value,
        value("Tokens from the start to the end of the cosine decay.", "N", RECIPE, "paper's"),
    ] = None,
    ramp_tokens: Annotated[
        Value,
        value(
            "Tokens over which the batch grows to its full size; 0 for no ramp.",
            "N",
            RECIPE,
            "paper's",
        ),
    ] = None,
    weight_decay: Annotated[
        Value, value("Weight decay of matrices and embeddings.", "X", RECIPE, "paper's")
    ] = None,
    spike: Annotated[
        Value,
        value(
            "Skip an update if its loss is this many standard deviations too high; 0 skips none.",
            "SIGMAS",
            RECIPE,
            "6",
        ),
    ] = None,
    max_skipped: Annotated[
        Value, value("Stop the run after this many skipped updates in a row.", "N", RECIPE, "10")
    ] = None,
    document_mask: Annotated[
        bool, flag("--document-mask", "Keep attention within each document.", RECIPE)
    ] = False,
    seed: Annotated[
        Value, value("Random seed for initialization, data order and dropout.", "N", RECIPE, "0")
    ] = None,
    data: Annotated[
        Value,
        value(
            "Shards from gpt build-shards, or token files of llm.c, Megatron or nanoGPT.",
            "FOLDER",
            OUTPUT,
            "shards",
        ),
    ] = None,
    out: Annotated[
        Value,
        shared_options.out(
            "Run folder to write; model.safetensors is written last.", "FOLDER", OUTPUT, "runs/SIZE"
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
    json: Annotated[
        bool, flag("--json", "Print a report as one JSON object on stdout.", OUTPUT)
    ] = False,
    checkpoint_every: Annotated[
        Value, value("Steps between checkpoints.", "N", WATCH, "10 a run, at least every 1,000")
    ] = None,
    keep: Annotated[
        Value, value("Number of checkpoints to keep, the newest.", "N", WATCH, "2")
    ] = None,
    eval_every: Annotated[
        Value,
        value(
            "Steps between measurements of the validation loss.",
            "N",
            WATCH,
            "20 a run, at least every 500",
        ),
    ] = None,
    eval_tokens: Annotated[
        Value,
        value(
            "Validation tokens read at each measurement.",
            "N",
            WATCH,
            "a 200th of --tokens, at most 1M",
        ),
    ] = None,
    eval_task: Annotated[
        list[str] | None,
        value(
            "Task of gpt eval to score at every checkpoint; several with commas.",
            "NAME",
            WATCH,
            "none",
        ),
    ] = None,
    eval_data: Annotated[
        Value, value("Folder with the data of each --eval-task.", "FOLDER", WATCH, "none")
    ] = None,
    eval_items: Annotated[
        Value, value("Items of each --eval-task to score.", "N", WATCH, "1,000")
    ] = None,
    samples: Annotated[
        Value, value("Texts to generate at every checkpoint.", "N", WATCH, "3, in a short run none")
    ] = None,
    track: Annotated[
        Value, value("Also log metrics to this tracker: tensorboard.", "NAME", WATCH, "none")
    ] = None,
    lr_range: Annotated[
        bool,
        flag("--lr-range", "Only sweep the learning rate over a short run and suggest one.", WATCH),
    ] = False,
    report: Annotated[
        bool,
        flag(
            "--report",
            "Only draw the report of one RUN, or of several compared; with -o FILE.svg, "
            "the losses alone.",
            WATCH,
        ),
    ] = False,
    profile: Annotated[
        bool, flag("--profile", "Profile a few steps and show where their time goes.", WATCH)
    ] = False,
    layout: Annotated[
        Value,
        value(
            "Processes per axis: data parallel, sharded, tensor and pipeline parallel, "
            "for example dp=2,shard=4,tp=2,pp=2.",
            "AXES",
            MACHINE,
            "the fastest that fits",
        ),
    ] = None,
    pipeline_schedule: Annotated[
        Value,
        value(
            "Order of micro-batches in a pipeline: 1f1b, gpipe, interleaved1f1b or loopedbfs.",
            "NAME",
            MACHINE,
            "1f1b",
        ),
    ] = None,
    recompute: Annotated[
        Value,
        value(
            "Activations to recompute in the backward pass: none, selective or full.",
            "WHAT",
            MACHINE,
            "what fits",
        ),
    ] = None,
    micro_batch: Annotated[
        Value, value("Sequences per process in one forward pass.", "N", MACHINE, "what fits")
    ] = None,
    precision: Annotated[
        Value,
        value(
            "Precision of matrix products: bf16, fp32, fp16, fp8 or auto.", "KIND", MACHINE, "auto"
        ),
    ] = None,
    compile: Annotated[
        Value, value("Use torch.compile: on, off, or auto if it pays off.", "WHEN", MACHINE, "auto")
    ] = None,
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
) -> None:
    """Train a GPT on shards with the recipe of the paper that defined its size.

    report.html in the run folder shows the progress at any time. --resume continues a stopped run.
    model.safetensors is written last.

    Examples:

        gpt train --size 350M

        gpt train --size gpt2 --n-layer 4 --tokens 10M -o runs/small

        gpt train --report runs/350M runs/small -o compare.html
    """
    options = dict(locals()) | {"eval_task": eval_task or None}
    given_options = {
        name: value
        for name, value in options.items()
        if name in READERS and value not in (None, False)
    }
    if report:
        if conflicting := [name for name in given_options if name != "out"]:
            raise UsageError(
                "--report only draws, and trains nothing",
                where=option(conflicting[0]),
                hint="leave one of the two out",
            )
        draw_report(runs or [], out, force=force, as_json=json)
        return
    if runs:
        raise _unexpected(str(runs[0]))
    if restarted():
        resume, force = True, False
    if finetune is not None:
        unsupported = [
            name
            for name, value in options.items()
            if name not in ("finetune", *FINETUNE_OPTIONS) and value not in (None, False)
        ]
        _finetune(finetune, given_options, unsupported, resume=resume, force=force, as_json=json)
        return
    given = given_values(given_options, config, resume=resume)

    from gptcli.shards.manifest import MANIFEST, read_manifest

    folder = Path(given.values.get("data", "shards"))
    if lr_range and resume:
        raise UsageError(
            "a range test cannot be resumed", where="--lr-range", hint="run it again, with --force"
        )
    manifest = None if dry_run and not (folder / MANIFEST).is_file() else read_manifest(folder)
    plan = resolve_run(given, manifest.vocab_size if manifest else None, lr_range=lr_range)
    if dry_run:
        _print_plan(plan, manifest, as_json=json, strict=strict)
        return
    assert manifest is not None

    from gptcli.trainer.train import interrupted, launch_run, prepare_run

    events = Dashboard(given.values["out"]) if is_main() else SILENT
    if (note := unused_launch()) is not None:
        events.warn(note)
    run_folder = Path(plan.resolved.values["out"])
    if is_main():
        hold(own_folder(run_folder, read_only=resume, events=events))
    run = prepare_run(
        plan,
        manifest,
        events,
        command=command_line(),
        resume=resume,
        force=force,
        measure=_measure(plan.resolved.values),
        announce=lambda run: _print_forecast(plan, manifest, events, run, strict=strict),
    )
    if run is None:
        events.info(f"{given.values['out']} is finished")
        return
    if lr_range:
        _test_range(run, events, as_json=json)
        return
    done = launch_run(replace(run, profile=profile), events)
    if is_main() and done["interrupted"]:
        raise interrupted(done, run.out)
    if is_main():
        loss = (
            ""
            if (mean := done["smoothed_loss"]) is None
            else f", loss {mean:.4f} (mean of the last {done['smoothed_steps']} steps)"
        )
        events.info(f"trained on {done['tokens']:,} tokens in {duration(done['seconds'])}{loss}")
        print_json("train", done) if json else print(run.out)


def given_values(options: Mapping[str, Any], config: Path | None, *, resume: bool) -> Resolved:
    """Return the values given by option and file, over the run.toml of the run to resume.

    `options` are as typed, None if not given. The result always contains `out`. Raises UsageError
    or InputError for values that cannot be read or contradict each other.
    """
    given = Resolved()
    if config is not None:
        given.put(read_config(config, READERS, "gpt train"), str(config))
    for name, text in options.items():
        value = None if text is None else read_option(name, text, READERS[name])
        given.put({name: value}, "option")
    if given.values.get("scale_lr") and (
        other := next((name for name in ("lr", "mup") if name in given.values), None)
    ):
        why = (
            "both set the learning rate"
            if other == "lr"
            else "muP keeps the learning rate of another width"
        )
        raise UsageError(
            why,
            where=f"{{option:scale_lr}} and {{option:{other}}}",
            field="scale_lr",
            code="two_learning_rates",
            hint="leave one of the two out",
        )
    if given.values.get("batch_tokens") == "auto":
        del given.values["batch_tokens"]
        given.put({"follow_noise": True}, given.origin.pop("batch_tokens"))
    if "out" not in given.values:
        given.put({"out": f"runs/{given.values.get('size', 'gpt')}"}, "default")
    earlier = Path(given.values["out"], RUN_TOML)
    if not (resume and earlier.is_file()):
        return given
    before = Resolved()
    before.put(read_config(earlier, READERS, "gpt train"), RUN_TOML)
    if "size" in given.values and paper_of(given) != paper_of(before):
        was = before.values.get("size", "of no named size")
        raise UsageError(
            f"the run here is {was}, not {given.values['size']}",
            where=earlier,
            field="size",
            code="another_run",
            hint="name another {option:out}",
        )
    for name, value in given.values.items():
        before.put({name: value}, given.origin[name])
    return before


def draw_report(runs: list[Path], out: str | None, *, force: bool, as_json: bool) -> None:
    """Write the page of one run, or of several compared, and print its path; FILE.svg is a plot.

    The report.html of a single run is replaced, any other file only with `force`. Raises
    UsageError, or InputError if one of `runs` is no run folder.
    """
    from gptcli.model.source import REPORT
    from gptcli.runs.plots import loss_plot
    from gptcli.runs.record import read_record
    from gptcli.runs.report import comparison_page, run_page

    if not runs:
        raise UsageError(
            "RUN is missing", hint="name one or several run folders: gpt train --report runs/350M"
        )
    if out is None and len(runs) > 1:
        raise UsageError(
            "the page that compares several runs needs a name",
            where="--out",
            hint="for example -o compare.html",
        )
    path = runs[0] / REPORT if out is None else Path(out)
    records = [read_record(run) for run in dict.fromkeys(runs)]
    if path.suffix == ".svg":
        text = loss_plot(records)
    else:
        text = run_page(records[0]) if len(records) == 1 else comparison_page(records, path.parent)
    if out == "-":
        print_file(text)
        return
    if out is not None:
        claim_file(path, force=force)
    with atomic_write(path, "w") as file:
        file.write(text)
    print_json(
        "train", {"report": str(path), "runs": [str(run) for run in runs]}
    ) if as_json else print(path)


def _finetune(
    task_file: Path,
    given: dict[str, Any],
    unsupported: list[str],
    *,
    resume: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Fine-tune the model of --init-from and print the run folder."""
    if unsupported:
        raise UsageError(
            "is not supported with --finetune",
            field=unsupported[0],
            hint=f"leave it out, or set it in {task_file}",
        )
    if "init_from" not in given:
        raise UsageError(
            "--finetune needs a model to start from",
            hint="name a run or a GPT-2 folder with --init-from",
        )

    from gptcli.finetune.run import run_task

    events = ConsoleEvents() if is_main() else SILENT
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
            f"{report['steps']:,} steps on {report['examples']:,} examples, "
            f"validation accuracy {report['val_accuracy']:.2%}"
        )
        print_json("train", {**report, "out": str(out)}) if as_json else print(out)


def _unexpected(argument: str) -> UsageError:
    """Return the error for an argument without --report: a size, perhaps, or a run to continue."""
    from gptcli.model.config import size_names

    if size := next((name for name in size_names() if name.lower() == argument.lower()), None):
        return UsageError("a size is an option", where=argument, hint=f"gpt train --size {size}")
    if Path(argument).is_dir():
        hint = f"--report draws a run; --resume --out {argument} continues it"
        return UsageError("unexpected run folder", where=argument, hint=hint)
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
        raise RunError("not one step was finite", where=run.out)
    events.info(
        f"the smoothed loss is lowest at {report['lowest_loss_lr']:.2g}; "
        f"a tenth of it is suggested: see {run.out / LR_RANGE_REPORT}"
    )
    print_json("train", report) if as_json else print(f"{report['suggested_lr']:.2g}")


def _measure(values: dict[str, Any]) -> Callable[[Any], dict[str, float]] | None:
    """Return what scores the tasks of --eval-task at every checkpoint; None without tasks."""
    if "eval_task" not in values:
        return None
    from gptcli.evals.evaluate import MAX_CHECKPOINT_ITEMS, checkpoint_measure

    return checkpoint_measure(
        values["eval_task"],
        Path(values["eval_data"]) if "eval_data" in values else None,
        Path(values["data"]),
        items=values.get("eval_items", MAX_CHECKPOINT_ITEMS),
        events=ConsoleEvents(),
    )


def _forecast_plan(plan: ResolvedRun, manifest: Manifest | None, *, done: int = 0) -> Forecast:
    """Forecast a resolved run on this machine that has already read `done` tokens."""
    from gptcli.trainer.forecast import forecast, this_machine

    machine = this_machine(plan.model, plan.train, Path(plan.resolved.values["out"]))
    return forecast(plan.model, plan.train, manifest, machine, done=done)


def _print_forecast(
    plan: ResolvedRun, manifest: Manifest, events: Events, run: Run, *, strict: bool
) -> None:
    """Report the forecast of the run or its rest. Raises UsageError for warnings if `strict`."""
    from gptcli.trainer.forecast import forecast_facts
    from gptcli.trainer.preflight import resumed_state

    state = resumed_state(run.out, run.identity()) if run.resume else None
    forecast = _forecast_plan(
        plan, manifest, done=0 if state is None else state.position.sequences * plan.model.n_ctx
    )
    for name, fact in forecast_facts(forecast, at_least=plan.train.follow_noise).items():
        events.info(f"{name:<7}{fact}")
    for caution in forecast.warnings:
        events.warn(caution.text)
    if strict:
        _refuse_warnings(forecast)


def _print_plan(
    plan: ResolvedRun, manifest: Manifest | None, *, as_json: bool, strict: bool
) -> None:
    """Print configuration, work and forecast. Raises UsageError if `strict` and it has warnings."""
    from gptcli.cost.flops import flops_per_token
    from gptcli.trainer.forecast import forecast_facts

    flops = flops_per_token(plan.model, "6N") * plan.train.tokens
    roles = _dry_run_layout(plan)
    forecast = _forecast_plan(plan, manifest)
    events = ConsoleEvents()
    for caution in forecast.warnings:
        events.warn(caution.text)
    if as_json:
        print_json(
            "train",
            {
                "config": plan.resolved.values,
                "origin": plan.resolved.origin,
                "parameters": plan.model.parameters,
                "flops": flops,
                **_forecast_json(forecast),
                "roles": [asdict(role) for role in roles],
            },
        )
    else:
        _print_resolved(
            plan,
            roles,
            {
                "work": f"{flops:.3g} FLOP (6N)",
                **forecast_facts(forecast, at_least=plan.train.follow_noise),
            },
        )
    if strict:
        _refuse_warnings(forecast)


def _forecast_json(forecast: Forecast) -> dict[str, Any]:
    """Return the forecast's part of `gpt train --dry-run --json`."""
    keys = asdict(forecast)
    keys["warnings"] = [
        {name: as_options(text) for name, text in caution.items()} for caution in keys["warnings"]
    ]
    return keys


def _refuse_warnings(forecast: Forecast) -> None:
    """Raise UsageError if the forecast has warnings."""
    if forecast.warnings:
        codes = ", ".join(caution.code for caution in forecast.warnings)
        raise UsageError(
            f"the run has warnings: {codes}",
            where="--strict",
            hint="change what they name, or leave out --strict",
        )


def _print_resolved(plan: ResolvedRun, roles: list[StageRole], facts: dict[str, str]) -> None:
    """Print the configuration as in run.toml, with `facts` and the layout's stages at the top."""
    facts = {"parameters": f"{plan.model.parameters:,}", **facts}
    for role in roles:
        low, high = (f"{held:,}" for held in role.parameters)
        moved = [
            f"{in_bytes(n_bytes)} over {axis}"
            for axis, n_bytes in asdict(role.traffic).items()
            if n_bytes
        ]
        facts[f"stage {role.stage}"] = (
            f"{role.processes:,} processes, each with "
            f"{low if low == high else f'{low} to {high}'} parameters and "
            f"{in_bytes(role.optimizer_bytes[1])} of optimizer state; "
            f"a step moves {', '.join(moved)}"
        )
    print(resolved_toml(plan.resolved, **facts), end="")


def _dry_run_layout(plan: ResolvedRun) -> list[StageRole]:
    """Return what each kind of process holds and sends, from a dry run; nothing for one process."""
    from gptcli.cost.layout import parse_layout
    from gptcli.trainer.auto import check_division
    from gptcli.trainer.config import Run
    from gptcli.trainer.optimizer import check_precision
    from gptcli.trainer.preflight import dry_run

    layout, sequences = parse_layout(plan.train.layout), plan.train.batch_tokens // plan.model.n_ctx
    if layout.processes == 1:
        return []
    check_division(plan.model, layout, plan.train.pipeline_schedule, sequences)
    check_precision(plan.train.precision, layout.tp, here=False)
    run = Run(
        name=plan.name, out=Path(), data=Path(), model=plan.model, train=plan.train,
        data_sha256="", tokenizer_sha256="", eot_id=0,
    )  # fmt: skip
    return dry_run(run, sequences, ConsoleEvents())


def schema() -> dict[str, Any]:
    """Return the JSON schema of `--config`, with the help text of each option."""
    from gptcli.model.config import size_names

    schema = config_schema("gpt train --config", READERS, CONSTANTS | help_texts(train))
    schema["properties"]["size"]["examples"] = size_names()
    return schema


if __name__ == "__main__":
    print(strict_json.dumps(schema(), indent=2))
