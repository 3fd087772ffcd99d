"""Format numbers for people.

Only zero is written as 0, and no number has an exponent if a smaller unit can express it.
"""

from __future__ import annotations

from collections.abc import Callable

Units = tuple[tuple[float, str], ...]
"""Unit sizes with their names, largest first."""

DAY, WEEK, YEAR = 86_400, 7 * 86_400, 365 * 86_400  # seconds
ROUGH = ((YEAR, " years"), (DAY, " days"), (3600, " h"), (60, " min"))  # units of an estimate
MIN_SHOWN = 0.001  # smaller values are written <0.001
TIME: Units = (
    (86400, "d"),
    (3600, "h"),
    (60, "min"),
    (1, "s"),
    (1e-3, "ms"),
    (1e-6, "µs"),
    (1e-9, "ns"),
)
GPU_TIME: Units = (
    (365 * 86400, "GPU-years"),
    (3600, "GPU-hours"),
    (1, "GPU-seconds"),
    (1e-3, "GPU-ms"),
    (1e-6, "GPU-µs"),
)
# in Wh
ENERGY: Units = (
    (1e6, "MWh"),
    (1e3, "kWh"),
    (1, "Wh"),
    (1 / 3600, "J"),
    (1e-3 / 3600, "mJ"),
    (1e-6 / 3600, "µJ"),
)
MASS: Units = ((1e6, "t"), (1e3, "kg"), (1, "g"), (1e-3, "mg"), (1e-6, "µg"))  # in grams
SPEED: Units = ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s"), (1, "FLOP/s"))
BYTES: Units = ((1e18, "EB"), (1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
COUNTS: Units = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def figure(value: float, digits: int = 4) -> str:
    """Format with `digits` significant digits: 27.41, 3,638, 0.002604, <0.001."""
    if 0 < value < MIN_SHOWN:
        return f"<{MIN_SHOWN:g}"
    if value >= 1e15:
        return short(value)
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if value >= 1000 or "e" in text else text


def short(value: float) -> str:
    """Format with an exponent: 3.14e23."""
    return f"{value:.2e}".replace("e+", "e")


def counted(count: float, noun: str, write: Callable[[float], str] = "{:,}".format) -> str:
    """Format a number of things: 1 shard, 1,024 shards, 2 batches, and 4.5M tokens by `amount`."""
    written = write(count)
    is_one = count == 1 or written == "1"
    return f"{written} {noun}{'' if is_one else 'es' if noun.endswith(('ss', 'ch', 'x')) else 's'}"


def unit_for(value: float, units: Units, least: float = 1) -> tuple[float, str]:
    """Return the largest unit in which `value` is at least `least`; the smallest if there is none.

    Zero gets the largest unit.
    """
    return next((unit for unit in units if value >= least * unit[0] or not value), units[-1])


def scaled(value: float, units: Units, digits: int = 4) -> str:
    """Format with the unit that fits the size: 1,132 MWh, 74.2 J, 8.84 mg."""
    size, name = unit_for(value, units)
    return f"{figure(value / size, digits)} {name}"


def gpu_unit(hours: float) -> tuple[float, str]:
    """Return GPU-hours down to a tenth of one, then a smaller unit, with its size in seconds."""
    return unit_for(hours * 3600, GPU_TIME[1:], 0.1)


def gpu_time(hours: float) -> str:
    """Format GPU time: 250 GPU-hours, 12.9 GPU-seconds."""
    size, name = gpu_unit(hours)
    return f"{figure(hours * 3600 / size)} {name}"


def significant(value: float, digits: int = 5) -> float:
    """Round to significant digits, so that no positive number becomes 0."""
    return float(f"{value:.{digits}g}")


def amount(value: float) -> str:
    """Format a count: 950, 4.5M, 300B, 2.25T; with k from 10,000 on."""
    rounded = abs(value) / 0.99995  # a value that rounds up to a unit is written in it
    size, suffix = next(
        ((size, suffix) for size, suffix in COUNTS if rounded >= max(size, 1e4)), (1, "")
    )
    return f"{value / size:.4g}{suffix}"


def in_bytes(value: float) -> str:
    """Format a size in powers of 1,000: 12 B, 36.9 kB, 698 GB, 2.79 TB."""
    if value < 999.5:
        return f"{value:.0f} B"
    size, name = unit_for(value, BYTES, 0.9995)  # a value that rounds up to a unit is written in it
    return f"{figure(value / size, 3)} {name}"


def duration(seconds: float) -> str:
    """Format a duration, rounded: 250 ms, 12 s, 3 min 20 s, 2 h 05 min, 4 d 3 h, 12 years."""
    if 0 < seconds < 1:
        return scaled(seconds, TIME, 3)
    whole, minutes, hours = round(seconds), round(seconds / 60), round(seconds / 3600)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if minutes < DAY // 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    if seconds < 2 * YEAR:
        return f"{hours // 24} d {hours % 24} h"
    return f"{round(seconds / YEAR):,} years"


def rough_duration(low: float, high: float | None = None) -> str:
    """Format an estimate in seconds, or a range, with two digits: 12 s, 2 to 9 h, 390,000 years."""
    high = low if high is None else high
    size, unit = next(((size, unit) for size, unit in ROUGH if high >= 2 * size), (1, " s"))
    ends = [f"{float(f'{max(seconds / size, 0):.2g}'):,.12g}" for seconds in (low, high)]
    return f"{' to '.join(dict.fromkeys(ends))}{unit}"


def dollars(value: float | None) -> str:
    """Format an amount of money: $4.68M, $20,365, $12.30, 8.52 cents; None is a dash."""
    if value is None:
        return "-"
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"${value / size:,.2f}{suffix}" if value < 1e18 else f"${short(value)}"
    if 0 < value < 1:
        return f"{figure(100 * value, 3)} cents"
    return f"${value:,.0f}" if value >= 100 else f"${value:.2f}"


def percent(value: float, digits: int = 1) -> str:
    """Format a fraction as a percentage: 33.2%, 0.4%, <0.1%."""
    least = 10.0 ** -(digits + 2)
    return f"<{least:.{digits}%}" if 0 < value < least / 2 else f"{value:.{digits}%}"
