"""Printed reports of `gpt cost`: estimates, tables of sizes, laws and what a budget buys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from gptcli.cli.console import (
    Row,
    print_json,
    print_lines,
    print_rows,
    print_table,
)
from gptcli.cli.options import option
from gptcli.cost.cluster import Affordable
from gptcli.cost.estimate import Estimate
from gptcli.cost.hardware import USER, gpus
from gptcli.cost.inference import inference
from gptcli.cost.memory import kv_cache_per_token
from gptcli.cost.prices import hourly_price
from gptcli.cost.report import estimate_rows, estimate_title, gpu_label, sizes_table
from gptcli.cost.scaling import CHINCHILLA, GPT3_RANGE, LAWS, RANGES
from gptcli.cost.step_time import Evidence, evidence
from gptcli.cost.target import evidence_note
from gptcli.numbers import (
    ENERGY,
    MASS,
    MIN_SHOWN,
    SPEED,
    amount,
    counted,
    dollars,
    figure,
    gpu_time,
    gpu_unit,
    in_bytes,
    percent,
    scaled,
    short,
)

if TYPE_CHECKING:
    from gptcli.cost.scaling_fit import FittedLaw, Prediction
    from gptcli.cost.scaling_forms import RunResult

SPEED_EVIDENCE: dict[Evidence, str] = {
    "measured": "measured",
    "family": "family's",
    "none": "assumed",
}
"""Whose share of the peak a GPU's predicted speed has, in a cell of a table."""


class OutputOptions(NamedTuple):
    """Form of the report, and the file of its plot."""

    json: bool
    markdown: bool
    explain: bool
    plot: Path | None


def print_estimate(
    estimate: Estimate,
    output: OutputOptions,
    *,
    brief: bool,
    rank: list[Row] | None = None,
    assumed: str = "",
) -> None:
    """Print an estimate; if `brief`, only FLOPs, time and money.

    `rank` is the memory of a rank; `assumed` is the note on a GPU that the user did not name.
    """
    rows = [*estimate_rows(estimate, brief=brief, assumed=assumed, spell=option), *(rank or [])]
    print_rows(estimate_title(estimate), rows, markdown=output.markdown)
    if estimate.notes:
        typer.echo()
    for note in estimate.notes:
        print_lines(f"note: {note}")
    print_sources(estimate, explain=output.explain)


def print_sizes(
    estimates: list[Estimate],
    output: OutputOptions,
    *,
    assumed: str = "",
    unfit: dict[str, int] | None = None,
) -> None:
    """Print a table of estimates, all on the same cluster; `unfit` has the fewest GPUs of those
    that do not fit.
    """
    cluster = estimates[0].cluster
    print_lines(
        f"{cluster.count:,} {gpu_label(cluster)}"
        + (f", {assumed}" if assumed else "")
        + "; FLOP by 6ND, of T5 by 3ND; memory to train, without activations"
        + ("; needs: GPUs that hold the size" if unfit else "")
    )
    if (
        cluster.gpu is not None
        and cluster.trainer is not None
        and (note := evidence_note(cluster.gpu))
    ):
        print_lines(f"note: {note}")
    print_table(sizes_table(estimates, unfit or {}), markdown=output.markdown)
    print_sources(estimates[0], explain=output.explain)


def print_gpus(output: OutputOptions) -> None:
    """Print the GPUs that --gpu names, with memory, peak, whose speeds the predicted ones rest on,
    price and other names.
    """
    rows: list[dict[str, Any]] = []
    for gpu in gpus():
        price = hourly_price(gpu)
        rows.append({
            "name": gpu.name,
            "aliases": list(gpu.aliases),
            "memory_bytes": gpu.memory_bytes,
            "peak_flops": gpu.peak_flops,
            "speed_evidence": evidence(gpu),
            "dollars_per_hour": None if price is None else price.value,
        })  # fmt: skip
    if output.json:
        print_json("cost", {"gpus": rows})
        return
    table = [["GPU", "memory", "peak", "speed", "$ per hour", "other names"]]
    table += [
        [row["name"], in_bytes(row["memory_bytes"]), scaled(row["peak_flops"], SPEED),
         SPEED_EVIDENCE[row["speed_evidence"]], dollars(row["dollars_per_hour"]), " ".join(row["aliases"])]
        for row in rows
    ]  # fmt: skip
    print_table(table, markdown=output.markdown)
    print_lines(
        "speed: measured in published runs on this GPU; that of its family; or assumed, the mean of "
        "all families",
        dim=True,
    )


