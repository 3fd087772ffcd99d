"""`gpt train`: train a model on shards, by the papers' recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli.command import Command, hold, releasing
from gptcli.cli.config import command_line, option, resolved_toml
from gptcli.cli.console import ConsoleEvents, print_json
from gptcli.cli.dashboard import Dashboard
from gptcli.cli.train_plan import NAMES, given_values
from gptcli.errors import RunError, UsageError
from gptcli.events import SILENT, Events
from gptcli.locks import own_folder
from gptcli.numbers import duration, in_bytes
from gptcli.runtime import is_main, restarted, unused_launch
from gptcli.trainer.resolve import ResolvedRun, resolve_run

if TYPE_CHECKING:
    from gptcli.shards.manifest import Manifest
    from gptcli.trainer.config import Run
    from gptcli.trainer.dry_run import StageRole

MODEL, RECIPE, OUTPUT, WATCH, MACHINE = (
    "Model",
    "Recipe",
    "Data and output",
    "Checkpoints and evaluation",
    "Machine",
)


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("train", cls=Command)(releasing(train))


def _sizes(incomplete: str) -> list[str]:
    from gptcli.model.config import size_names

    return [name for name in size_names() if name.lower().startswith(incomplete.lower())]


def _option(panel: str, metavar: str, default: str, text: str) -> Any:
    """Return an option whose default may come from --config, the paper or the machine.

    `default` describes it in the help.
    """
    return typer.Option(metavar=metavar, show_default=default, rich_help_panel=panel, help=text)


def _flag(name: str, panel: str, text: str) -> Any:
    return typer.Option(name, rich_help_panel=panel, help=text)


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
        typer.Option(
            metavar="NAME",
            show_default=False,
            rich_help_panel=MODEL,
            help="Model size of the papers, which sets architecture and training recipe.",
            autocompletion=_sizes,
        ),
    ] = None,
    n_layer: Annotated[Value, _option(MODEL, "N", "size's", "Number of layers.")] = None,
    n_head: Annotated[Value, _option(MODEL, "N", "size's", "Number of attention heads.")] = None,
    d_model: Annotated[
        Value, _option(MODEL, "N", "size's", "Width of the model: the size of an embedding.")
    ] = None,
    n_ctx: Annotated[
        Value, _option(MODEL, "N", "size's", "Length of the context, in tokens.")
    ] = None,
    attention: Annotated[
        Value,
        _option(
            MODEL,
            "KIND",
            "size's",
            "Attention of the layers: dense, banded (every second layer), or a pattern such as "
            "dense,dense,banded.",
        ),
    ] = None,
    band: Annotated[
        Value, _option(MODEL, "N", "256", "Tokens that a banded layer attends to.")
    ] = None,
    dropout: Annotated[
        Value,
        _option(
            MODEL, "P", "0", "Dropout probability of embeddings, attention and residual branches."
        ),
    ] = None,
    init_from: Annotated[
        Value,
        _option(
            MODEL,
            "FOLDER",
            "random weights",
            "Start from the weights of this run or GPT-2 folder, which sets the architecture.",
        ),
    ] = None,
    checkpoint: Annotated[
        Value,
        _option(
            MODEL,
            "N",
            "the finished model, or the newest",
            "With --init-from: start from its checkpoint of this step.",
        ),
    ] = None,
    finetune: Annotated[
        Path | None,
        typer.Option(
            metavar="TASK.toml",
            show_default=False,
            rich_help_panel=MODEL,
            help="Fine-tune on the labelled examples of a task file, as GPT-1 does.",
        ),
    ] = None,
    tokens: Annotated[
        Value,
        _option(
            RECIPE,
            "N",
            "paper's, or 20 a parameter",
            "Length of the run, in tokens; batch and schedule scale with it.",
        ),
    ] = None,
    batch_tokens: Annotated[
        Value,
        _option(
            RECIPE,
            "N",
            "paper's, less in a shorter run",
            "Batch size, in tokens per step; auto follows the gradient noise scale.",
        ),
    ] = None,
    lr: Annotated[
        Value,
        _option(
            RECIPE,
            "X",
            "paper's, more in a smaller model",
            "Peak learning rate, reached at the end of the warm-up.",
        ),
    ] = None,
    scale_lr: Annotated[
        bool,
        _flag(
            "--scale-lr",
            RECIPE,
            "Set --lr from the model size by interpolating GPT-3's table.",
        ),
    ] = False,
    mup: Annotated[
        Value,
        _option(
            RECIPE,
            "WIDTH",
            "off",
            "Maximal-update parameterisation, with the --d-model that --lr was tuned at.",
        ),
    ] = None,
    min_lr_ratio: Annotated[
        Value,
        _option(
            RECIPE, "X", "paper's", "Learning rate at the end of the decay, as a share of --lr."
        ),
    ] = None,
    warmup_tokens: Annotated[
        Value,
        _option(
            RECIPE,
            "N",
            "paper's, more in a shorter run",
            "Length of the learning rate's linear warm-up, in tokens.",
        ),
    ] = None,
    decay_tokens: Annotated[
        Value,
        _option(RECIPE, "N", "paper's", "Tokens from the start to the end of the cosine decay."),
    ] = None,
    ramp_tokens: Annotated[
        Value,
        _option(
            RECIPE,
            "N",
            "paper's",
            "Tokens over which the batch grows to its full size; 0 for no ramp.",
        ),
    ] = None,
    weight_decay: Annotated[
        Value, _option(RECIPE, "X", "paper's", "Weight decay of matrices and embeddings.")
    ] = None,
    spike: Annotated[
        Value,
        _option(
            RECIPE,
            "SIGMAS",
            "6",
            "Skip an update if its loss is this many standard deviations too high; 0 skips none.",
        ),
    ] = None,
    max_skipped: Annotated[
        Value, _option(RECIPE, "N", "10", "Stop the run after this many skipped updates in a row.")
    ] = None,
    document_mask: Annotated[
        bool, _flag("--document-mask", RECIPE, "Keep attention within each document.")
    ] = False,
    seed: Annotated[
        Value, _option(RECIPE, "N", "0", "Random seed for initialization, data order and dropout.")
    ] = None,
    data: Annotated[
        Value,
        _option(
            OUTPUT,
            "FOLDER",
            "shards",
            "Shards from gpt build-shards, or token files of llm.c, Megatron or nanoGPT.",
        ),
    ] = None,
    out: Annotated[
        Value,
        typer.Option(
            "--out",
            "--output",
            "-o",
            metavar="FOLDER",
            show_default="runs/SIZE",
            rich_help_panel=OUTPUT,
            help="Run folder to write; model.safetensors is written last.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            rich_help_panel=OUTPUT,
            help="TOML file with any of these options, and beta1, beta2, eps, clip, ramp_from; "
            "an earlier run.toml works too.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        _flag("--resume", OUTPUT, "Continue from the newest checkpoint, with that run's values."),
    ] = False,
    force: Annotated[
        bool, _flag("--force", OUTPUT, "Empty the run folder and start over.")
    ] = False,
    json: Annotated[
        bool, _flag("--json", OUTPUT, "Print a report as one JSON object on stdout.")
    ] = False,
    checkpoint_every: Annotated[
        Value, _option(WATCH, "N", "10 a run, at least every 1,000", "Steps between checkpoints.")
    ] = None,
    keep: Annotated[
        Value, _option(WATCH, "N", "2", "Number of checkpoints to keep, the newest.")
    ] = None,
    eval_every: Annotated[
        Value,
        _option(
            WATCH,
            "N",
            "20 a run, at least every 500",
            "Steps between measurements of the validation loss.",
        ),
    ] = None,
    eval_tokens: Annotated[
        Value,
        _option(
            WATCH,
            "N",
            "a 200th of --tokens, at most 1M",
            "Validation tokens read at each measurement.",
        ),
    ] = None,
    eval_task: Annotated[
        list[str] | None,
        _option(
            WATCH,
            "NAME",
            "none",
            "Task of gpt eval to score at every checkpoint; several with commas.",
        ),
    ] = None,
    eval_data: Annotated[
        Value, _option(WATCH, "FOLDER", "none", "Folder with the data of each --eval-task.")
    ] = None,
    eval_items: Annotated[
        Value, _option(WATCH, "N", "1,000", "Items of each --eval-task to score.")
    ] = None,
    samples: Annotated[
        Value,
        _option(WATCH, "N", "3, in a short run none", "Texts to generate at every checkpoint."),
    ] = None,
    track: Annotated[
        Value, _option(WATCH, "NAME", "none", "Also log metrics to this tracker: tensorboard.")
    ] = None,
    lr_range: Annotated[
        bool,
        _flag(
            "--lr-range", WATCH, "Only sweep the learning rate over a short run and suggest one."
        ),
    ] = False,
    report: Annotated[
        bool,
        _flag(
            "--report",
            WATCH,
            "Only draw the report of one RUN, or of several compared; with -o FILE.svg, "
            "the losses alone.",
        ),
    ] = False,
    profile: Annotated[
        bool, _flag("--profile", WATCH, "Profile a few steps and show where their time goes.")
    ] = False,
    layout: Annotated[
        Value,
        _option(
            MACHINE,
            "AXES",
            "the fastest that fits",
            "Processes per axis: data parallel, sharded, tensor and pipeline parallel, "
            "for example dp=2,shard=4,tp=2,pp=2.",
        ),
    ] = None,
    pipeline_schedule: Annotated[
        Value,
        _option(
            MACHINE,
            "NAME",
            "1f1b",
            "Order of micro-batches in a pipeline: 1f1b, gpipe, interleaved1f1b or loopedbfs.",
        ),
    ] = None,
    recompute: Annotated[
        Value,
        _option(
            MACHINE,
            "WHAT",
            "what fits",
            "Activations to recompute in the backward pass: none, selective or full.",
        ),
    ] = None,
    micro_batch: Annotated[
        Value, _option(MACHINE, "N", "what fits", "Sequences per process in one forward pass.")
    ] = None,
    precision: Annotated[
        Value,
        _option(
            MACHINE, "KIND", "auto", "Precision of matrix products: bf16, fp32, fp16, fp8 or auto."
        ),
    ] = None,
    compile: Annotated[
        Value,
        _option(MACHINE, "WHEN", "auto", "Use torch.compile: on, off, or auto if it pays off."),
    ] = None,
    dry_run: Annotated[
        bool,
        _flag(
            "--dry-run",
            MACHINE,
            "Show configuration, steps, passes over the data, time, memory and disk, and stop.",
        ),
    ] = False,
    strict: Annotated[
        bool,
        _flag(
            "--strict",
            MACHINE,
            "Treat warnings, such as too few steps, as errors: exit with code 2.",
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
    if report:
        from gptcli.cli.train_report import draw

        conflicting = [
            name
            for name, value in options.items()
            if name in NAMES and name != "out" and value not in (None, False)
        ]
        if conflicting:
            raise UsageError(
                "--report only draws, and trains nothing",
                where=option(conflicting[0]),
                hint="leave one of the two out",
            )
        draw(runs or [], out, force=force, as_json=json)
        return
    if runs:
        raise _unexpected(str(runs[0]))
    if finetune is not None:
        from gptcli.cli.finetune import run_finetune

        run_finetune(options.pop("finetune"), options)
        return
    if restarted():
        resume, force = True, False
    given = given_values(
        {name: value for name, value in options.items() if name in NAMES and value is not False},
        config,
        resume=resume,
    )

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


def _print_forecast(
    plan: ResolvedRun, manifest: Manifest, events: Events, run: Run, *, strict: bool
) -> None:
    """Report the forecast of the run or its rest. Raises UsageError for warnings if `strict`."""
    from gptcli.cli.train_forecast import forecast_plan, refuse, tell
    from gptcli.trainer.preflight import resumed_state

    state = resumed_state(run.out, run.identity()) if run.resume else None
    forecast = forecast_plan(
        plan, manifest, done=0 if state is None else state.position.sequences * plan.model.n_ctx
    )
    tell(forecast, events, at_least=plan.train.follow_noise)
    if strict:
        refuse(forecast)


def _print_plan(
    plan: ResolvedRun, manifest: Manifest | None, *, as_json: bool, strict: bool
) -> None:
    """Print configuration, work and forecast. Raises UsageError if `strict` and it has warnings."""
    from gptcli.cli.train_forecast import forecast_facts, forecast_json, forecast_plan, refuse, warn
    from gptcli.cost.flops import flops_per_token

    flops = flops_per_token(plan.model, "6N") * plan.train.tokens
    roles = _dry_run_layout(plan)
    forecast = forecast_plan(plan, manifest)
    warn(forecast, ConsoleEvents())
    if as_json:
        print_json(
            "train",
            {
                "config": plan.resolved.values,
                "origin": plan.resolved.origin,
                "parameters": plan.model.parameters,
                "flops": flops,
                **forecast_json(forecast),
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
        refuse(forecast)


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
    from gptcli.trainer.dry_run import dry_run
    from gptcli.trainer.precision import check_precision

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
