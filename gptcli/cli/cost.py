"""`gpt cost`: estimate what it takes to train and run a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gptcli.cli.command import Command
from gptcli.cli.options import (
    MODEL,
    OUTPUT,
    flag,
    model_path,
    number,
    option,
    quantity,
    shared,
    value,
)
from gptcli.cli.options import precision as precision_option
from gptcli.cost.hardware import gpu_names
from gptcli.cost.options import DEFAULT_GPU, DEFAULT_N_CTX, HARDWARE_FIELDS, LAYOUT_FIELDS, SHAPE
from gptcli.cost.step_time import DEFAULT_TRAINER, TRAINERS
from gptcli.errors import UsageError
from gptcli.numbers import short

TRAINING, GPUS, LAYOUT, SCALING = "Training run", "GPUs", "Layout", "Scaling laws"
POWER, SERVING = "Energy", "Serving"
LIST_GPUS = "list"  # value of --gpu
FLOPS_OF_RUN = "auto"  # value of --flops without a number
MODEL_OPTIONS = ("size", "runs", *SHAPE)
LLAMA_OPTIONS = ("shape", "n_kv_head", "d_ff")
OUTPUT_OPTIONS = ("json", "markdown")
STEP_OPTIONS = tuple(name for name in LAYOUT_FIELDS if name != "layout")
# option that selects a mode: the options that can be combined with it
MODES: dict[str, tuple[str, ...]] = {
    "fit": ("runs", "predict", "size", *SHAPE, "tokens", "plot"),
    "optimal": ("plot",),
    "check": ("explain",),
    "serve": (
        *MODEL_OPTIONS,
        "gpu",
        "precision",
        "price",
        "prices",
        "prompt_tokens",
        "output_tokens",
    ),
    "plan": (*MODEL_OPTIONS, "gpu", "gpus", *STEP_OPTIONS, "plot"),
    "table": ("tokens", *HARDWARE_FIELDS, "precision", "trainer", "plot", "explain"),
    "budget": ("hours", *HARDWARE_FIELDS, "precision", "trainer"),
    "flops": ("hours", *HARDWARE_FIELDS, "plot", "explain"),
    "hours": (*HARDWARE_FIELDS, "precision", "trainer"),
}
# options of the mode without an option of its own: the estimate of one model
ESTIMATE_OPTIONS = (
    *(*MODEL_OPTIONS, *LLAMA_OPTIONS, "tokens", "flops", "hours"),
    *(*HARDWARE_FIELDS, *LAYOUT_FIELDS, "plot", "explain"),
)


class CostCommand(Command):
    """Command whose option --flops may lack its value, which typer does not support."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give --flops its value FLOPS_OF_RUN if no number follows."""
        for i, word in enumerate(args):
            next_arg = args[i + 1] if i + 1 < len(args) else "-"
            if word == "--flops" and next_arg[0:1] == "-" and not next_arg[1:2].isdigit():
                args = [*args[:i], f"--flops={FLOPS_OF_RUN}", *args[i + 1 :]]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("cost", cls=CostCommand)(cost)


def _complete_size(incomplete: str) -> list[str]:
    from gptcli.cost.target import target_names

    return [name for name in target_names() if name.startswith(incomplete)]


def _complete_gpu(incomplete: str) -> list[str]:
    return [name for name in gpu_names() if name.startswith(incomplete)]


def _complete_trainer(incomplete: str) -> list[str]:
    return [name for name in TRAINERS if name.startswith(incomplete)]


def _parse_flops(text: str) -> float | str:
    return text if text == FLOPS_OF_RUN else number("flops")(text)


