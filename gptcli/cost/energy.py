"""Kilowatt-hours and CO2 of GPU-hours, at a board's full load."""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.cost.assumptions import Assumption
from gptcli.cost.hardware import Gpu, read_table


@dataclass(frozen=True, slots=True)
class Energy:
    kwh: float
    co2_kg: float
    assumptions: tuple[Assumption, ...]


def energy(gpu: Gpu | None, gpu_hours: float) -> Energy | None:
    """With servers and building; None where the board's power is unknown."""
    if gpu is None or gpu.watts is None:
        return None
    table = read_table("prices.toml")["energy"]
    kwh = gpu_hours * gpu.watts / 1000 * table["server"] * table["building"]
    source, date, url = table["source"], table["date"], table["url"]
    return Energy(
        kwh,
        kwh * table["kg_co2_per_kwh"],
        (
            Assumption(
                "board power", gpu.watts, "watts", f"{gpu.name}: {gpu.source}", gpu.date, gpu.url
            ),
            Assumption("server power", table["server"], "x board", source, date, url),
            Assumption("building power", table["building"], "x server", source, date, url),
            Assumption("emissions", table["kg_co2_per_kwh"], "kg CO2e per kWh", source, date, url),
        ),
    )
