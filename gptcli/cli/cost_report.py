"""How the estimates of `gpt cost` read."""

from __future__ import annotations

from collections.abc import Callable

import typer

from gptcli.cli.cost_sheet import Row, print_lines, print_rows, print_table
from gptcli.cost.estimate import Cluster, Estimate
from gptcli.cost.flops import parameters_by_part
from gptcli.cost.hardware import USER
from gptcli.cost.inference import inference
from gptcli.cost.memory import kv_cache_per_token, memory_by_part, min_gpus
from gptcli.cost.scaling import RANGES, predicted_losses
from gptcli.model.config import ModelConfig
from gptcli.numbers import (
    ENERGY,
    GPU_TIME,
    LEAST,
    MASS,
    SPEED,
    TIME,
    amount,
    dollars,
    duration,
    figure,
    gpu_unit,
    in_bytes,
    percent,
    scaled,
    short,
    unit_for,
)  # fmt: skip

LAW_REMARKS = {
    "kaplan": "Kaplan et al. 2020",
    "gpt3": "GPT-3, figure 3.1: by compute",
    "chinchilla": "Hoffmann et al. 2022, as printed",
    "chinchilla-refit": "Besiroglu et al. 2024",
}
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


def print_estimate(
    estimate: Estimate,
    *,
    brief: bool,
    explain: bool,
    markdown: bool,
    rank: list[Row],
    assumed: str = "",
) -> None:
    """The whole story of one estimate on stdout; brief, only from FLOPs to money. `rank` tells of
    the memory of a rank; `assumed` says why it is this GPU, if the user named none."""
    model, tokens, parameters = estimate.model, estimate.tokens, estimate.parameters
    title = estimate.name if model is None else _title(estimate.name, model)
    rows: list[Row] = []
    if tokens is None:
        rows += [("Compute", "", ""), ("  FLOP", short(estimate.flops), "")]
    elif model is None:
        rows += [("Parameters", f"{parameters:,}", "as printed; its shape is not ours")]
        rows += _work(estimate, tokens)
    else:
        rows += [] if brief else _parameters(model)
        rows += (
            _work(estimate, tokens)[:3] if brief else _work(estimate, tokens) + _attention(estimate)
        )
    rows += [("  PF-days", figure(estimate.pf_days), "")] if estimate.pf_days >= LEAST else []
    rows += _time_and_money(estimate, assumed=assumed)
    if not brief and parameters is not None:
        rows += [] if model is None or tokens is None else _losses(model, tokens)
        rows += _memory(parameters, model, estimate.cluster)
        rows += [] if model is None else _running(model, estimate.cluster)
    print_rows(title, [*rows, *rank], markdown=markdown)
    print_notes(estimate, explain=explain)


def print_sizes(
    estimates: list[Estimate], *, explain: bool, markdown: bool, assumed: str = ""
) -> None:
    """A row for each estimate of a training run, all on the same cluster."""
    cluster = estimates[0].cluster
    size, unit = unit_for(min(estimate.gpu_hours for estimate in estimates) * 3600, GPU_TIME, LEAST)
    rows = [
        [
            "size",
            "params",
            "tokens",
            "FLOP",
            "PF-days",
            unit,
            "dollars",
            "to train",
            f"on {cluster.count:,}",
        ]
    ]
    for estimate in estimates:
        report = estimate.as_dict()
        rows.append([
            estimate.name, amount(report["parameters"]), amount(report["tokens"]), short(estimate.flops), figure(estimate.pf_days, 3),
            figure(estimate.gpu_hours * 3600 / size, 3), dollars(estimate.dollars), in_bytes(report["memory_bytes"]["training"]),
            scaled(estimate.days * 86400, TIME, 3),
        ])  # fmt: skip
    print_lines(f"{_gpu(cluster)}{f', {assumed}' if assumed else ''}; FLOP by 6ND, of T5 by 3ND")
    print_table(rows, markdown=markdown)
    print_notes(estimates[0], explain=explain)


def _title(name: str, model: ModelConfig) -> str:
    heads = f"{model.n_head} heads of {model.d_head}"
    return f"{name}: {model.n_layer} layers, {heads}, width {model.d_model}, context {model.n_ctx}, {model.attention}"


def _parameters(model: ModelConfig) -> list[Row]:
    rows = [("Parameters", f"{model.parameters:,}", "")]
    for part, n in parameters_by_part(model).items():
        rows.append(
            (
                f"  {part}",
                f"{n:,}",
                percent(n / model.parameters) if n else "tied to the embeddings",
            )
        )
    return rows


def _work(estimate: Estimate, tokens: int) -> list[Row]:
    assert estimate.parameters is not None
    each = round(estimate.flops / estimate.parameters / tokens)
    return [
        (f"Training on {amount(tokens)} tokens", "", ""),
        ("  tokens per parameter", figure(tokens / estimate.parameters), ""),
        (f"  FLOP, {each}ND", short(estimate.flops), "the papers' way; priced below"),
    ]


