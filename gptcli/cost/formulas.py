"""Formulas of an estimate with its numbers filled in, which `gpt cost --explain` prints."""

from __future__ import annotations

from gptcli.cost.estimate import Estimate
from gptcli.cost.inference import inference
from gptcli.cost.memory import kv_cache_per_token
from gptcli.numbers import (
    ENERGY,
    MASS,
    MIN_SHOWN,
    dollars,
    figure,
    gpu_unit,
    in_bytes,
    percent,
    scaled,
    short,
)


def formulas(estimate: Estimate) -> list[str]:
    """Return the formulas of the estimate with its numbers filled in, one per line."""
    return [*_flops_formulas(estimate), *_time_formulas(estimate), *_memory_formulas(estimate)]


def _flops_formulas(estimate: Estimate) -> list[str]:
    model, tokens, N = estimate.model, estimate.tokens, estimate.parameters
    lines = []
    if N is not None and tokens is not None:
        if model is not None:
            L, C, V, T = model.n_layer, model.d_model, model.vocab_size, model.n_ctx
            lines.append(
                f"parameters N = 12·L·C² + 13·L·C + (V + T)·C + 2·C = {N:,} "
                f"with L {L}, C {C}, V {V:,}, T {T:,}"
            )
        each = round(estimate.flops / N / tokens)
        lines.append(f"FLOP = {each}·N·D = {each} x {N:,} x {tokens:,} = {short(estimate.flops)}")
    if estimate.pf_days >= MIN_SHOWN:
        lines.append(f"PF-days = FLOP / 8.64e19 = {figure(estimate.pf_days)}")
    return lines


def _time_formulas(estimate: Estimate) -> list[str]:
    cluster = estimate.cluster
    goodput = "" if cluster.goodput is None else f" x goodput {cluster.goodput.value:g}"
    size, unit = gpu_unit(estimate.gpu_hours)
    per_hour = " / 3,600" if unit == "GPU-hours" else ""
    lines = [
        f"{unit if per_hour else 'GPU time'} = "
        f"FLOP / (throughput{' x goodput' if goodput else ''}){per_hour} = "
        f"{short(estimate.flops)} / ({short(cluster.throughput.value)}{goodput}){per_hour} = "
        f"{figure(estimate.gpu_hours * 3600 / size)}{'' if per_hour else f' {unit}'}"
    ]
    if cluster.gpu is not None and cluster.mfu is not None:
        peak = f"{short(cluster.throughput.value)} / {short(cluster.gpu.peak_flops)}"
        lines.append(f"MFU = throughput / peak = {peak} = {percent(cluster.mfu)}")
    if estimate.gpu_years >= MIN_SHOWN:
        lines.append(f"GPU-years = GPU-hours / 8,760 = {figure(estimate.gpu_years)}")
    if cluster.price is not None:
        lines.append(f"dollars = GPU-hours x {cluster.price.value:g} = {dollars(estimate.dollars)}")
    if estimate.days >= MIN_SHOWN:
        lines.append(f"days = GPU-hours / {cluster.count:,} / 24 = {figure(estimate.days)}")
    if (used := estimate.energy) is not None:
        watts, server, building, co2 = (a.value for a in used.assumptions)
        drawn, emitted = scaled(used.kwh * 1000, ENERGY), scaled(used.co2_kg * 1000, MASS)
        lines.append(
            f"energy = GPU-hours x {watts:g} W x {server:g} x {building:g} = {drawn}; "
            f"CO2e = kWh x {co2:g} kg = {emitted}"
        )
    return lines


def _memory_formulas(estimate: Estimate) -> list[str]:
    model, cluster, N = estimate.model, estimate.cluster, estimate.parameters
    lines = [] if N is None else [f"training state = (4 + 4 + 8 bytes)·N = {in_bytes(16 * N)}"]
    if model is None:
        return lines
    run = inference(model, cluster.gpu)
    lines.append(f"KV cache a token = 2·L·C x 2 bytes = {kv_cache_per_token(model):,} bytes")
    lines.append(f"bytes to decode a token = 2·N + T x KV cache = {in_bytes(run.decode_bytes)}")
    if run.tokens_per_second is not None and cluster.gpu is not None:
        speed = f"{run.gpus} x {short(cluster.gpu.bandwidth)} / {short(run.decode_bytes)}"
        lines.append(
            f"decoding, at most = GPUs x bandwidth / bytes = {speed} = "
            f"{figure(run.tokens_per_second, 3)} tokens/s"
        )
    return lines
