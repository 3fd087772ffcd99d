"""How the estimates of `gpt cost` look on a terminal of 80 columns. Drawn by hand: rich would take a fifth of the command's time."""

from __future__ import annotations

import os
import sys
import textwrap

import typer

from gptcli.cli.console import amount, duration
from gptcli.cost.assumptions import USER
from gptcli.cost.estimate import Estimate, Fleet
from gptcli.cost.flops import flops_per_token, inference_flops_per_token
from gptcli.cost.memory import least_gpus, memory_by_part
from gptcli.cost.parameters import parameters_by_part
from gptcli.model.config import ModelConfig

WIDTH = 80
MEMORY_ROWS = {  # part: what it is called, and what is in it
    "parameters": ("parameters", "fp32"),
    "gradients": ("gradients", "fp32"),
    "optimizer": ("optimizer", "Adam's two moments, fp32"),
    "training": ("all to train", ""),
    "inference_fp32": ("to run in fp32", ""),
    "inference_16bit": ("to run in 16 bits", ""),
    "kv_cache_per_token": ("KV cache, a token", "16 bits"),
    "kv_cache_per_context": ("KV cache, a context", "16 bits"),
}

Row = tuple[str, str, str]
"""A name, a figure and a remark. A name that is not indented heads a section."""


def print_estimate(estimate: Estimate, *, brief: bool) -> None:
    """The whole story of one estimate on stdout; brief, only from FLOPs to money."""
    model, tokens = estimate.model, estimate.tokens
    rows: list[Row] = []
    if model is None or tokens is None:
        title = estimate.name
        rows += [("Compute", "", ""), ("  FLOP", short(estimate.flops), "")]
    else:
        title = _title(estimate.name, model)
        rows += [] if brief else _parameters(model)
        rows += _training(model, tokens, brief)
    rows += [("  PF-days", _figure(estimate.pf_days), ""), *_time_and_money(estimate)]
    if model is not None and not brief:
        rows += _memory(model, estimate.fleet)
    _print_lines(title)
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, figure, remark in rows:
        line = f"{name:<{widths[0]}}  {figure:>{widths[1]}}"
        if name.startswith(" "):
            typer.echo((line + _style("  " + remark, dim=True)) if remark else line)
        else:
            typer.echo("\n" + _style(line.rstrip(), bold=True))
    _print_notes(estimate)


def print_sizes(estimates: list[Estimate]) -> None:
    """A row for each estimate of a training run, all on the same fleet."""
    fleet = estimates[0].fleet
    rows = [["size", "params", "tokens", "FLOP", "PF-days", "GPU-years", "dollars", "to train", f"on {fleet.count:,}"]]
    for estimate in estimates:
        report = estimate.as_dict()
        rows.append([
            estimate.name, amount(report["parameters"]), amount(report["tokens"]), short(estimate.flops), _figure(estimate.pf_days, 3),
            _figure(estimate.gpu_years, 3), _dollars(estimate.dollars), _bytes(report["memory_bytes"]["training"]),
            f"{_figure(estimate.days, 3)} d",
        ])  # fmt: skip
    _print_lines(f"{'GPU' if fleet.gpu is None else fleet.gpu.name} at {_figure(fleet.flops / 1e12)} TFLOP/s; FLOP by 6ND")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        line = " ".join([f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))])
        typer.echo(_style(line, bold=number == 0))
    _print_notes(estimates[0])


def _title(name: str, model: ModelConfig) -> str:
    heads = f"{model.n_head} heads of {model.d_head}"
    return f"{name}: {model.n_layer} layers, {heads}, width {model.d_model}, context {model.n_ctx}, {model.attention}"


def _parameters(model: ModelConfig) -> list[Row]:
    rows = [("Parameters", f"{model.parameters:,}", "")]
    for part, n in parameters_by_part(model).items():
        rows.append((f"  {part}", f"{n:,}", f"{n / model.parameters:.1%}" if n else "tied to the embeddings"))
    return rows


