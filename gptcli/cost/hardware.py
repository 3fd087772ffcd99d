"""GPUs, the throughput they sustain, their price and their energy, from hardware.toml and
prices.toml.

A figure that is not listed is unknown, never guessed.
"""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from gptcli.errors import InputError, UsageError, close_to, nearest

Precision = Literal["bf16", "fp32", "fp16", "fp8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Precisions of matrix products."""
OfferKind = Literal["on-demand", "spot", "reserved"]
OFFER_KINDS: tuple[OfferKind, ...] = get_args(OfferKind)
"""On demand; spot, which may be interrupted; reserved for months or years."""


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
    """Return the rows of hardware.toml in which `word` occurs, as `_bare` has it."""
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
    for gpu in _gpus_with(_bare(name)):
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

    `peak` is that of the precision; without it, of the GPU's row. All count 6N FLOPs per token. Raises UsageError for an impossible value, and without a GPU and
    without `tflops`.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A price of prices.toml, or of a user's file of such rows."""

    gpus: tuple[str, ...]
    """Names of the GPUs that are offered at this price."""
    dollars_per_hour: float
    """Price of one GPU."""
    kind: OfferKind = "on-demand"
    seller: str = ""
    source: str = ""
    url: str = ""
    date: str = ""


@functools.cache
def published_offers(gpu: str = "") -> tuple[Offer, ...]:
    """Return the offers of prices.toml, or those for the GPU of this name."""
    offers = (
        Offer(**{**row, "gpus": tuple(row["gpus"])})
        for row in read_rows("prices.toml", "offer", _bare(gpu))
    )
    return tuple(offer for offer in offers if not gpu or gpu in offer.gpus)


def offers_for(gpu: Gpu | None, own: tuple[Offer, ...] = ()) -> tuple[Offer, ...]:
    """Return the offers of a GPU: those of the user if there are any, or the published ones."""
    if gpu is None:
        return ()
    return tuple(offer for offer in own if gpu.name in offer.gpus) or published_offers(gpu.name)


def hourly_price(
    gpu: Gpu | None, price: float | None = None, own: tuple[Offer, ...] = ()
) -> Assumption | None:
    """Return the dollars per hour of one GPU: `price`, or the median of its offers on demand, or of
    another kind if there are none on demand; None without an offer.
    """
    if price is not None:
        return Assumption("price", price, "$ per GPU-hour", USER, "")
    offers = offers_for(gpu, own)
    for kind in OFFER_KINDS:
        if some := sorted((offer for offer in offers if offer.kind == kind), key=_dollars):
            break
    else:
        return None
    median = (
        some[(len(some) - 1) // 2].dollars_per_hour + some[len(some) // 2].dollars_per_hour
    ) / 2
    newest = max(some, key=lambda offer: offer.date)
    if len(some) == 1:
        what = ": ".join(part for part in (some[0].seller, some[0].source) if part)
        source = f"{spoken(kind)}: {what}"
    else:
        low, high = some[0].dollars_per_hour, some[-1].dollars_per_hour
        source = f"median of {len(some)} offers {spoken(kind)}, ${low:.2f} to ${high:.2f}"
    return Assumption("price", median, "$ per GPU-hour", source, newest.date, newest.url)


class PriceRange(NamedTuple):
    """Dollars per hour of one GPU, of one kind of offer."""

    kind: OfferKind
    low: float
    high: float
    offers: int
    """Number of offers."""


def price_ranges(offers: tuple[Offer, ...]) -> list[PriceRange]:
    """Return the range of each kind of offer that there is."""
    found = []
    for kind in OFFER_KINDS:
        if some := [_dollars(offer) for offer in offers if offer.kind == kind]:
            found.append(PriceRange(kind=kind, low=min(some), high=max(some), offers=len(some)))
    return found


def spoken(kind: OfferKind) -> str:
    """Return a kind of offer as a text says it."""
    return kind.replace("-", " ")


def _is_date(text: str) -> bool:
    """Return whether a text is empty, YYYY-MM or YYYY-MM-DD."""
    match = re.fullmatch(r"\d{4}-(\d\d)(?:-(\d\d))?|", text)
    return match is not None and all(
        part is None or 1 <= int(part) <= most
        for part, most in zip(match.groups(), (12, 31), strict=True)
    )


def _dollars(offer: Offer) -> float:
    return offer.dollars_per_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfferFile:
    offer: tuple[Offer, ...]


def read_offers(path: Path) -> tuple[Offer, ...]:
    """Return the prices of a TOML file of `[[offer]]` rows, like prices.toml.

    Raises InputError for a file that cannot be read, a row that is none, an unknown GPU, a price
    that is not above 0, or a date that is not YYYY-MM-DD.
    """
    # imported for this alone: `gpt cost` answers in a fraction of a second
    from gptcli.files import read_toml
    from gptcli.schema import read_table as read_schema
    from gptcli.settings import Number

    readers = {"dollars_per_hour": Number(0, 1e6, above=True)}
    rows = read_schema(_OfferFile, read_toml(path), path, readers=readers, may_be_empty=True).offer
    if not rows:
        raise InputError("no [[offer]]", where=path, hint="[[offer]] with gpus, dollars_per_hour")
    found = []
    for number, row in enumerate(rows):
        where = f"offer[{number}]"
        try:
            names = tuple(find_gpu(name).name for name in row.gpus)
        except UsageError as error:
            hint = (error.hint or "").partition("\n")[0]
            raise InputError(f"{where}.gpus: {error.what}", where=path, hint=hint) from None
        if not names:
            raise InputError(f"{where}.gpus: is empty", where=path, hint='gpus = ["h100"]')
        if not _is_date(row.date):
            raise InputError(
                f"{where}.date: {row.date!r} is no date", where=path, hint='date = "2026-11-30"'
            )
        found.append(replace(row, gpus=names, source=row.source or str(path)))
    return tuple(found)


def _scaled(row: dict[str, Any], key: str, unit: float) -> float | None:
    return row[key] * unit if key in row else None


@functools.cache
def read_table(name: str) -> dict[str, Any]:
    """Return one of the TOML files next to this module, parsed."""
    return tomllib.loads(_text(name))


def read_rows(name: str, section: str, word: str = "") -> list[dict[str, Any]]:
    """Return the tables [section] or [[section]] of a TOML file next to this module in which `word`
    occurs, as `_bare` has it; the other tables are not parsed.
    """
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


class Energy(NamedTuple):
    """Energy and emissions of a number of GPU-hours."""

    kwh: float
    co2_kg: float
    assumptions: tuple[Assumption, ...]


def energy(
    gpu: Gpu | None,
    gpu_hours: float,
    *,
    server: float | None = None,
    pue: float | None = None,
    carbon: float | None = None,
) -> Energy | None:
    """Return the energy of `gpu_hours` at full load, with servers and building, and its CO2.

    `server` is the power of a server's share over that of the board, `pue` the building's over the
    servers', `carbon` the kg of CO2e per kWh; None takes the row of prices.toml. Returns None if the
    power of the board is unknown.
    """
    if gpu is None or gpu.watts is None:
        return None
    (table,) = read_rows("prices.toml", "energy")
    known = (table["source"], table["date"], table["url"])
    factors = [
        (table[key], *known) if given is None else (given, USER, "", "")
        for key, given in (("server", server), ("building", pue), ("kg_co2_per_kwh", carbon))
    ]
    kwh = gpu_hours * gpu.watts / 1000 * factors[0][0] * factors[1][0]
    names = (
        ("server power", "x board"),
        ("building power", "x server"),
        ("emissions", "kg CO2e per kWh"),
    )
    return Energy(
        kwh,
        kwh * factors[2][0],
        (
            Assumption(
                "board power", gpu.watts, "watts", f"{gpu.name}: {gpu.source}", gpu.date, gpu.url
            ),
            *(
                Assumption(name, value, unit, *source)
                for (name, unit), (value, *source) in zip(names, factors, strict=True)
            ),
        ),
    )
