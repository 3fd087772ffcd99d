"""`gpt cost`: what a model takes to train and to hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gptcli.cli.command import Command
from gptcli.cli.config import number
from gptcli.cli.cost_answers import ANSWERS, Look
from gptcli.cli.cost_options import DEFAULT_GPU, NO_VALUE, question
from gptcli.cli.cost_subject import DEFAULT_N_CTX, check_not_a_size, every_name
from gptcli.cost.hardware import gpu_names
from gptcli.cost.memory import RECOMPUTE

MODEL, RUN, GPUS, LAYOUT, LAWS, OUTPUT = (
    "Model",
    "Training run",
    "GPUs",
    "Layout",
    "Scaling laws",
    "Output",
)


class CostCommand(Command):
    """Lets `--flops` stand alone: Typer has no option with an optional value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for i, word in enumerate(args):
            following = args[i + 1] if i + 1 < len(args) else "-"
            if word == "--flops" and following[0:1] == "-" and not following[1:2].isdigit():
                args = [*args[:i], f"--flops={NO_VALUE}", *args[i + 1 :]]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    app.command("cost", cls=CostCommand)(cost)


def _complete_size(incomplete: str) -> list[str]:
    return [name for name in every_name() if name.startswith(incomplete)]


def _complete_gpu(incomplete: str) -> list[str]:
    return [name for name in gpu_names() if name.startswith(incomplete)]


def cost(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="Run folder whose model to price; with --fit, several.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Model of the papers.",
            show_default="175B",
            autocompletion=_complete_size,
            metavar="NAME",
            rich_help_panel=MODEL,
        ),
    ] = None,
    n_layer: Annotated[
        int | None,
        typer.Option(
            parser=number("n_layer"),
            help="Number of layers, of a custom model or instead of the size's.",
            metavar="N",
            show_default="the size's",
            rich_help_panel=MODEL,
        ),
    ] = None,
    n_head: Annotated[
        int | None,
        typer.Option(
            parser=number("n_head"),
            help="Number of attention heads.",
            metavar="N",
            show_default="the size's",
            rich_help_panel=MODEL,
        ),
    ] = None,
    d_model: Annotated[
        int | None,
        typer.Option(
            parser=number("d_model"),
            help="Width of the model: the size of an embedding.",
            metavar="N",
            show_default="the size's",
            rich_help_panel=MODEL,
        ),
    ] = None,
    n_ctx: Annotated[
        int | None,
        typer.Option(
            parser=number("n_ctx"),
            help="Length of the context, in tokens.",
            show_default=f"the size's, or {DEFAULT_N_CTX}",
            metavar="N",
            rich_help_panel=MODEL,
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            parser=number("vocab_size"),
            help="Size of the vocabulary.",
            show_default="50257",
            metavar="N",
            rich_help_panel=MODEL,
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            help="Attention of the layers: dense or banded.",
            show_default="the size's, or dense",
            metavar="KIND",
            rich_help_panel=MODEL,
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            help="Number of training tokens.",
            show_default="the paper's, or 300B",
            metavar="N",
            rich_help_panel=RUN,
        ),
    ] = None,
    flops: Annotated[
        str | None,
        typer.Option(
            help="Print only time and money for the FLOPs of the run, or for N FLOPs.",
            metavar="[N]",
            rich_help_panel=RUN,
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="GPU that the run uses.",
            show_default=DEFAULT_GPU,
            autocompletion=_complete_gpu,
            metavar="NAME",
            rich_help_panel=GPUS,
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(help="Number of GPUs.", metavar="N", show_default="1", rich_help_panel=GPUS),
    ] = None,
    tflops: Annotated[
        str | None,
        typer.Option(
            help="TFLOP/s that one GPU sustains; without --gpu, of any GPU.",
            metavar="X",
            rich_help_panel=GPUS,
        ),
    ] = None,
    mfu: Annotated[
        str | None,
        typer.Option(
            help="Model FLOPs utilization: the speed as a share of the GPU's peak.",
            show_default="by GPU",
            metavar="X",
            rich_help_panel=GPUS,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory of one GPU in GB, if --tflops describes it.",
            metavar="GB",
            show_default=False,
            rich_help_panel=GPUS,
        ),
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(
            help="Price of one GPU for an hour, in dollars.",
            show_default="by GPU",
            metavar="X",
            rich_help_panel=GPUS,
        ),
    ] = None,
    goodput: Annotated[
        str | None,
        typer.Option(
            help="Share of the time in which the run makes progress.",
            show_default="73 % where MFU is predicted",
            metavar="X",
            rich_help_panel=GPUS,
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Processes by axis, for replicas, shards, tensor slices and stages: dp=2,shard=4,tp=2,pp=2.",
            show_default="the fastest",
            metavar="AXES",
            rich_help_panel=LAYOUT,
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            parser=number("micro_batch"),
            help="Sequences that a process runs at a time.",
            show_default="1",
            metavar="N",
            rich_help_panel=LAYOUT,
        ),
    ] = None,
    recompute: Annotated[
        str | None,
        typer.Option(
            help=f"Activations to compute again in the backward pass: {', '.join(RECOMPUTE)}.",
            show_default="none",
            metavar="WHAT",
            rich_help_panel=LAYOUT,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Precision of matrix products: bf16, fp16, fp32 or fp8.",
            show_default="by GPU",
            metavar="KIND",
            rich_help_panel=LAYOUT,
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="List the layouts that fit, fastest first.", rich_help_panel=LAYOUT
        ),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            help="List what this many dollars buy, size by size.",
            metavar="X",
            show_default=False,
            rich_help_panel=RUN,
        ),
    ] = None,
    hours: Annotated[
        str | None,
        typer.Option(
            help="List what this many hours buy; with a model, the GPUs that they need, or with --gpus the speed.",
            metavar="X",
            show_default=False,
            rich_help_panel=RUN,
        ),
    ] = None,
    optimal: Annotated[
        str | None,
        typer.Option(
            help="List the best model size for this many FLOPs, by each scaling law.",
            metavar="FLOPS",
            show_default=False,
            rich_help_panel=LAWS,
        ),
    ] = None,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit",
            help="Fit a scaling law to the runs named; with a model and --tokens, predict its loss.",
            rich_help_panel=LAWS,
        ),
    ] = False,
    predict: Annotated[
        Path | None,
        typer.Option(
            help="Run to leave out of the fit and to predict.",
            metavar="RUN",
            show_default=False,
            rich_help_panel=LAWS,
        ),
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="List every size of the papers.", rich_help_panel=OUTPUT)
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Print every formula with its numbers and every constant with its source.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Print the tables as Markdown.", rich_help_panel=OUTPUT),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Also draw the answer as an SVG.",
            metavar="FILE.svg",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print a report as one JSON object on stdout.", rich_help_panel=OUTPUT
        ),
    ] = False,
) -> None:
    """What a model takes: parameters, FLOPs, memory, GPU-years and dollars.

    \b
    Examples:
      gpt cost --size 1.3B --gpu a100 --gpus 64 --plan
      gpt cost --flops 3.14e23 --gpu v100 --tflops 28 --price 1.5
    """
    said = {
        name: value
        for name, value in locals().items()
        if value is not None and value is not False and value != []
    }
    if runs and not runs[0].exists() and not fit:
        check_not_a_size(str(runs[0]))
    asked = question(said)
    if plot is not None:
        from gptcli.cli.cost_plot import check_plot

        check_plot(plot)
    ANSWERS[asked](said, Look(json=json, markdown=markdown, explain=explain, plot=plot))