def print_sources(estimate: Estimate, *, explain: bool) -> None:
    """Print the sources of the most important assumptions that the user did not set.

    With `explain`, print all formulas, and all assumptions with their sources.
    """
    if explain:
        typer.echo()
        for line in formulas(estimate):
            print_lines(line)
        typer.echo()
        for constant in estimate.assumptions:
            origin = ", ".join(part for part in (constant.date, constant.url) if part)
            line = f"{constant.name} = {constant.value:.6g} {constant.unit}: {constant.source}"
            print_lines(f"{line} ({origin})" if origin else line)
        for law, law_range in RANGES.items() if estimate.model is not None else ():
            print_lines(f"{law} holds for {law_range}: {law_range.source}")
        return
    important = [
        constant
        for constant in estimate.assumptions
        if constant.name in ("tokens", "batch", "throughput", "goodput", "price")
        and not constant.source.endswith(USER)
    ]
    if important:
        typer.echo()
    for constant in important:
        date = f" ({constant.date})" if constant.date else ""
        print_lines(f"{constant.name}: {constant.source}{date}", dim=True)


def print_optimal(report: dict[str, Any], *, markdown: bool) -> None:
    """Print the report of `optimal_report`."""
    flops = report["flops"]
    print_lines(f"Compute-optimal models for {short(flops)} FLOP, by 6ND")
    rows = [["law", "parameters", "tokens", "tokens/parameter", "loss"]]
    for row in report["optimal"]:
        if row["loss"] is not None:
            ratio = figure(row["tokens_per_parameter"], 3)
            sizes = [amount(row["parameters"]), amount(row["tokens"])]
            rows.append([row["law"], *sizes, ratio, f"{row['loss']:.3f}"])
    if len(rows) > 1:
        print_table(rows, markdown=markdown)
    outside = {law.name: law.range for law in LAWS if not law.range.holds_for(flops)}
    if report["gpt3_loss"] is None:
        outside["GPT-3's fit"] = GPT3_RANGE
    else:
        print_lines(
            f"GPT-3's fit of the compute frontier: loss {report['gpt3_loss']:.3f}, "
            f"critical batch {counted(report['critical_batch_tokens'], 'token', amount)}"
        )
    if report["best_batch_tokens"] is not None:
        print_lines(
            f"batch: {counted(report['best_batch_tokens'], 'token', amount)} by Kaplan et al. 2020"
        )
    for name, law_range in outside.items():
        print_lines(f"{name}: outside the law's range ({law_range.compute})")
    print_lines(
        "kaplan counts parameters without embeddings; each law's loss is in nats per token of "
        "its own text",
        dim=True,
    )


def print_affordable(
    sizes: list[Affordable],
    gpu_hours: float,
    cluster: str,
    *,
    markdown: bool,
    unfit: Sequence[str] = (),
    under_one_step: Sequence[str] = (),
) -> None:
    """Print the sizes that `gpu_hours` can train, with tokens and predicted loss, and the names of
    those that they cannot.
    """
    print_lines(f"{gpu_time(gpu_hours)} on {cluster}, lowest loss first")
    rows = [["size", "tokens", "loss"]]
    for size in sizes:
        loss = "outside" if size.loss is None else f"{size.loss:.3f}"
        rows.append([size.name, amount(size.tokens), loss])
    print_table(rows, markdown=markdown)
    print_lines("loss: by Chinchilla as printed, in nats per token of its own text", dim=True)
    if unfit:
        print_lines(f"too large for these GPUs: {', '.join(unfit)}", dim=True)
    if under_one_step:
        print_lines(f"less than one step: {', '.join(under_one_step)}", dim=True)
    if any(size.loss is None for size in sizes):
        print_lines(f"outside: not in the law's range ({CHINCHILLA.range})", dim=True)


