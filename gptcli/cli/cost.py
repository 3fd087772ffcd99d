"""`gpt cost`: what a model takes to train and to hold."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import typer.core

from gptcli.cli.config import count, quantity
from gptcli.cli.console import print_json
from gptcli.cli.cost_report import print_estimate, print_sizes, short
from gptcli.cost.assumptions import USER
from gptcli.cost.estimate import Estimate, Fleet, price_training
from gptcli.cost.hardware import find_gpu, gpu_names, hourly_price, throughput
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size, size_names
from gptcli.papers.models import MODELS
from gptcli.papers.training import GPT3_TRAINING, TRAINING

DEFAULT_SIZE = "gpt3"
DEFAULT_GPU = "v100"  # the cost article's, with its speed and its price
DEFAULT_N_CTX = 1024  # GPT-2's
TOKENS_SOURCE = {
    "GPT-3": "GPT-3, Table 2.1",
    "GPT-2": "assumed: GPT-2 prints none; one pass over its 40 GB of text at 4 characters a token",
}
NO_VALUE = "auto"  # what `--flops` means alone

MODEL, RUN, GPUS, OUTPUT = "Model", "Training run", "GPUs", "Output"


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
    gpus: Annotated[str, typer.Option(help="How many.", metavar="N", rich_help_panel=GPUS)] = "1",
    tflops: Annotated[
        str | None, typer.Option(help="TFLOP/s that one sustains. Without --gpu: of any GPU.", metavar="X", rich_help_panel=GPUS)
    ] = None,
    mfu: Annotated[
        str | None, typer.Option(help="The same, as a share of its peak.", show_default="by GPU", metavar="X", rich_help_panel=GPUS)
    ] = None,
    price: Annotated[
        str | None, typer.Option(help="Dollars an hour for one.", show_default="by GPU", metavar="X", rich_help_panel=GPUS)
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Every size of the papers, a row each.", rich_help_panel=OUTPUT)] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """What a model takes: parameters, FLOPs, memory, GPU-years and dollars.

    \b
    Examples:
      gpt cost --size 1.3B --gpu a100 --gpus 64
      gpt cost --flops 3.14e23 --gpu v100 --tflops 28 --price 1.5
    """
    shape = {
        "n_layer": n_layer, "n_head": n_head, "d_model": d_model, "n_ctx": n_ctx, "vocab_size": vocab_size, "attention": attention,
    }  # fmt: skip
    shape = {name: value for name, value in shape.items() if value is not None}
    run = [option for option, value in (("--size", size), *((_option(n), v) for n, v in shape.items())) if value is not None]
    budget = None if flops == NO_VALUE else _positive("--flops", flops)
    fleet = _fleet(gpu, gpus, tflops, mfu, price)
    if table:
        if run or flops is not None:
            raise UsageError(
                f"--table shows every size of the papers: it does not go with {(*run, '--flops')[0]}", hint="give one of the two"
            )
        estimates = [_training(model.name, {}, tokens, fleet) for model in MODELS]
        if json:
            print_json("cost", {"sizes": [estimate.as_dict() for estimate in estimates]})
        else:
            print_sizes(estimates)
        return
    if budget is None:
        estimate = _training(size, shape, tokens, fleet)
    elif run or tokens is not None:
        raise UsageError(
            f"--flops {flops} is a budget of its own: it does not go with {(*run, '--tokens')[0]}",
            hint="--flops without a number counts the FLOPs of a run",
        )
    else:
        estimate = Estimate(f"{short(budget)} FLOP", budget, fleet)
    if json:
        print_json("cost", estimate.as_dict())
    else:
        print_estimate(estimate, brief=flops is not None)


def _fleet(gpu: str | None, gpus: str, tflops: str | None, mfu: str | None, price: str | None) -> Fleet:
    """A GPU by its row, or, with `tflops` and no name, one known by its speed alone."""
    if gpu is None and tflops is None:
        gpu = DEFAULT_GPU
    row = None if gpu is None else find_gpu(gpu)
    speed = throughput(row, _positive("--tflops", tflops), _positive("--mfu", mfu))
    return Fleet(row, _whole("--gpus", gpus), speed, hourly_price(row, _positive("--price", price)))


def _training(size: str | None, shape: dict[str, Any], tokens: str | None, fleet: Fleet) -> Estimate:
    """The run that trains a paper's size, or a model of the user's own shape."""
    if size is None and shape:
        missing = [_option(name) for name in ("n_layer", "n_head", "d_model") if name not in shape]
        if missing:
            raise UsageError(
                f"a model of your own needs {' and '.join(missing)} too",
                hint="or name a --size to start from, and change what you like",
            )
        name, model = "custom", ModelConfig(**{"n_ctx": DEFAULT_N_CTX, **shape})
        default, source = GPT3_TRAINING.tokens, "assumed: as many as GPT-3"
    else:
        paper = find_size(size or DEFAULT_SIZE)
        name, model = paper.name + (", changed" if shape else ""), ModelConfig.from_paper(paper, **shape)
        default, source = TRAINING[paper.paper].tokens, TOKENS_SOURCE[paper.paper]
    if tokens is not None:
        return price_training(name, model, _whole("--tokens", tokens), fleet, tokens_source=USER)
    return price_training(name, model, default, fleet, tokens_source=source)


def _positive(option: str, text: str | None) -> float | None:
    """The number an option was given. Raises UsageError where it is no number, or not above zero."""
    if text is None:
        return None
    try:
        value = quantity(text.removeprefix("-"))
    except UsageError as error:
        raise UsageError(error.what, where=option, hint=error.hint) from None
    if text.startswith("-") or not 0 < value < float("inf"):
        raise UsageError(f"{text} is out of range", where=option, hint="give a number above zero")
    return value


def _whole(option: str, text: str) -> int:
    _positive(option, text)
    try:
        return count(text)
    except UsageError as error:
        raise UsageError(error.what, where=option, hint=error.hint) from None


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
