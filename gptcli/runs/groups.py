"""Runs that differ in their seed alone, as one measurement with an interval, and differences
between such groups.

Intervals are Student's, at 95 %; the difference of two groups is Welch's, which assumes no equal
variances. Two runs tell little: their interval is 12.7 standard errors wide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptcli.model.source import RUN_TOML
from gptcli.runs.metrics import smoothed_loss
from gptcli.runs.record import Record

OWN = ("seed", "out", "checkpoint_to")  # settings in which the runs of a group differ
SEED_FOLDERS = "seed-*"
# 0.975 quantile of Student's t by degrees of freedom, from 1
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
NORMAL_975 = 1.960


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean with its 95 % interval."""

    mean: float
    half_width: float | None
    """Half the width of the interval; None if a single value tells none."""

    def __str__(self) -> str:
        spread = "" if self.half_width is None else f" ± {self.half_width:.4f}"
        return f"{self.mean:.4f}{spread}"


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in their seed alone."""

    name: str
    """Common part of the folders' names."""
    records: list[Record]
    values: list[float]
    """Final loss of each run in nats per token, the validation loss if all runs measured it."""

    @property
    def interval(self) -> Interval:
        """Mean loss with its interval."""
        return interval(self.values)


def expanded(folders: Sequence[Path]) -> list[Path]:
    """Return run folders, with the seeds of a folder of `gpt train --seeds` in its place."""
    found: list[Path] = []
    for folder in folders:
        seeds = [] if (folder / RUN_TOML).is_file() else sorted(folder.glob(SEED_FOLDERS))
        found += seeds or [folder]
    return list(dict.fromkeys(found))


def grouped(records: Sequence[Record]) -> list[Group]:
    """Return the groups of runs, the one with the lowest mean loss first.

    Runs without any finite loss are left out.
    """
    validated = all(record.series("val_loss") for record in records)
    found: dict[str, list[Record]] = {}
    for record in records:
        key = repr(sorted((k, v) for k, v in record.settings.items() if k not in OWN))
        found.setdefault(key, []).append(record)
    groups = []
    for together in found.values():
        losses = [final_loss(record, validated=validated) for record in together]
        values = [loss for loss in losses if loss is not None]
        if values:
            groups.append(Group(_name(together), together, values))
    return sorted(groups, key=lambda group: group.interval.mean)


def final_loss(record: Record, *, validated: bool) -> float | None:
    """Return a run's last validation loss, or else its running mean of the training loss."""
    series = record.series("val_loss")
    return series[-1][1] if validated and series else smoothed_loss(record.lines)


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of values with its 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, None)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, t_975(len(values) - 1) * error)


def difference(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Return by how much the mean of `one` exceeds that of `other`, with Welch's interval."""
    mean = statistics.fmean(one) - statistics.fmean(other)
    if min(len(one), len(other)) < 2:
        return Interval(mean, None)
    parts = [statistics.variance(values) / len(values) for values in (one, other)]
    if (total := sum(parts)) == 0:
        return Interval(mean, 0.0)
    freedom = total**2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (one, other), strict=True)
    )
    return Interval(mean, t_975(int(freedom)) * math.sqrt(total))


def verdict(one: Group, best: Group) -> str:
    """Return in words whether the loss of a group differs from that of the best one."""
    gap = difference(one.values, best.values)
    if gap.half_width is None:
        return f"{gap.mean:+.4f}: one seed does not tell a difference from noise"
    noise = abs(gap.mean) <= gap.half_width
    return f"{gap}: {'within the noise of the seeds' if noise else 'more than noise'}"


def t_975(freedom: int) -> float:
    """Return the 0.975 quantile of Student's t; that of fewer degrees of freedom if not tabled."""
    if freedom > len(T_975):
        return T_975[-1] if freedom < 120 else NORMAL_975
    return T_975[max(freedom, 1) - 1]


def _name(records: Sequence[Record]) -> str:
    """Return the name of a group: its only run's, or the folder of its seeds."""
    folder = records[0].folder.resolve()
    is_seed = folder.match(SEED_FOLDERS)
    return folder.parent.name if is_seed and len(records) > 1 else folder.name