def cost(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            parser=model_path,
            show_default=False,
            help="Run or model to price; with --fit, several, or tables of runs (.csv, .tsv, .jsonl).",
        ),
    ] = None,
    size: Annotated[str | None, shared("size", MODEL, "175B", complete=_complete_size)] = None,
    n_layer: Annotated[int | None, shared("n_layer", MODEL, "the size's", numeric=True)] = None,
    n_head: Annotated[int | None, shared("n_head", MODEL, "the size's", numeric=True)] = None,
    d_model: Annotated[int | None, shared("d_model", MODEL, "the size's", numeric=True)] = None,
    n_ctx: Annotated[
        int | None, shared("n_ctx", MODEL, f"the size's, or {DEFAULT_N_CTX}", numeric=True)
    ] = None,
    vocab_size: Annotated[int | None, shared("vocab_size", MODEL, "50257", numeric=True)] = None,
    attention: Annotated[
        str | None,
        value(
            "Attention: dense, or banded in every second layer as in GPT-3.",
            *("KIND", MODEL, "the size's, or dense"),
        ),
    ] = None,
    shape: Annotated[
        str | None,
        value(
            "Family of a custom model: gpt, or llama (gated feed-forward layers, grouped heads, a"
            " separate output head), which only gpt cost supports.",
            *("KIND", MODEL, "gpt"),
        ),
    ] = None,
    n_kv_head: Annotated[
        int | None,
        quantity(
            "n_kv_head",
            "With --shape llama: number of key-value heads.",
            *(MODEL, "as many as --n-head"),
        ),
    ] = None,
    d_ff: Annotated[
        int | None,
        quantity(
            "d_ff",
            "With --shape llama: width of the feed-forward layers.",
            *(MODEL, "8/3 of --d-model"),
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        quantity("tokens", "Number of training tokens.", TRAINING, "the paper's, or 300B"),
    ] = None,
    flops: Annotated[
        Any,
        value(
            "Print only the time and money for N FLOPs, or without N for the FLOPs of the run.",
            *("[N]", TRAINING),
            parser=_parse_flops,
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        value(
            "GPU model; list prints all of them.",
            *("NAME", GPUS, DEFAULT_GPU),
            complete=_complete_gpu,
        ),
    ] = None,
    gpus: Annotated[int | None, quantity("gpus", "Number of GPUs.", GPUS, "1")] = None,
    tflops: Annotated[
        float | None,
        quantity(
            "tflops",
            "Sustained TFLOP/s of one GPU; without --gpu, of a custom GPU.",
            *(GPUS, True),
            metavar="X",
        ),
    ] = None,
    mfu: Annotated[
        float | None,
        quantity(
            "mfu",
            "Model FLOPs utilization: sustained FLOP/s divided by the GPU's peak.",
            *(GPUS, "by GPU"),
            metavar="X",
        ),
    ] = None,
    memory: Annotated[
        float | None,
        quantity(
            "memory",
            "Memory of a custom GPU described by --tflops, in GB.",
            *(GPUS, False),
            metavar="GB",
        ),
    ] = None,
    price: Annotated[
        float | None,
        quantity(
            "price",
            "Price of one GPU-hour, in dollars.",
            *(GPUS, "the median of published prices"),
            metavar="X",
        ),
    ] = None,
    prices: Annotated[
        Path | None,
        value(
            "TOML file with your own prices: tables named offer, with gpus and dollars_per_hour.",
            *("FILE", GPUS, False),
        ),
    ] = None,
    server: Annotated[
        float | None,
        quantity(
            "server",
            "Power of a server per GPU, as a multiple of the power of the GPU itself.",
            POWER,
            "1.1",
            metavar="X",
        ),
    ] = None,
    pue: Annotated[
        float | None,
        quantity(
            "pue",
            "Power usage effectiveness: power of the data centre divided by that of its servers.",
            POWER,
            "1.1",
            metavar="X",
        ),
    ] = None,
    carbon: Annotated[
        float | None,
        quantity("carbon", "Emissions in kg of CO2e per kWh.", POWER, "0.429", metavar="KG"),
    ] = None,
    goodput: Annotated[
        float | None,
        quantity(
            "goodput",
            "Fraction of the time in which the run makes progress.",
            *(GPUS, "73 to 95 %, by length, where MFU is predicted"),
            metavar="X",
        ),
    ] = None,
    layout: Annotated[str | None, shared("layout", LAYOUT, "the fastest")] = None,
    micro_batch: Annotated[
        int | None, shared("micro_batch", LAYOUT, "the fastest, or 1", numeric=True)
    ] = None,
    recompute: Annotated[str | None, shared("recompute", LAYOUT, "the fastest, or none")] = None,
    precision: Annotated[
        str | None, precision_option("bf16, fp16, fp32 or fp8", LAYOUT, "by GPU")
    ] = None,
    batch_tokens: Annotated[
        int | None,
        quantity("batch_tokens", "Tokens per optimizer step.", LAYOUT, "the paper's"),
    ] = None,
    trainer: Annotated[
        str | None,
        value(
            "Trainer whose speed to predict: gpt, fused (llm.c), fsdp or megatron.",
            *("NAME", LAYOUT, DEFAULT_TRAINER),
            complete=_complete_trainer,
        ),
    ] = None,
    plan: Annotated[
        bool, flag("--plan", "List the layouts that fit into memory, fastest first.", LAYOUT)
    ] = False,
    budget: Annotated[
        float | None,
        quantity(
            "budget",
            "List the models that a budget in dollars can train, with their losses.",
            *(TRAINING, False),
            metavar="X",
        ),
    ] = None,
    hours: Annotated[
        float | None,
        quantity(
            "hours",
            "Hours that the training may take: list the models that can be trained in them; for "
            "one model, find the number of GPUs, or with --gpus the speed that they need.",
            *(TRAINING, False),
            metavar="X",
        ),
    ] = None,
    optimal: Annotated[
        float | None,
        quantity(
            "optimal",
            "List the compute-optimal model size for this many FLOPs, by each scaling law.",
            *(SCALING, False),
            metavar="FLOPS",
        ),
    ] = None,
    fit: Annotated[
        bool,
        flag(
            "--fit",
            "Fit a scaling law to the given runs; with a model and --tokens, predict its loss.",
            SCALING,
        ),
    ] = False,
    predict: Annotated[
        Path | None,
        value(
            "With --fit: run whose loss to predict; the law is not fitted to it.",
            *("RUN", SCALING, False),
        ),
    ] = None,
    table: Annotated[bool, flag("--table", "List every size of the papers.", OUTPUT)] = False,
    serve: Annotated[
        int | None,
        quantity(
            "serve",
            "Predict speed and price of generating text for N sequences at a time.",
            *(SERVING, False),
        ),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        quantity(
            "prompt_tokens", "Length of each prompt, in tokens.", SERVING, "half of the context"
        ),
    ] = None,
    output_tokens: Annotated[
        int | None,
        quantity(
            "output_tokens",
            "Tokens to generate for each prompt.",
            SERVING,
            "the rest of the context",
        ),
    ] = None,
    check: Annotated[
        bool,
        flag(
            "--check",
            "Compare predicted speed and memory with those of measured runs.",
            OUTPUT,
        ),
    ] = False,
    explain: Annotated[
        bool,
        flag(
            "--explain",
            "Print every formula with its numbers, and every constant with its source.",
            OUTPUT,
        ),
    ] = False,
    markdown: Annotated[bool, shared("markdown", OUTPUT)] = False,
    plot: Annotated[
        Path | None, value("Also draw the result as an SVG.", "FILE.svg", OUTPUT, False)
    ] = None,
    json: Annotated[bool, shared("json", OUTPUT)] = False,
) -> None:
    """Estimate the cost of a model: parameters, FLOPs, memory, GPU-years and dollars.

    Examples:

        gpt cost --size 1.3B --gpu a100 --gpus 64 --plan

        gpt cost --flops 3.14e23 --gpu v100 --tflops 28 --price 1.5
    """
    options = {
        name: given
        for name, given in locals().items()
        if given is not None and given is not False and given != []
    }
    from gptcli.cli.cost_modes import HANDLERS, check_not_a_size
    from gptcli.cli.cost_report import OutputOptions, print_gpus

    if gpu == LIST_GPUS:
        if extra := next((name for name in options if name not in ("gpu", *OUTPUT_OPTIONS)), None):
            raise UsageError(
                "--gpu list cannot be combined with "
                + ("RUN" if extra == "runs" else option(extra)),
                hint="leave it out",
            )
        print_gpus(OutputOptions(json, markdown, explain, plot))
        return
    if runs and not runs[0].exists() and not fit:
        check_not_a_size(str(runs[0]))
    mode = select_mode(options)
    if plot is not None:
        from gptcli.runs.plots import check_plot

        check_plot(plot)
    HANDLERS[mode](options, OutputOptions(json, markdown, explain, plot))


def select_mode(options: dict[str, Any]) -> str:
    """Return the mode that the options select: one of MODES, or "model".

    Raises UsageError for an option of another mode.
    """
    mode = next((name for name in MODES if name in options), "model")
    if mode == "hours" and any(name in options for name in (*MODEL_OPTIONS, "tokens")):
        mode = "model"
    if mode == "flops" and options["flops"] == FLOPS_OF_RUN:
        mode = "model"
    if "json" in options and "markdown" in options:
        raise UsageError(
            "--json cannot be combined with --markdown", hint="leave out one of the two"
        )
    allowed = ESTIMATE_OPTIONS if mode == "model" else (mode, *MODES[mode])
    for name in options:
        if name in (*allowed, *OUTPUT_OPTIONS):
            continue
        if mode == "model":
            needed = next(other for other, names in MODES.items() if name in names)
            raise UsageError(f"{option(name)} needs {option(needed)}")
        conflicting = "a run folder" if name == "runs" else option(name)
        if mode == "flops":
            raise UsageError(
                f"--flops {short(options['flops'])} cannot be combined with {conflicting}",
                hint="--flops without a number uses the FLOPs of the model's run",
            )
        raise UsageError(
            f"{option(mode)} cannot be combined with {conflicting}", hint="leave out one of the two"
        )
    return mode
