"""GPUs and the throughput that they sustain, from hardware.toml.

A figure that is not listed is unknown, never guessed.
"""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from gptcli.errors import UsageError, close_to, nearest

Precision = Literal["bf16", "fp32", "fp16", "fp8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Precisions of matrix products."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A row of hardware.toml."""

    name: str
    aliases: tuple[str, ...]
    family: str
    """Generation of its matrix units, such as "hopper": throughput.toml has the measured ones."""
    device_names: tuple[str, ...]
    """Names that CUDA reports, without a leading "NVIDIA "."""
    peak_flops: float
    """Peak of dense products per second in bf16, or in fp16 if `bf16` is false."""
    fp32_flops: float | None
    """Peak per second outside the tensor cores; None if the vendor does not print it."""
    bf16: bool
    """The GPU computes in bf16."""
    memory_bytes: int
    """Memory as sold, GB = 1e9 bytes."""
    bandwidth: float
    """Bandwidth of its memory, in bytes per second."""
    fp8_flops: float | None
    """Peak of dense products per second in fp8; None if the GPU has no fp8."""
    link: float | None
    """Bytes per second to the other GPUs of its node, one way; None if unknown."""
    network: float | None
    """Bytes per second of its share of the network between nodes, one way; None if unknown."""
    watts: float | None
    """Power of the board at full load; None if unknown."""
    source: str
    url: str
    date: str
    node: int = 8
    """GPUs that `link` connects to each other."""


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """Return every row of hardware.toml."""
    return _gpus_with("")


@functools.cache
def _gpus_with(word: str) -> tuple[Gpu, ...]:
    """Return the rows of hardware.toml in which `word` occurs (see `read_rows`)."""
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
            node=row.get("node", 8),
        )
        for row in read_rows("hardware.toml", "gpu", word)
    )


def gpu_names() -> list[str]:
    """Return every name and alias."""
    return [name for gpu in gpus() for name in (gpu.name, *gpu.aliases)]


def find_gpu(name: str) -> Gpu:
    """Return the GPU of a name or alias, ignoring case and hyphens: "A100-80GB", "rtx 8000".

    Raises UsageError with the nearest names.
    """
    for gpu in _gpus_with(name):
        if _bare(name) in map(_bare, (gpu.name, *gpu.aliases)):
            return gpu
    hint = nearest(name, gpu_names(), lists="gpt cost --gpu list")
    if (several := re.fullmatch(r"(\d+)\s*[x×*]\s*(\S+)|(\S+)\s*[x×*]\s*(\d+)", name.lower())) and (
        close := close_to(several[2] or several[3], gpu_names())
    ):
        hint = f"{{option:gpu}} {close[0]} {{option:gpus}} {several[1] or several[4]}"
    raise UsageError(
        f"unknown GPU {name!r}",
        field="gpu",
        code="unknown_gpu",
        hint=f"{hint}\nfor a GPU that is not listed, give its speed and memory instead: "
        "{option:tflops} 28 {option:memory} 48",
    )


def identify_gpu(device_name: str) -> Gpu | None:
    """Return the GPU that `torch.cuda.get_device_name()` reports, or None if it has no row (a MIG
    slice, a PCIe V100, a laptop GPU).
    """
    bare = device_name.removeprefix("NVIDIA ")
    return next((gpu for gpu in gpus() if bare in gpu.device_names), None)


def usual_precision(gpu: Gpu) -> Precision:
    """Return the precision of matrix products that is used by default: bf16, or fp16 on a GPU
    without it.
    """
    return "bf16" if gpu.bf16 else "fp16"


def peak_flops(gpu: Gpu, precision: Precision) -> float:
    """Return the peak of dense products per second in `precision`.

    Raises UsageError if the GPU lacks it.
    """
    peaks: dict[Precision, float | None] = {
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
    gpu: Gpu | None,
    tflops: float | None = None,
    mfu: float | None = None,
    *,
    peak: float | None = None,
    published: bool = True,
) -> Assumption | None:
    """Return the FLOP/s that one GPU sustains: `tflops`, or `mfu` of its `peak`, or if `published` a
    figure of hardware.toml; None if there is none.

    `peak` is that of the precision; without it, of the GPU's row. All count 6N FLOPs per token.
    Raises UsageError for an impossible value, and without a GPU and without `tflops`.
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
    peak = gpu.peak_flops if peak is None else peak
    if tflops is not None:
        if tflops * 1e12 > peak:
            doubled = (
                "; twice the dense peak is the figure with sparsity"
                if tflops * 1e12 <= 2.01 * peak
                else ""
            )
            raise UsageError(
                f"{tflops:g} TFLOP/s is impossible on {gpu.name}: its dense peak is {peak / 1e12:g}",
                hint=f"trained models sustain a quarter to a half of the peak{doubled}",
            )
        return Assumption("throughput", tflops * 1e12, "FLOP/s per GPU", USER, "")
    if mfu is not None:
        return Assumption("throughput", mfu * peak, "FLOP/s per GPU", f"MFU {mfu:g} {USER}", "")
    if not published:
        return None
    for row in read_rows("hardware.toml", "sustained"):
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
    """Return the throughput that training runs of any kind have sustained, failures and pauses
    included, for FLOPs of an unknown model.
    """
    (default,) = read_rows("hardware.toml", "default_mfu")
    source = f"MFU {default['value']:g}: {default['source']}"
    return Assumption(
        "throughput", default["value"] * gpu.peak_flops, "FLOP/s per GPU", source, default["date"]
    )


def _scaled(row: dict[str, Any], key: str, unit: float) -> float | None:
    return row[key] * unit if key in row else None


@functools.cache
def read_table(name: str) -> dict[str, Any]:
    """Return one of the TOML files next to this module, parsed."""
    return tomllib.loads(_text(name))


def read_rows(name: str, section: str, word: str = "") -> list[dict[str, Any]]:
    """Return the tables [section] or [[section]] of a TOML file next to this module in which `word`
    occurs, ignoring case, spaces and hyphens; the other tables are not parsed, which takes longer.
    """
    word = _bare(word)
    parts = re.split(r"^(?=\[)", _text(name), flags=re.MULTILINE)
    found = []
    for part in parts:
        if part.startswith((f"[{section}]", f"[[{section}]]")) and word in _bare(part):
            row = tomllib.loads(part)[section]
            found += row if isinstance(row, list) else [row]
    return found


@functools.cache
def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _bare(name: str) -> str:
    return "".join(name.lower().replace("-", "").replace("_", "").split())


class Assumption(NamedTuple):
    """A constant that an estimate depends on, with its source; every estimate lists its own."""

    name: str
    value: float
    unit: str
    source: str
    date: str
    """Date of the source, ISO 8601; empty for a definition and for a value given by the user."""
    url: str = ""
    """Address of the source; empty for a paper that is named."""


USER = "given on the command line"
