"""`gpt cost`: what a model takes to train and to hold."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from gptcli.cli.console import print_json
from gptcli.cli.cost_laws import optimal_report, print_affordable, print_fit, print_optimal, read_run
from gptcli.cli.cost_options import DEFAULT_GPU, NO_VALUE, SHAPE, Terms, option, positive, question, whole
from gptcli.cli.cost_plan import print_plans, rank_rows
from gptcli.cli.cost_report import print_estimate, print_sizes
from gptcli.cli.cost_sheet import short
from gptcli.cost.activations import RECOMPUTE
from gptcli.cost.assumptions import USER
from gptcli.cost.budget import affordable
from gptcli.cost.estimate import Estimate, price_training
from gptcli.cost.fleet import batch_sequences
from gptcli.cost.hardware import gpu_names
from gptcli.cost.plans import plans
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size, size_names
from gptcli.model.config_json import read_model_config
from gptcli.papers.models import MODELS
from gptcli.papers.training import GPT3_TRAINING, TRAINING

DEFAULT_SIZE = "gpt3"
DEFAULT_N_CTX = 1024  # GPT-2's
TOKENS_SOURCE = {
    "GPT-3": "GPT-3, Table 2.1",
    "GPT-1": "assumed: GPT-1 prints none; 100 epochs of 985M words at 1.2 tokens a word",
    "GPT-2": "assumed: GPT-2 prints none; one pass over its 40 GB of text at 4 characters a token",
}

MODEL, RUN, GPUS, LAYOUT, LAWS, OUTPUT = "Model", "Training run", "GPUs", "Layout", "Scaling laws", "Output"
PLANS_SHOWN = 12


class CostCommand(typer.core.TyperCommand):
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
    return [name for name in size_names() if name.startswith(incomplete)]


def _complete_gpu(incomplete: str) -> list[str]:
    return [name for name in gpu_names() if name.startswith(incomplete)]


def cost(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="A run folder, to price its model; with --fit, several.", show_default=False),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="A model of the papers.", show_default="175B", autocompletion=_complete_size, rich_help_panel=MODEL),
    ] = None,
    n_layer: Annotated[int | None, typer.Option(help="Layers: of your own model, or instead of the size's.", rich_help_panel=MODEL)] = None,
    n_head: Annotated[int | None, typer.Option(help="Attention heads.", rich_help_panel=MODEL)] = None,
    d_model: Annotated[int | None, typer.Option(help="Width.", rich_help_panel=MODEL)] = None,
    n_ctx: Annotated[
        int | None, typer.Option(help="Context, in tokens.", show_default=f"the size's, or {DEFAULT_N_CTX}", rich_help_panel=MODEL)
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Vocabulary.", show_default="50257", rich_help_panel=MODEL)] = None,
    attention: Annotated[
        str | None, typer.Option(help="dense or banded.", show_default="the size's, or dense", rich_help_panel=MODEL)
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Training tokens.", show_default="the paper's, or 300B", metavar="N", rich_help_panel=RUN)
    ] = None,
    flops: Annotated[
        str | None,
        typer.Option(help="Only from FLOPs to time and money; with a number, for that many.", metavar="[N]", rich_help_panel=RUN),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="What it runs on.", show_default=DEFAULT_GPU, autocompletion=_complete_gpu, rich_help_panel=GPUS),
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="How many.", metavar="N", show_default="1", rich_help_panel=GPUS)] = None,
    tflops: Annotated[
        str | None, typer.Option(help="TFLOP/s that one sustains. Without --gpu: of any GPU.", metavar="X", rich_help_panel=GPUS)
    ] = None,
    mfu: Annotated[
        str | None, typer.Option(help="The same, as a share of its peak.", show_default="by GPU", metavar="X", rich_help_panel=GPUS)
    ] = None,
    price: Annotated[
        str | None, typer.Option(help="Dollars an hour for one.", show_default="by GPU", metavar="X", rich_help_panel=GPUS)
    ] = None,
    goodput: Annotated[
        str | None,
        typer.Option(
            help="Share of the time that it trains.", show_default="73 % where MFU is predicted", metavar="X", rich_help_panel=GPUS
        ),
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Processes by axis: dp=2,shard=4,tp=2,pp=2.", show_default="the fastest", rich_help_panel=LAYOUT)
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Sequences that a rank runs at a time.", show_default="1", metavar="N", rich_help_panel=LAYOUT)
    ] = None,
    recompute: Annotated[
        str | None, typer.Option(help=f"{', '.join(RECOMPUTE)}: activations computed again.", show_default="none", rich_help_panel=LAYOUT)
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of products: bf16, fp16, fp32 or fp8.", show_default="by GPU", rich_help_panel=LAYOUT)
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="The layouts that fit, fastest first.", rich_help_panel=LAYOUT)] = False,
    budget: Annotated[
        str | None, typer.Option(help="What so many dollars buy, size by size.", metavar="X", show_default=False, rich_help_panel=RUN)
    ] = None,
    hours: Annotated[str | None, typer.Option(help="What so many hours buy.", metavar="X", show_default=False, rich_help_panel=RUN)] = None,
    optimal: Annotated[
        str | None,
        typer.Option(help="The best size for so many FLOPs, by each law.", metavar="FLOPS", show_default=False, rich_help_panel=LAWS),
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit a law to the runs named.", rich_help_panel=LAWS)] = False,
    table: Annotated[bool, typer.Option("--table", help="Every size of the papers, a row each.", rich_help_panel=OUTPUT)] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Every formula with its numbers, every constant with its source.", rich_help_panel=OUTPUT)
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Tables in Markdown.", rich_help_panel=OUTPUT)] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """What a model takes: parameters, FLOPs, memory, GPU-years and dollars.

    \b
    Examples:
      gpt cost --size 1.3B --gpu a100 --gpus 64 --plan
      gpt cost --flops 3.14e23 --gpu v100 --tflops 28 --price 1.5
    """
    said = {name: value for name, value in locals().items() if value is not None and value is not False and value != []}
    asked = question(said)
    if asked == "fit":
        from gptcli.cost.lawfit import fit_law

        found = [read_run(path) for path in runs or []]
        fitted = fit_law(found)
        print_json("cost", asdict(fitted) | {"runs": [asdict(run) for run in found]}) if json else print_fit(
            fitted, found, markdown=markdown
        )
        return
    if asked == "optimal":
        report = optimal_report(positive("--optimal", optimal) or 0.0)
        print_json("cost", report) if json else print_optimal(report, markdown=markdown)
        return
    terms = Terms(said)
    if asked in ("table", "budget", "hours"):
        every = [_training(model.name, ModelConfig.from_paper(model), tokens, _usual(model.paper), terms) for model in MODELS]
        if asked == "table" and json:
            print_json("cost", {"sizes": [estimate.as_dict() for estimate in every]})
        elif asked == "table":
            print_sizes(every, explain=explain, markdown=markdown)
        else:
            _budget(every, positive("--budget", budget), positive("--hours", hours), as_json=json, markdown=markdown)
        return
    if asked == "flops":
        amount = positive("--flops", flops) or 0.0
        estimate = Estimate(f"{short(amount)} FLOP", amount, terms.fleet(None)[0])
    else:
        name, model, usual = _model(said)
        if asked == "plan":
            _plans(name, model, terms, size, as_json=json, markdown=markdown)
            return
        estimate = _training(name, model, tokens, usual, terms)
    if json:
        print_json("cost", estimate.as_dict())
    else:
        rank = rank_rows(estimate.plan, estimate.model, terms.gpu) if layout and estimate.plan and estimate.model else []
        print_estimate(estimate, brief=flops is not None, explain=explain, markdown=markdown, rank=rank)


def _model(said: dict[str, Any]) -> tuple[str, ModelConfig, tuple[int, str]]:
    """The model in question: its name, its shape, and the tokens it is usually trained on with where that is from."""
    shape = {name: said[name] for name in SHAPE if name in said}
    size, runs = said.get("size"), said.get("runs", [])
    if runs:
        if len(runs) > 1 or size or shape:
            raise UsageError(
                "a run folder is a model of its own", hint="name one run, and neither --size nor a shape; --fit takes several runs"
            )
        run = read_run(runs[0])
        return str(runs[0]), read_model_config(runs[0]), (run.tokens, "trained, by its metrics.jsonl")
    if size is None and shape:
        if missing := [option(name) for name in ("n_layer", "n_head", "d_model") if name not in shape]:
            raise UsageError(
                f"a model of your own needs {' and '.join(missing)} too",
                hint="or name a --size to start from, and change what you like",
            )
        return "custom", ModelConfig(**{"n_ctx": DEFAULT_N_CTX, **shape}), (GPT3_TRAINING.tokens, "assumed: as many as GPT-3")
    paper = find_size(size or DEFAULT_SIZE)
    return paper.name + (", changed" if shape else ""), ModelConfig.from_paper(paper, **shape), _usual(paper.paper)


def _usual(paper: str) -> tuple[int, str]:
    return TRAINING[paper].tokens, TOKENS_SOURCE[paper]


def _training(name: str, model: ModelConfig, tokens: str | None, usual: tuple[int, str], terms: Terms) -> Estimate:
    """The bill of training `model` on `tokens`, or on its usual ones."""
    n, source = usual if tokens is None else (whole("--tokens", tokens), USER)
    fleet, plan = terms.fleet(model)
    return price_training(name, model, n, fleet, tokens_source=source, plan=plan)


def _plans(name: str, model: ModelConfig, terms: Terms, size: str | None, *, as_json: bool, markdown: bool) -> None:
    if terms.gpu is None:
        raise UsageError("--plan needs a GPU", hint="name it with --gpu")
    found = plans(model, terms.gpu, terms.count, batch_sequences(model), terms.precision, most=PLANS_SHOWN)
    if not found:
        raise UsageError(
            f"{name} fits no layout of {terms.count:,} {terms.gpu.name}", where="--plan", hint="more or larger GPUs, or a shorter --n-ctx"
        )
    if as_json:
        print_json("cost", {"name": name, "gpu": terms.gpu.name, "gpus": terms.count, "plans": [plan.as_dict() for plan in found]})
    else:
        print_plans(name, found, terms.gpu, size, markdown=markdown)


def _budget(estimates: list[Estimate], dollars: float | None, hours: float | None, *, as_json: bool, markdown: bool) -> None:
    fleet = estimates[0].fleet
    if dollars is not None and fleet.price is None:
        raise UsageError("nobody knows what an hour of this GPU costs", where="--budget", hint="say it with --price")
    found, gpu_hours = affordable(estimates, dollars=dollars, hours=hours)
    if as_json:
        print_json("cost", {"gpu_hours": gpu_hours, "sizes": [asdict(row) for row in found]})
    else:
        where = f"{fleet.count:,} {'GPU' if fleet.gpu is None else fleet.gpu.name}"
        print_affordable(found, gpu_hours, where, markdown=markdown)
