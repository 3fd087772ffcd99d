"""Numbers as people read them: durations, amounts and bytes."""

from __future__ import annotations

DAY, WEEK, YEAR = 86_400, 7 * 86_400, 365 * 86_400  # seconds
UNITS = ((YEAR, " years"), (DAY, " days"), (3600, " h"), (60, " min"))


def duration(seconds: float) -> str:
    """Format seconds: 12 s, 3 min 20 s, 2 h 05 min, 4 d 3 h, 12 years."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < DAY:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds < 2 * YEAR:
        return f"{seconds // DAY} d {seconds % DAY // 3600} h"
    return f"{round(seconds / YEAR):,} years"


def rough_duration(low: float, high: float | None = None) -> str:
    """Format an estimate of seconds, or a range of them, to two digits: 12 s, 3 min, 2 to 9 h, 4 days, 390,000 years."""
    high = low if high is None else high
    size, unit = next(((size, unit) for size, unit in UNITS if high >= 2 * size), (1, " s"))
    ends = [f"{float(f'{max(seconds / size, 0):.2g}'):,.12g}" for seconds in (low, high)]
    return f"{' to '.join(dict.fromkeys(ends))}{unit}"


def amount(value: float) -> str:
    """Format a count: 950, 12.3k, 4.5M, 300B, 2.25T."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= 0.99995 * size:  # what rounds up to the unit is written in it
            return f"{value / (1e3 if suffix == 'k' else size):.4g}{suffix}"
    return f"{value:.4g}"


def in_bytes(value: float) -> str:
    """Format bytes by powers of 1,000: 12 B, 6.29 MB, 5.69 GB, 2.25 TB."""
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {prefix}B"
    return f"{value:.0f} B"