def _attention(estimate: Estimate) -> list[Row]:
    """The same by conventions that count attention."""
    model, counts = estimate.model, estimate.flops_by_convention
    assert model is not None
    assert counts is not None
    banded = f"; bands of {model.band}, ours" if model.attention == "banded" else ""
    return [
        (
            "  FLOP, PaLM",
            short(counts["palm"]),
            f"with all of attention, {percent(1 - counts['6N'] / counts['palm'])}",
        ),
        ("  FLOP, causal", short(counts["causal"]), f"as computed{banded}"),
        (
            "  FLOP, Megatron",
            short(counts["megatron"]),
            f"{short(counts['megatron-recompute'])} with full recomputation",
        ),
    ]


def _time_and_money(estimate: Estimate, *, assumed: str) -> list[Row]:
    cluster, energy = estimate.cluster, estimate.energy
    mfu = "no GPU named, so no MFU"
    if cluster.gpu is not None and cluster.mfu is not None:
        mfu = f"MFU {percent(cluster.mfu)} of {cluster.gpu.peak_flops / 1e12:g} {'bf16' if cluster.gpu.bf16 else 'fp16'}, dense"
    price = (
        "unknown: give one with --price"
        if cluster.price is None
        else f"{dollars(cluster.price.value)} an hour{_between(estimate, estimate.dollars, dollars)}"
    )
    days = (
        f"{figure(estimate.days)} days" if estimate.days >= 10 else duration(estimate.days * 86400)
    )
    rows = [
        (
            f"Time and money on {'a GPU of your own' if cluster.gpu is None else cluster.gpu.name}",
            "",
            assumed,
        )
    ]
    size, unit = unit_for(cluster.throughput.value, SPEED)
    rows.append((f"  {unit}, sustained", figure(cluster.throughput.value / size), mfu))
    if cluster.goodput is not None:
        rows.append(("  goodput", percent(cluster.goodput.value, 0), "of the time it trains"))
    if estimate.gpu_years >= LEAST:
        rows.append(("  GPU-years", figure(estimate.gpu_years), "of 365 days"))
    seconds, (size, unit) = estimate.gpu_hours * 3600, gpu_unit(estimate.gpu_hours)
    between = _between(estimate, seconds, lambda value: figure(value / size)).removeprefix(", ")
    rows += [
        (f"  {unit}", figure(seconds / size), between),
        ("  dollars", dollars(estimate.dollars), price),
        (f"  on {cluster.count:,} {_gpu(cluster)}", days, ""),
    ]
    if energy is not None:
        rows.append(
            (
                "  energy",
                scaled(energy.kwh * 1000, ENERGY),
                f"{scaled(energy.co2_kg * 1000, MASS)} of CO2e",
            )
        )
    return rows


def _between(estimate: Estimate, value: float | None, write: Callable[[float], str]) -> str:
    low_high = estimate.between(value)
    return (
        ""
        if low_high is None or estimate.cluster.uncertainty_factor == 1
        else f", {write(low_high[0])} to {write(low_high[1])}"
    )


def _losses(model: ModelConfig, tokens: int) -> list[Row]:
    rows: list[Row] = [("Loss, predicted", "", "nats a token of their text")]
    for law, loss in predicted_losses(model, tokens).items():
        rows.append(
            (f"  {law}", "outside", f"range {RANGES[law]}")
            if loss is None
            else (f"  {law}", f"{loss:.3f}", LAW_REMARKS[law])
        )
    return rows


def _memory(parameters: int, model: ModelConfig | None, cluster: Cluster) -> list[Row]:
    rows = [("Memory, before activations", "", "")]
    for part, n_bytes in memory_by_part(parameters, model).items():
        label, remark = MEMORY_ROWS[part]
        rows.append((f"  {label}", in_bytes(n_bytes), remark or _fit(n_bytes, cluster)))
    return rows


def _fit(n_bytes: int, cluster: Cluster) -> str:
    """Whether the cluster holds it, spread evenly."""
    if cluster.memory_bytes is None:
        return ""
    least, each = (
        min_gpus(n_bytes, cluster.memory_bytes),
        f"{_gpu(cluster)} of {in_bytes(cluster.memory_bytes)}",
    )
    return f"fits {cluster.count:,} {each}" if least <= cluster.count else f"needs {least:,} {each}"


def _running(model: ModelConfig, cluster: Cluster) -> list[Row]:
    """Inference in 16 bits, a sequence of a whole context."""
    run = inference(model, cluster.gpu)
    prefill = decode = ""
    if (
        run.gpus is not None
        and run.prefill_seconds is not None
        and run.tokens_per_second is not None
    ):
        where = f"{run.gpus:,} {_gpu(cluster)}"
        prefill = f"{scaled(run.prefill_seconds, TIME[3:], 2)} at least, on {where}"
        decode = f"{figure(run.tokens_per_second, 3)} tokens/s at most, on {where}"
    return [
        ("To run a context", "", f"of {model.n_ctx:,} tokens, in 16 bits"),
        ("  FLOP to read it", short(run.prefill_flops), prefill),
        ("  FLOP, next token", short(run.decode_flops), "2N and attention"),
        ("  bytes, next token", in_bytes(run.decode_bytes), decode),
    ]


