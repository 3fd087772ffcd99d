"""Prices of GPUs, and the energy that they take, from prices.toml.

A figure that is not listed is unknown, never guessed.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from gptcli.cost.hardware import USER, Assumption, Gpu, find_gpu, read_rows
from gptcli.errors import InputError, UsageError

OfferKind = Literal["on-demand", "spot", "reserved"]
OFFER_KINDS: tuple[OfferKind, ...] = get_args(OfferKind)
"""On demand; spot, which may be interrupted; reserved for months or years."""


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
        for row in read_rows("prices.toml", "offer", gpu)
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
    """Return a kind of offer in words, such as "on demand"."""
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
