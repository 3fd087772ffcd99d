"""`gpt train`: shards to a trained model, by the papers' recipe."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli.command import Command, hold, releasing
from gptcli.cli.config import option, resolved_toml, same_values, updated_toml
from gptcli.cli.console import ConsoleEvents, print_json
from gptcli.cli.dashboard import Dashboard
from gptcli.cli.train_plan import NAMES, NEWEST, Plan, make_plan, said
from gptcli.errors import Interrupted, RunError, UsageError
from gptcli.events import SILENT, Events
from gptcli.files import atomic_write, check_output, claim_output
from gptcli.locks import own_folder
from gptcli.model.source import INIT, RUN_TOML
from gptcli.numbers import duration, in_bytes
from gptcli.runtime import is_main, is_main_on_node, restarted, unused_launch

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
    app.command("train", cls=Command)(releasing(train))


def _sizes(incomplete: str) -> list[str]:
    from gptcli.model.config import size_names

    return [name for name in size_names() if name.lower().startswith(incomplete.lower())]


def _option(panel: str, metavar: str, default: str, text: str) -> Any:
    """An option that may also come from --config, the paper or the machine: `default` says where it
    comes from if not given.
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
            help="Model of the papers, which sets architecture and recipe.",
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
            "Attention of the layers: dense, banded (every second one), or a pattern such as dense,dense,banded.",
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
            "Tokens in a step's batch; auto follows the gradient noise scale.",
        ),
    ] = None,
    lr: Annotated[
        Value,
        _option(
            RECIPE,
            "X",
            "paper's, more in a smaller model",
            "Highest learning rate, reached at the end of the warm-up.",
        ),
    ] = None,
    scale_lr: Annotated[
        bool,
        _flag(
            "--scale-lr",
            RECIPE,
            "Set --lr by this model's size, between the rates of GPT-3's table.",
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
            help="Run folder to write; model.safetensors comes last.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            rich_help_panel=OUTPUT,
            help="TOML file with any of these options, and beta1, beta2, eps, clip, ramp_from; an earlier run.toml will do.",
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
            "Only draw the report of one RUN, or of several compared; with -o FILE.svg, the losses alone.",
        ),
    ] = False,
    profile: Annotated[
        bool, _flag("--profile", WATCH, "Trace a few steps and show what they spend their time on.")
    ] = False,
    layout: Annotated[
        Value,
        _option(
            MACHINE,
            "AXES",
            "the fastest that fits",
            "Processes by axis, for replicas, shards, tensor slices and stages: dp=2,shard=4,tp=2,pp=2.",
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
            "Activations to compute again in the backward pass: none, selective or full.",
        ),
    ] = None,
    micro_batch: Annotated[
        Value, _option(MACHINE, "N", "what fits", "Sequences that a process runs at a time.")
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
            "Refuse a run with any warning, such as too few steps; with --dry-run, exit with 2.",
        ),
    ] = False,
) -> None:
    """Train a GPT on shards, by the recipe of the paper that its size comes from.

    report.html in the run folder shows the run at any time; --resume goes on with one that stopped;
    model.safetensors comes last.

    Examples:

        gpt train --size 350M

        gpt train --size gpt2 --n-layer 4 --tokens 10M -o runs/small

        gpt train --report runs/350M runs/small -o compare.html
    """
    options = dict(locals()) | {"eval_task": eval_task or None}
    if report:
        from gptcli.cli.train_report import draw

        said_too = [
            name
            for name, value in options.items()
            if name in NAMES and name != "out" and value not in (None, False)
        ]
        if said_too:
            raise UsageError(
                "--report only draws, and trains nothing",
                where=option(said_too[0]),
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
    given = said(
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
    plan = make_plan(given, manifest.vocab_size if manifest else None, lr_range=lr_range)
    if dry_run:
        _print_plan(plan, manifest, as_json=json, strict=strict)
        return
    assert manifest is not None

    from gptcli.distributed.launch import launch
    from gptcli.trainer.checkpoint import newest_step
    from gptcli.trainer.loop import train as train_run

    events = Dashboard(given.values["out"]) if is_main() else SILENT
    if (note := unused_launch()) is not None:
        events.warn(note)
    run = _begin(plan, manifest, events, resume=resume, force=force, strict=strict)
    if run is None:
        events.info(f"{given.values['out']} is finished")
        return
    if lr_range:
        _test_range(run, events, as_json=json)
        return
    done = launch(replace(run, profile=profile), events, train_run, newest_step)
    if is_main() and done["interrupted"]:
        raise Interrupted(
            f"stopped after step {done['step']:,}, with a checkpoint",
            where=run.out,
            hint="--resume goes on",
        )
    if is_main():
        loss = (
            ""
            if (mean := done["smoothed_loss"]) is None
            else f", loss {mean:.4f} (mean of the last {done['smoothed_steps']} steps)"
        )
        events.info(f"trained on {done['tokens']:,} tokens in {duration(done['seconds'])}{loss}")
        print_json("train", done) if json else print(run.out)


def _unexpected(argument: str) -> UsageError:
    """The error for an argument without --report: a size, perhaps, or a run to continue."""
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
    """The learning-rate range test in the run's place; the suggested rate is the result."""
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
        f"the smooth loss is lowest at {report['lowest_loss_lr']:.2g}; a tenth of it is suggested: see {run.out / LR_RANGE_REPORT}"
    )
    print_json("train", report) if as_json else print(f"{report['suggested_lr']:.2g}")


def _begin(
    plan: Plan, manifest: Manifest, events: Events, *, resume: bool, force: bool, strict: bool
) -> Run | None:
    """Check all that can be checked, say what the run will take, claim its folder and write
    run.toml into it; None if it is finished.
    """
    from gptcli.cli.train_tasks import measurement
    from gptcli.cost.layout import parse_layout
    from gptcli.runs.provenance import provenance
    from gptcli.trainer.checkpoint import newest_state
    from gptcli.trainer.config import Run
    from gptcli.trainer.export import is_finished, remove_temporary_weights
    from gptcli.trainer.preflight import check_data, check_resume, check_run, data_sha256

    out, data = Path(plan.resolved.values["out"]), Path(plan.resolved.values["data"])
    if is_main():
        hold(own_folder(out, read_only=resume, events=events))
    processes, tokens = parse_layout(plan.train.layout).processes, plan.train.tokens
    made = provenance(processes, data, data_sha256(manifest), manifest.tokens("train"), tokens)
    before = (
        (out / RUN_TOML).read_text(encoding="utf-8-sig")
        if resume and (out / RUN_TOML).is_file()
        else None
    )
    text = _run_toml(plan, made, before)
    run = Run(
        name=plan.name,
        out=out,
        data=data,
        model=plan.model,
        train=plan.train,
        data_sha256=data_sha256(manifest),
        tokenizer_sha256=manifest.tokenizer_sha256,
        eot_id=manifest.eot_id,
        must_compile=plan.must_compile,
        track=plan.resolved.values.get("track"),
        measure=measurement(plan.resolved.values),
        init_from=None if (start := plan.resolved.values.get("init_from")) is None else Path(start),
        init_step=plan.resolved.values.get("checkpoint"),
        resume=resume,
        resolved=text,
    )
    check_run(run, manifest)
    if is_main():
        check_output(out, resume=resume, force=force)
    if resume:
        at_end = check_resume(run)
        if is_finished(out) and (
            at_end or (newest_state(out) is None and same_values(text, before))
        ):
            if is_main():
                remove_temporary_weights(out)
            return None
        if is_finished(out) and newest_state(out) is None:
            raise UsageError(
                "the model here is finished, and no checkpoint is left to go on from",
                where=out,
                hint="--force starts over",
            )
        run = replace(run, resume=True)
    if is_main() and not restarted():
        _print_forecast(plan, manifest, events, run, strict=strict)
    # once on each machine: the others wait for it to join them
    if is_main_on_node() and not restarted():
        check_data(run, manifest)
    if is_main():
        claim_output(out, resume=resume, force=force)
        run = _keep_start(plan, run, made, events)
        with atomic_write(out / RUN_TOML, "w") as file:
            file.write(run.resolved)
    return run


def _keep_start(plan: Plan, run: Run, made: dict[str, str], events: Events) -> Run:
    """Keep the checkpoint that the run starts from, if it is one, in the run's own folder, and
    record its step.
    """
    from gptcli.trainer.checkpoint import newest_state
    from gptcli.trainer.initial_weights import keep_initial_weights

    if (
        run.init_from is None
        or run.init_step is None
        or (run.out / INIT).is_dir()
        or newest_state(run.out) is not None
    ):
        return run
    newest = plan.resolved.origin["checkpoint"] == NEWEST
    step = keep_initial_weights(run.init_from, run.out, run.init_step, events, newest=newest)
    if step == run.init_step:
        return run
    plan.resolved.put({"checkpoint": step}, plan.resolved.origin["checkpoint"])
    return replace(run, init_step=step, resolved=_run_toml(plan, made))


def _run_toml(plan: Plan, made: dict[str, str], before: str | None = None) -> str:
    """Return run.toml's text: new, or that from `before` a resume with what has changed. `made`:
    the provenance.
    """
    from gptcli.runs.provenance import resumed

    facts = {
        "parameters": f"{plan.model.parameters:,}",
        "vocab_size": f"{plan.model.vocab_size:,}, from the shards",
    }
    if before is None:
        return resolved_toml(plan.resolved, **facts, **made)
    return resumed(updated_toml(before, plan.resolved, **facts), made)


def _print_forecast(
    plan: Plan, manifest: Manifest, events: Events, run: Run, *, strict: bool
) -> None:
    """Say what the run, or what is left of it, will take. Raises UsageError if it is to be `strict`
    and there are warnings.
    """
    from gptcli.cli.train_forecast import forecast_plan, refuse, tell
    from gptcli.trainer.preflight import resumed_state

    state = resumed_state(run.out, run.identity()) if run.resume else None
    forecast = forecast_plan(
        plan, manifest, done=0 if state is None else state.position.sequences * plan.model.n_ctx
    )
    tell(forecast, events, at_least=plan.train.follow_noise)
    if strict:
        refuse(forecast)


def _print_plan(plan: Plan, manifest: Manifest | None, *, as_json: bool, strict: bool) -> None:
    """Print configuration, work and forecast. Raises UsageError if it is to be `strict` and there
    are warnings.
    """
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


def _print_resolved(plan: Plan, roles: list[StageRole], facts: dict[str, str]) -> None:
    """Print the resolved configuration as run.toml would hold it, with `facts` and each stage of
    the layout on top.
    """
    facts = {"parameters": f"{plan.model.parameters:,}", **facts}
    for role in roles:
        low, high = (f"{held:,}" for held in role.parameters)
        moved = [
            f"{in_bytes(n_bytes)} over {axis}"
            for axis, n_bytes in asdict(role.traffic).items()
            if n_bytes
        ]
        facts[f"stage {role.stage}"] = (
            f"{role.processes:,} processes, each with {low if low == high else f'{low} to {high}'} parameters and "
            f"{in_bytes(role.optimizer_bytes[1])} of optimizer state; a step moves {', '.join(moved)}"
        )
    print(resolved_toml(plan.resolved, **facts), end="")


def _dry_run_layout(plan: Plan) -> list[StageRole]:
    """Build the processes of a layout in a dry run; return no roles for a single process."""
    from gptcli.cost.layout import parse_layout
    from gptcli.trainer.config import Run
    from gptcli.trainer.dry_run import dry_run
    from gptcli.trainer.fit import check_division
    from gptcli.trainer.precision import check_precision

    layout, sequences = parse_layout(plan.train.layout), plan.train.batch_tokens // plan.model.n_ctx
    if layout.processes == 1:
        return []
    check_division(plan.model, layout, plan.train.pipeline_schedule, sequences)
    check_precision(plan.train.precision, layout.tp, here=False)
    run = Run(
        name=plan.name, out=Path(), data=Path(), model=plan.model, train=plan.train, data_sha256="", tokenizer_sha256="", eot_id=0
    )  # fmt: skip
    return dry_run(run, sequences, ConsoleEvents())