def _gpu(cluster: Cluster) -> str:
    return "GPU" if cluster.gpu is None else cluster.gpu.name


def print_notes(estimate: Estimate, *, explain: bool) -> None:
    """Where the assumptions that move the answer most are from, but for what the user said; to
    `explain`, every one and the formulas.
    """
    if explain:
        typer.echo()
        for line in formulas(estimate):
            print_lines(line)
        typer.echo()
        for a in estimate.assumptions:
            where = ", ".join(part for part in (a.date, a.url) if part)
            print_lines(
                f"{a.name} = {a.value:.6g} {a.unit}: {a.source}{f' ({where})' if where else ''}"
            )
        for law, within in RANGES.items() if estimate.model is not None else ():
            print_lines(f"{law} holds for {within}: {within.source}")
        return
    moving = [
        a
        for a in estimate.assumptions
        if a.name in ("tokens", "throughput", "goodput", "price") and not a.source.endswith(USER)
    ]
    if moving:
        typer.echo()
    for assumption in moving:
        date = f" ({assumption.date})" if assumption.date else ""
        print_lines(f"{assumption.name}: {assumption.source}{date}", dim=True)


def formulas(estimate: Estimate) -> list[str]:
    """How the figures come about, with the numbers put in."""
    model, tokens, cluster, N = (
        estimate.model,
        estimate.tokens,
        estimate.cluster,
        estimate.parameters,
    )
    lines = []
    if N is not None and tokens is not None:
        if model is not None:
            L, C, V, T = model.n_layer, model.d_model, model.vocab_size, model.n_ctx
            lines.append(
                f"parameters N = 12·L·C² + 13·L·C + (V + T)·C + 2·C = {N:,} with L {L}, C {C}, V {V:,}, T {T:,}"
            )
        each = round(estimate.flops / N / tokens)
        lines.append(f"FLOP = {each}·N·D = {each} x {N:,} x {tokens:,} = {short(estimate.flops)}")
    if estimate.pf_days >= LEAST:
        lines.append(f"PF-days = FLOP / 8.64e19 = {figure(estimate.pf_days)}")
    share = "" if cluster.goodput is None else f" x goodput {cluster.goodput.value:g}"
    size, unit = gpu_unit(estimate.gpu_hours)
    hours = unit == "GPU-hours"
    lines.append(
        f"{unit if hours else 'GPU time'} = FLOP / (throughput{' x goodput' if share else ''}){' / 3,600' if hours else ''} = "
        f"{short(estimate.flops)} / ({short(cluster.throughput.value)}{share}){' / 3,600' if hours else ''} = "
        f"{figure(estimate.gpu_hours * 3600 / size)}{'' if hours else f' {unit}'}"
    )
    if cluster.gpu is not None and cluster.mfu is not None:
        peak = f"{short(cluster.throughput.value)} / {short(cluster.gpu.peak_flops)}"
        lines.append(f"MFU = throughput / peak = {peak} = {percent(cluster.mfu)}")
    if estimate.gpu_years >= LEAST:
        lines.append(f"GPU-years = GPU-hours / 8,760 = {figure(estimate.gpu_years)}")
    if cluster.price is not None:
        lines.append(f"dollars = GPU-hours x {cluster.price.value:g} = {dollars(estimate.dollars)}")
    if estimate.days >= LEAST:
        lines.append(f"days = GPU-hours / {cluster.count:,} / 24 = {figure(estimate.days)}")
    if (used := estimate.energy) is not None:
        watts, server, building, co2 = (a.value for a in used.assumptions)
        drawn, emitted = scaled(used.kwh * 1000, ENERGY), scaled(used.co2_kg * 1000, MASS)
        lines.append(
            f"energy = GPU-hours x {watts:g} W x {server:g} x {building:g} = {drawn}; CO2e = kWh x {co2:g} kg = {emitted}"
        )
    if N is not None:
        lines.append(f"training state = (4 + 4 + 8 bytes)·N = {in_bytes(16 * N)}")
    if model is not None:
        run = inference(model, cluster.gpu)
        lines.append(f"KV cache a token = 2·L·C x 2 bytes = {kv_cache_per_token(model):,} bytes")
        lines.append(f"bytes to decode a token = 2·N + T x KV cache = {in_bytes(run.decode_bytes)}")
        if run.tokens_per_second is not None and cluster.gpu is not None:
            speed = f"{run.gpus} x {short(cluster.gpu.bandwidth)} / {short(run.decode_bytes)}"
            lines.append(
                f"decoding, at most = GPUs x bandwidth / bytes = {speed} = {figure(run.tokens_per_second, 3)} tokens/s"
            )
    return lines
