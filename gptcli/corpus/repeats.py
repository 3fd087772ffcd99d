"""Repeated text: lines, paragraphs, sentences or bytes that occurred before in the same source.

The first occurrence stays where it is, and every later one is taken out of its document:

- "line" and "paragraph", one at a time: CCNet (Wenzek et al. 2020, section 3.1) and Dolma.
- "sentence", three that follow each other: C4 (Raffel et al. 2020, section 2.2).
- "substring", any 200 bytes: Lee et al. 2022, "Deduplicating Training Data", section 4.1, whose 50
  tokens are about as much English.

Lines, paragraphs and sentences are compared in CCNet's normal form: lower case, digits as 0, without
punctuation and accents. Text chunks have their hashes sorted, so that a task compares one range of
them, and memory does not grow with the corpus: about 100 bytes for each of MAX_TASK_KEYS units.
Substrings need the suffix array of the whole source at once: SUFFIX_BYTES for each of its bytes.

Duplicates are gone before: a repeat of a document that is dropped is not taken out of one that is
kept.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np

from gptcli.corpus.chunks import TextChunk
from gptcli.corpus.dedup import MAX_TASK_KEYS, is_duplicate
from gptcli.corpus.recipe import RepeatsConfig, RepeatUnit
from gptcli.errors import InputError, RunError, install_hint
from gptcli.files import atomic_write
from gptcli.numbers import in_bytes

SUFFIX_BYTES = 32  # of memory for each byte of text
BORDER = 0xFF  # between documents; never in UTF-8
_CLOSING = "[\"'\u201d\u2019)]*"
_SENTENCE = re.compile(rf"\S(?:[^\n.!?]|[.!?](?!{_CLOSING}(?:\s|$)))*+(?:[.!?]+{_CLOSING})?\s*")
_TABLE = {ord(digit): "0" for digit in "123456789"}


def units(text: str, unit: RepeatUnit) -> list[tuple[int, int]]:
    """Return the start and the end of each line, paragraph or sentence, with the space behind it."""
    if unit == "sentence":
        return [found.span() for found in _SENTENCE.finditer(text)]
    places: list[tuple[int, int]] = []
    start, is_open = 0, False  # is_open: inside a paragraph
    for line in text.splitlines(keepends=True) if unit == "line" else text.split("\n"):
        stop = min(start + len(line) + (unit == "paragraph"), len(text))
        is_blank = not line.strip()
        if not is_blank and not is_open:
            places.append((start, stop))
        elif places and (unit == "paragraph"):
            places[-1] = places[-1][0], stop
        is_open = unit == "paragraph" and not is_blank
        start = stop
    return places


def normal_form(text: str) -> str:
    """Return a text in lower case, digits as 0, without punctuation, accents and outer blanks."""
    text = text.lower().translate(_TABLE)
    if not text.isascii():
        text = unicodedata.normalize("NFD", text)
    return " ".join("".join(filter(_is_wanted, text)).split())


def _is_wanted(character: str) -> bool:
    if character.isalnum() or character.isspace():
        return True
    return unicodedata.category(character)[0] not in "PM"


def unit_hashes(text: str, config: RepeatsConfig) -> list[int]:
    """Return a 64-bit hash of each run of `size` units, by the number of its first unit."""
    forms = [normal_form(text[start:stop]) for start, stop in units(text, config.unit)]
    runs = (
        "\n".join(forms[at : at + config.length]) for at in range(len(forms) - config.length + 1)
    )
    return [int.from_bytes(blake2b(run.encode("utf-8"), digest_size=8).digest()) for run in runs]


def repeat_hashes(
    texts: list[str], numbers: list[int], config: RepeatsConfig | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the hashes of all runs of units, sorted, and the document and first unit of each.

    All three are uint64; they are empty without a `config`, or for substrings.
    """
    if config is None or config.unit == "substring":
        return tuple(np.empty((3, 0), np.uint64))  # type: ignore[return-value]
    found = [unit_hashes(text, config) for text in texts]
    counts = [len(hashes) for hashes in found]
    hashes = np.array([each for mine in found for each in mine], np.uint64)
    owners = np.repeat(np.array(numbers, np.uint64), counts)
    firsts = np.concatenate(
        [np.empty(0, np.uint64), *(np.arange(n, dtype=np.uint64) for n in counts)]
    )
    order = np.argsort(hashes, kind="stable")
    return hashes[order], owners[order], firsts[order]


