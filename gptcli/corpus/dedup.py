"""Which documents are near-duplicates of an earlier one, or of one in another source; in memory
that does not grow with the corpus.

Each text unit holds, for every band, its documents' keys in order, so a range of keys is found in
one piece in each, as the shuffle finds its ranges. A band is looked at a range at a time. A
document goes where one with the same key stands before it in its own source, or anywhere in a
source that its own is removed from. Each task writes the numbers that go; a reader of a unit
collects its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptcli.corpus.minhash import BANDINGS
from gptcli.corpus.text_chunks import TextUnit
from gptcli.files import atomic_write

TASK_KEYS = 4_000_000  # looked at together, at some 60 bytes each


@dataclass(frozen=True, slots=True)
class DedupTask:
    """One range of keys of one band, for a source and those that it is compared with."""

    path: Path
    band: int
    first: int
    last: int
    """Inclusive."""
    mine: list[Path]
    others: list[Path]
    within: bool
    threshold: float | None
    """Where pairs are to be compared exactly."""


def plan_dedup(
    folder: Path,
    source: int,
    method: str,
    within: bool,
    threshold: float,
    mine: list[TextUnit],
    others: list[TextUnit],
) -> Iterator[DedupTask]:
    bits = (sum(len(unit) for unit in [*mine, *others]) // TASK_KEYS).bit_length()
    paths = [unit.path for unit in mine], [unit.path for unit in others]
    for band in range(BANDINGS[method].bands):
        for part in range(2**bits):
            path = folder / f"drop-{source:03d}-{band:02d}-{bits:02d}-{part:06d}"
            first, last = part << (64 - bits), ((part + 1) << (64 - bits)) - 1
            yield DedupTask(
                path, band, first, last, *paths, within, threshold if method == "paper" else None
            )


def find_duplicates(task: DedupTask) -> Path:
    """Write the numbers of the documents that go, in order (uint64)."""
    if not task.path.exists():
        gone = _duplicates(task)
        with atomic_write(task.path) as file:
            file.write(np.unique(gone).astype("<u8").data)
    return task.path


def _duplicates(task: DedupTask) -> np.ndarray:
    keys, numbers, units = [], [], []
    for place, path in enumerate([*task.mine, *task.others]):
        found, which = TextUnit(path).band(task.band, task.first, task.last)
        keys.append(found)
        numbers.append(which)
        units.append(np.full(len(found), place))
    key, number, unit = map(np.concatenate, (keys, numbers, units))
    other = unit >= len(task.mine)
    # within a key the other sources' documents first, then ours as they were read
    order = np.lexsort((number, ~other, key))
    key, number, unit, other = key[order], number[order], unit[order], other[order]
    same = np.diff(key, prepend=key[:1] ^ np.uint64(1)) == 0
    if task.threshold is not None:
        return _exactly(task, key, number, unit, other, same)
    starts = np.flatnonzero(~same)
    group = np.cumsum(~same) - 1
    first_is_other = other[starts][group] if len(starts) else other
    return number[~other & (first_is_other | (same & task.within))]


def _exactly(
    task: DedupTask,
    key: np.ndarray,
    number: np.ndarray,
    unit: np.ndarray,
    other: np.ndarray,
    same: np.ndarray,
) -> np.ndarray:
    """Compare the candidates' features themselves: a document goes where it is like one that
    stays.
    """
    assert task.threshold is not None
    if not len(key):
        return number
    opened = [TextUnit(path) for path in [*task.mine, *task.others]]
    gone: list[int] = []
    starts = np.flatnonzero(~same).tolist()
    for start, stop in zip(starts, [*starts[1:], len(key)], strict=True):
        if stop - start < 2:
            continue
        stays: list[np.ndarray] = []
        for row in range(start, stop):
            features = opened[unit[row]].features(int(number[row]))
            if not other[row] and any(
                _jaccard(features, those) >= task.threshold for those in stays
            ):
                gone.append(int(number[row]))
            elif other[row] or task.within:
                stays.append(features)
    return np.array(gone, np.uint64)


def _jaccard(one: np.ndarray, two: np.ndarray) -> float:
    """Of two sorted arrays of distinct values."""
    common = len(np.intersect1d(one, two, assume_unique=True))
    union = len(one) + len(two) - common
    return common / union if union else 1.0


def gone_among(paths: list[Path], numbers: np.ndarray) -> np.ndarray:
    """Which of a unit's `numbers` (sorted) any task has dropped: (n,) bool."""
    gone = np.zeros(len(numbers), bool)
    if not len(numbers):
        return gone
    for path in paths:
        count = path.stat().st_size // 8
        if count:
            dropped = np.memmap(path, "<u8", "r", shape=(count,))
            low, high = np.searchsorted(dropped, numbers[[0, -1]]) + np.array([0, 1])
            gone |= np.isin(numbers, dropped[low:high])
    return gone
