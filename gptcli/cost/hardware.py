"""GPUs, what they sustain and what they cost, from hardware.toml and prices.toml. What is not
listed is unknown: never a guess.
"""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.cost.assumptions import USER, Assumption
from gptcli.errors import UsageError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    name: str
    aliases: tuple[str, ...]
    family: str
    """"ampere" or "hopper", whose speed is measured; empty elsewhere."""
    device_names: tuple[str, ...]
    """What CUDA calls it, without a leading "NVIDIA "."""
    peak_flops: float
    """Dense, per second, in bf16, or in fp16 where `bf16` is false."""
    fp32_flops: float | None
    """Outside the matrix units; None where the vendor prints none."""
    bf16: bool
    memory_bytes: int
    """As sold, GB = 1e9 bytes."""
    bandwidth: float
    """Of its memory, bytes per second."""
    fp8_flops: float | None
    """Dense, per second; None where it has no fp8."""
    link: float | None
    """Bytes per second to the other GPUs of its machine, one way; None where unknown."""
    network: float | None
    """Bytes per second of its share of the network between machines, one way; None where
    unknown.
    """
    watts: float | None
    """Of the board at full load."""
    source: str
    url: str
    date: str


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """Every GPU that has a row."""
    return tuple(
        Gpu(
            name=row["name"],
            family=row.get("family", ""),
            aliases=tuple(row.get("aliases", ())),
            device_names=tuple(row.get("device_names", ())),
            peak_flops=row["tflops"] * 1e12,
            fp32_flops=_scaled(row, "fp32_tflops", 1e12),
            fp8_flops=_scaled(row, "fp8_tflops", 1e12),
            bf16=row["bf16"],
            memory_bytes=row["memory_gb"] * 10**9,
            bandwidth=row["bandwidth_gb_s"] * 1e9,
            link=_scaled(row, "link_gb_s", 1e9),
            network=_scaled(row, "network_gb_s", 1e9),
            watts=_scaled(row, "watts", 1),
            source=row["source"],
            url=row["url"],
            date=row["date"],
        )
        for row in read_table("hardware.toml")["gpu"]
    )


def gpu_names() -> list[str]:
    """Every name and alias."""
    return [name for gpu in gpus() for name in (gpu.name, *gpu.aliases)]


def find_gpu(name: str) -> Gpu:
    """The row of a name or alias, whatever its case and hyphens: "A100-80GB", "rtx 8000". Raises
    UsageError with the nearest names.
    """
    for gpu in gpus():
        if _bare(name) in map(_bare, (gpu.name, *gpu.aliases)):
            return gpu
    raise UsageError(
        f"unknown GPU {name!r}",
        field="gpu",
        code="unknown_gpu",
        hint=f"{nearest(name, gpu_names())}\n  for one that is not listed, give its speed and memory "
        "instead: {option:tflops} 28 {option:memory} 48",
    )


def identify_gpu(device_name: str) -> Gpu | None:
    """The row of what `torch.cuda.get_device_name()` says; None where that is unknown (a MIG slice,
    a PCIe V100, a laptop's chip).
    """
    bare = device_name.removeprefix("NVIDIA ")
    return next((gpu for gpu in gpus() if bare in gpu.device_names), None)


def usual_precision(gpu: Gpu) -> str:
    """Of products, where nobody says."""
    return "bf16" if gpu.bf16 else "fp16"


def peak_flops(gpu: Gpu, precision: str) -> float:
    """Dense, per second, of products in `precision`. Raises UsageError where the GPU has none."""
    peaks = {
        "fp32": gpu.fp32_flops,
        "bf16": gpu.peak_flops if gpu.bf16 else None,
        "fp16": gpu.peak_flops,
        "fp8": gpu.fp8_flops,
    }
    peak = peaks[precision]
    if peak is None:
        has = ", ".join(name for name, value in peaks.items() if value is not None)
        raise UsageError(
            f"{gpu.name} has no {precision}",
            field="precision",
            code="no_peak_at_precision",
            hint=f"it has {has}",
        )
    return peak


def throughput(
    gpu: Gpu | None, tflops: float | None = None, mfu: float | None = None
) -> Assumption | None:
    """FLOP/s that one GPU sustains: `tflops`, or `mfu` of the peak, or a published figure of
    hardware.toml, or None where there is none.

    All count 6N FLOPs per token. Raises UsageError for what is impossible, and where there is
    neither a GPU nor `tflops`.
    """
    if tflops is not None and mfu is not None:
        raise UsageError(
            "{option:tflops} and {option:mfu} contradict each other",
            hint="MFU is TFLOP/s over the GPU's peak: give one",
        )
    if mfu is not None and not 0 < mfu <= 1:
        raise UsageError(
            f"MFU {mfu:g} is impossible: it is a share of the GPU's peak",
            hint="above 0 and at most 1: {option:mfu} 0.4 for 40 %",
        )
    if gpu is None:
        if tflops is None:
            raise UsageError(
                "no GPU and no speed",
                hint="name a GPU with {option:gpu}, or say what one sustains with {option:tflops}",
            )
        return Assumption("throughput", tflops * 1e12, "FLOP/s per GPU", USER, "")
    if tflops is not None:
        if tflops * 1e12 > gpu.peak_flops:
            doubled = (
                "; twice the dense peak is the figure with sparsity"
                if tflops * 1e12 <= 2.01 * gpu.peak_flops
                else ""
            )
            raise UsageError(
                f"{tflops:g} TFLOP/s is impossible on {gpu.name}: its dense peak is {gpu.peak_flops / 1e12:g}",
                hint=f"trained models sustain a quarter to a half of the peak{doubled}",
            )
        return Assumption("throughput", tflops * 1e12, "FLOP/s per GPU", USER, "")
    if mfu is not None:
        return Assumption(
            "throughput", mfu * gpu.peak_flops, "FLOP/s per GPU", f"MFU {mfu:g} {USER}", ""
        )
    table = read_table("hardware.toml")
    for row in table["sustained"]:
        if gpu.name in row["gpus"]:
            return Assumption(
                "throughput",
                row["tflops"] * 1e12,
                "FLOP/s per GPU",
                row["source"],
                row["date"],
                row["url"],
            )
    return None


def typical_throughput(gpu: Gpu) -> Assumption:
    """What training runs of any kind have sustained on average, failures and pauses counted in: for
    FLOPs of no known model.
    """
    default = read_table("hardware.toml")["default_mfu"]
    source = f"MFU {default['value']:g}: {default['source']}"
    return Assumption(
        "throughput", default["value"] * gpu.peak_flops, "FLOP/s per GPU", source, default["date"]
    )


def hourly_price(gpu: Gpu | None, price: float | None = None) -> Assumption | None:
    """Dollars for an hour of one GPU: `price`, or that of prices.toml, or None where nothing
    supports one.
    """
    if price is not None:
        return Assumption("price", price, "$ per GPU-hour", USER, "")
    for row in read_table("prices.toml")["price"]:
        if gpu is not None and gpu.name in row["gpus"]:
            return Assumption(
                "price",
                row["dollars_per_hour"],
                "$ per GPU-hour",
                row["source"],
                row["date"],
                row["url"],
            )
    return None


def _scaled(row: dict[str, Any], key: str, unit: float) -> float | None:
    return row[key] * unit if key in row else None


@functools.cache
def read_table(name: str) -> dict[str, Any]:
    """One of the TOML files beside this one."""
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _bare(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())