@dataclass(frozen=True, slots=True)
class RepeatsTask:
    """Search for the repeats among the hashes of one range, or among all substrings."""

    path: Path
    """File to write the repeats to."""
    config: RepeatsConfig
    """Units to compare."""
    first: int
    """First hash of the range."""
    last: int
    """Last hash of the range, inclusive."""
    chunks: list[Path]
    """Text chunks of the source."""
    duplicates: list[Path]
    """Files of numbers of documents that are dropped."""


def repeats_tasks(
    folder: Path,
    source: int,
    config: RepeatsConfig,
    chunks: list[TextChunk],
    duplicates: list[Path],
) -> Iterator[RepeatsTask]:
    """Yield the tasks that find the repeats of a source."""
    bits = (sum(chunk.repeat_count for chunk in chunks) // MAX_TASK_KEYS).bit_length()
    paths = [chunk.path for chunk in chunks]
    for bucket in range(2**bits):
        path = folder / f"repeats-{source:03d}-{bits:02d}-{bucket:06d}"
        first, last = bucket << (64 - bits), ((bucket + 1) << (64 - bits)) - 1
        yield RepeatsTask(path, config, first, last, paths, duplicates)


def find_repeats(task: RepeatsTask) -> Path:
    """Write the repeats, sorted by document, (n, 3) uint64: document, first unit or byte, the one
    after the last; return the path of the file.
    """
    if not task.path.exists():
        rows = _substrings(task) if task.config.unit == "substring" else _runs(task)
        with atomic_write(task.path) as file:
            file.write(np.ascontiguousarray(rows).astype("<u8").data)
    return task.path


def _runs(task: RepeatsTask) -> np.ndarray:
    parts = []
    for path in task.chunks:
        hashes, numbers, firsts = TextChunk(path).repeat_hashes(task.first, task.last)
        documents, owners = np.unique(numbers, return_inverse=True)
        kept = ~is_duplicate(task.duplicates, documents)[owners] if len(numbers) else owners
        parts.append([each[kept] for each in (hashes, numbers, firsts)])
    if not parts:
        return np.empty((0, 3), np.uint64)
    hashes, numbers, firsts = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.lexsort((firsts, numbers, hashes))
    hashes, numbers, firsts = hashes[order], numbers[order], firsts[order]
    again = np.diff(hashes, prepend=hashes[:1] ^ np.uint64(1)) == 0
    numbers, firsts = numbers[again], firsts[again]
    order = np.lexsort((firsts, numbers))
    lasts = firsts + np.uint64(task.config.length)
    return np.stack([numbers, firsts, lasts], 1)[order]


def _substrings(task: RepeatsTask) -> np.ndarray:
    """Return the byte ranges of substrings that occurred before, by a suffix array of all texts."""
    numbers, texts = [], []
    for path in task.chunks:
        chunk = TextChunk(path)
        kept = ~is_duplicate(task.duplicates, chunk.numbers)
        for number, text, is_kept in zip(chunk.numbers.tolist(), chunk.texts(), kept, strict=True):
            if is_kept:
                numbers.append(number)
                texts.append(text.encode())
    lengths = np.array([len(text) + 1 for text in texts], np.int64)
    size = int(lengths.sum())
    check_memory(size)
    data = np.frombuffer(bytearray(bytes([BORDER]).join([*texts, b""])), np.uint8)  # writable
    del texts
    is_repeat = _repeated_starts(data, task.config.length)
    starts = np.concatenate([[0], lengths.cumsum()])
    rows = []
    for number, (start, stop) in zip(numbers, pairwise(starts.tolist()), strict=True):
        at = np.flatnonzero(is_repeat[start:stop])
        if len(at):
            breaks = np.flatnonzero(np.diff(at) > task.config.length) + 1
            firsts = at[np.concatenate([[0], breaks])]
            lasts = at[np.concatenate([breaks - 1, [len(at) - 1]])] + task.config.length
            rows += [(number, int(a), int(b)) for a, b in zip(firsts, lasts, strict=True)]
    return np.array(rows, np.uint64).reshape(-1, 3)


def _repeated_starts(data: np.ndarray, length: int) -> np.ndarray:
    """Return where `length` bytes begin, without a border among them, that began further on the
    left as well: (bytes,) bool.
    """
    try:
        from pydivsufsort import divsufsort, kasai
    except ImportError:
        raise InputError(
            "finding repeated substrings needs the package pydivsufsort",
            hint=install_hint("pydivsufsort"),
        ) from None
    found = np.zeros(len(data), bool)
    if len(data) <= length:
        return found
    suffixes = divsufsort(data)
    is_same = kasai(data, suffixes)[:-1] >= length  # as the next suffix
    in_group = np.zeros(len(data), bool)
    in_group[:-1] |= is_same
    in_group[1:] |= is_same
    rows = np.flatnonzero(in_group)
    if not len(rows):
        return found
    begins = np.flatnonzero(np.concatenate([[True], ~is_same[rows[1:] - 1]]))
    starts = suffixes[rows].astype(np.int64)
    first = np.repeat(np.minimum.reduceat(starts, begins), np.diff(begins, append=len(rows)))
    borders = np.flatnonzero(data == BORDER)
    is_whole = np.searchsorted(borders, starts) == np.searchsorted(borders, starts + length)
    found[starts[(starts != first) & is_whole]] = True
    return found


def check_memory(size: int) -> None:
    """Raise RunError if the suffix array of so many bytes of text does not fit into memory."""
    needed = SUFFIX_BYTES * size
    try:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return
    if needed > free:
        raise RunError(
            f"finding repeated substrings in {in_bytes(size)} of text needs {in_bytes(needed)} of "
            f"memory, and {in_bytes(free)} are free",
            hint='divide the source into several, or set unit = "line", whose memory does not grow',
        )


def read_repeats(paths: list[Path], numbers: np.ndarray) -> dict[int, list[tuple[int, int]]]:
    """Return the ranges of the repeats in documents of these sorted `numbers`, by number."""
    found: dict[int, list[tuple[int, int]]] = {}
    for path in paths:
        count = path.stat().st_size // 24
        if not count or not len(numbers):
            continue
        rows = np.memmap(path, "<u8", "r", shape=(count, 3))
        low = int(np.searchsorted(rows[:, 0], numbers[0], "left"))
        high = int(np.searchsorted(rows[:, 0], numbers[-1], "right"))
        for number, first, last in rows[low:high].tolist():
            found.setdefault(number, []).append((first, last))
    return found


def without_repeats(text: str, ranges: list[tuple[int, int]], config: RepeatsConfig) -> str:
    """Return a text without ranges of units, or of bytes as far as they hold whole characters.

    The result is "" if fewer than `min_words` words are left.
    """
    if config.unit == "substring":
        data = np.frombuffer(text.encode(), np.uint8)
        is_kept = np.ones(len(data), bool)
        for first, last in ranges:
            is_kept[first:last] = False
        # A character that is kept in part is kept.
        starts = np.flatnonzero((data & 0xC0) != 0x80)
        is_kept = np.repeat(
            np.logical_or.reduceat(is_kept, starts), np.diff(starts, append=len(data))
        )
        left = data[is_kept].tobytes().decode()
    else:
        places = units(text, config.unit)
        gone = {unit for first, last in ranges for unit in range(first, last)}
        pieces, end = [], 0
        for unit, (start, stop) in enumerate(places):
            if unit in gone:
                pieces.append(text[end:start])
                end = stop
        left = "".join([*pieces, text[end:]])
    words = len(left.split())
    return left if words and words >= config.min_words else ""