def _training(model: ModelConfig, tokens: int, brief: bool) -> list[Row]:
    paper, palm, causal = (flops_per_token(model, convention) for convention in ("6N", "palm", "causal"))
    banded = f"; bands of {model.band}, ours" if model.attention == "banded" else ""
    rows = [
        (f"Training on {amount(tokens)} tokens", "", ""),
        ("  tokens per parameter", _figure(tokens / model.parameters), ""),
        ("  FLOP, 6ND", short(paper * tokens), "the papers' way; priced below"),
        ("  FLOP, PaLM", short(palm * tokens), f"with all of attention, {1 - paper / palm:.1%}"),
        ("  FLOP, causal", short(causal * tokens), f"as computed{banded}"),
        ("  FLOP, one token read", short(inference_flops_per_token(model)), "inference, 2N"),
    ]
    return rows[:3] if brief else rows


def _time_and_money(estimate: Estimate) -> list[Row]:
    fleet = estimate.fleet
    mfu = "no GPU named, so no MFU"
    if fleet.gpu is not None:
        mfu = f"MFU {fleet.mfu:.1%} of {fleet.gpu.peak_flops / 1e12:g} {'bf16' if fleet.gpu.bf16 else 'fp16'}, dense"
    price = "unknown: give one with --price" if fleet.price is None else f"at ${fleet.price.value:.2f} an hour"
    days = f"{_figure(estimate.days)} days" if estimate.days >= 10 else duration(estimate.days * 86400)
    return [
        (f"Time and money on {'a GPU of your own' if fleet.gpu is None else fleet.gpu.name}", "", ""),
        ("  TFLOP/s, sustained", _figure(fleet.flops / 1e12), mfu),
        ("  GPU-years", _figure(estimate.gpu_years), "of 365 days"),
        ("  GPU-hours", _figure(estimate.gpu_hours), ""),
        ("  dollars", _dollars(estimate.dollars), price),
        (f"  on {_gpus(fleet)}", days, ""),
    ]


def _memory(model: ModelConfig, fleet: Fleet) -> list[Row]:
    rows = [("Memory, before activations", "", "")]
    for part, n_bytes in memory_by_part(model).items():
        label, remark = MEMORY_ROWS[part]
        rows.append((f"  {label}", _bytes(n_bytes), remark or _fit(n_bytes, fleet)))
    return rows


def _fit(n_bytes: int, fleet: Fleet) -> str:
    """Whether the fleet holds it, spread evenly."""
    if fleet.gpu is None:
        return ""
    least, each = least_gpus(n_bytes, fleet.gpu), f"{fleet.gpu.name} of {_bytes(fleet.gpu.memory_bytes)}"
    return f"fits {fleet.count:,} {each}" if least <= fleet.count else f"does not fit; takes {least:,} {each}"


def _gpus(fleet: Fleet) -> str:
    return f"{fleet.count:,} {'GPU' if fleet.gpu is None else fleet.gpu.name}"


def _print_notes(estimate: Estimate) -> None:
    """Where the assumptions that move the answer most are from, but for what the user said."""
    moving = [a for a in estimate.assumptions if a.name in ("tokens", "throughput", "price") and not a.source.endswith(USER)]
    if moving:
        typer.echo()
    for assumption in moving:
        date = f" ({assumption.date})" if assumption.date else ""
        _print_lines(f"{assumption.name}: {assumption.source}{date}", dim=True)


def _print_lines(text: str, **style: bool) -> None:
    for line in textwrap.wrap(text, WIDTH):
        typer.echo(_style(line, **style))


def _style(text: str, **style: bool) -> str:
    return typer.style(text, **style) if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def short(value: float) -> str:
    """3.14e23."""
    return f"{value:.2e}".replace("e+", "e")


def _figure(value: float, digits: int = 4) -> str:
    """27.41, 3,638, 0.002604."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.{digits}g}"


def _dollars(value: float | None) -> str:
    """$4.68M, $20,365, $12.30, or a dash."""
    if value is None:
        return "-"
    for size, suffix in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"${value / size:,.2f}{suffix}"
    return f"${value:,.0f}" if value >= 100 else f"${value:.2f}"


def _bytes(value: int) -> str:
    """698 GB, 36.9 kB; powers of 1,000."""
    for size, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:,.3g} {suffix}"
    return f"{value} B"