def print_check(report: dict[str, Any], output: OutputOptions) -> None:
    """Print the report of `check_report`: a row per source and, with `explain`, per run."""
    names = ("source", "trainer", "runs", "median", "worst", "in range")
    rows = [[*names, "unseen", "worst", "in range"]]
    for score in report["sources"]:
        errors = [
            f"{score[name]:.0%}"
            for part in ("", "unseen_")
            for name in (f"{part}median", f"{part}worst", f"{part}in_range")
        ]
        trainer = score["trainer"] if score["source"] != "all" else ""
        rows.append([score["source"], trainer, str(score["runs"]), *errors])
    print_lines("Error of the predicted speed against the published one, by source")
    print_table(rows, markdown=output.markdown)
    print_lines("unseen: by constants that were fitted without the source", dim=True)
    print_lines("in range: share of the runs inside the printed range", dim=True)
    rows = [["source", "runs", "median", "worst", "above"]]
    for score in report["memory_sources"]:
        errors = [f"{score[name]:.1%}" for name in ("median", "worst", "above")]
        rows.append([score["source"], str(score["runs"]), *errors])
    print_lines("Error of the predicted memory against the measured one")
    print_table(rows, markdown=output.markdown)
    print_lines("above: most that a measured peak exceeds the prediction", dim=True)
    print_lines("--explain lists every run, --json has the sources' addresses", dim=True)
    if not output.explain:
        return
    rows = [["run", "published", "predicted", "error", "unseen"]]
    for run in report["runs"]:
        rows.append(
            [
                f"{run['source']}: {run['run']}",
                figure(run["tokens_per_second"]),
                figure(run["predicted"]),
                f"{run['error']:+.1%}",
                f"{run['unseen_error']:+.1%}",
            ]
        )
    print_table(rows, markdown=output.markdown)
    rows = [["run", "measured", "predicted", "error"]]
    for run in report["memory"]:
        rows.append(
            [
                f"{run['source']}: {run['run']}",
                in_bytes(run["bytes"]),
                in_bytes(run["predicted"]),
                f"{run['error']:+.1%}",
            ]
        )
    print_table(rows, markdown=output.markdown)


def print_fit(
    law: FittedLaw, runs: list[RunResult], predictions: list[Prediction], *, markdown: bool
) -> None:
    """Print a fitted law: its constants, its error on each run, and its predictions."""
    print_lines(
        f"{law.formula}, fitted to {counted(len(runs), 'run')}; root mean square error "
        f"{law.error:.2%}"
    )
    rows = [["", "value", "95 % from", "to"]]
    for name, value in law.values.items():
        low, high = law.intervals[name]
        rows.append([name, f"{value:.4g}", f"{low:.4g}", f"{high:.4g}"])
    print_table(rows, markdown=markdown)
    for other in law.others:
        print_lines(f"{other.formula}: root mean square error {other.error:.2%}", dim=True)
    for warning in law.warnings:
        print_lines(f"warning: {warning}")
    if law.outliers:
        print_lines(f"far from the law: {', '.join(law.outliers)}")
    rows = [["run", "parameters", "tokens", "loss", "law", "error"]]
    for run in runs:
        predicted = law.loss(run.parameters, run.tokens)
        losses = [f"{run.loss:.4f}", f"{predicted:.4f}", f"{predicted / run.loss - 1:+.2%}"]
        rows.append([run.name, amount(run.parameters), amount(run.tokens), *losses])
    print_table(rows, markdown=markdown)
    for one in predictions:
        low, high = one.interval
        measured = ""
        if one.measured is not None:
            measured = f"; measured {one.measured:.4f}, error of the law {one.error:+.2%}"
        print_lines(
            f"{one.name}, not used in the fit: {counted(one.parameters, 'parameter', amount)} on "
            f"{counted(one.tokens, 'token', amount)}: predicted {one.loss:.4f}, "
            f"95 % from {low:.4f} to {high:.4f}{measured}"
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
