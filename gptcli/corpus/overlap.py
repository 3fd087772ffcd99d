"""GPT-2's overlap report (Radford et al. 2019, section 4, Table 6): which share of a test set's
8-grams stands in the training text.

The paper puts the training text's 8-grams into Bloom filters of at most one false positive in 10^8.
Here it is the other way round: the test sets' 8-grams are held, by 64-bit hashes behind a one-hash
filter, and the training shards stream past them. The figures are the same, memory grows with the
test sets only, and the chance of a false positive is the training text's 8-grams divided by 2^64:
under 10^-8 up to 184 billion of them, and reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gptcli.corpus.decontaminate import read_items
from gptcli.corpus.workers import Workers
from gptcli.errors import InputError
from gptcli.events import SILENT, Events
from gptcli.shards.format import document_lengths, open_shard
from gptcli.shards.manifest import MANIFEST, Manifest, read_manifest
from gptcli.text.ngrams import grams, word_hashes
from gptcli.tokenizer.tokenizer import Tokenizer, load_tokenizer

GRAM = 8  # words
FALSE_POSITIVES = 1e-8  # the most there may be
PIECE = 1 << 22  # tokens searched together
# for each gram that is looked for: of the grams that are not, one in so many passes
FILTER_BITS = 16


@dataclass(frozen=True, slots=True)
class Overlap:
    """Of one test set."""

    file: str
    grams: int
    """Its 8-grams."""
    found: int
    """Those of them that stand in the training text."""

    @property
    def share(self) -> float:
        return self.found / self.grams


@dataclass(frozen=True, slots=True)
class Report:
    tests: list[Overlap]
    train_grams: int
    """Of the training text."""

    @property
    def false_positives(self) -> float:
        """The chance that a gram counts as found which is not there, at most."""
        return self.train_grams / 2**64


@dataclass
class _Search:
    """What a worker holds."""

    folder: Path
    tokenizer: Tokenizer
    wanted: np.ndarray
    """The hashes of all test grams, sorted (uint64)."""

    @cached_property
    def filter(self) -> np.ndarray:
        """Which low bits of a hash occur among those wanted: (2**k,) bool."""
        table = np.zeros(1 << max(16, (FILTER_BITS * len(self.wanted)).bit_length()), bool)
        table[(self.wanted & np.uint64(len(table) - 1)).astype(np.int64)] = True
        return table


def find_overlap(
    folder: Path, files: Sequence[str], *, workers: int = 1, events: Events = SILENT
) -> Report:
    """Compare test files (each item of JSON lines; each paragraph of text) with the training split
    of a shard folder.

    Raises InputError where a file holds no 8-gram, where the shards are damaged or have no index of
    documents, or where they are so many that false positives would be more than FALSE_POSITIVES.
    """
    manifest = read_manifest(folder)
    for shard in manifest.of("train"):
        document_lengths(folder / shard.file)  # that it is there is known before hours of search
    hashes = [_test_grams(path) for path in files]
    search = _Search(folder, load_tokenizer(folder), np.unique(np.concatenate(hashes)))
    found = np.zeros(len(search.wanted), bool)
    total = 0
    with Workers(workers, search) as pool:
        for number, (places, count) in enumerate(pool.map(_search, _pieces(folder, manifest)), 1):
            found[places] = True
            total += count
            events.progress("search", number, None, "pieces", grams=total)
    events.finish("search")
    report = Report(
        [
            Overlap(path, len(each), int(found[np.searchsorted(search.wanted, each)].sum()))
            for path, each in zip(files, hashes, strict=True)
        ],
        total,
    )
    if report.false_positives > FALSE_POSITIVES:
        raise InputError(
            f"{total:,} 8-grams are too many to tell by 64-bit hashes", where=folder / MANIFEST
        )
    return report


def _test_grams(path: str) -> np.ndarray:
    found, _ = grams(*word_hashes(list(read_items(path)), split=True), GRAM)
    if not len(found):
        raise InputError(f"no item in it is {GRAM} words long", where=path)
    return found


@dataclass(frozen=True, slots=True)
class _Piece:
    file: str
    start: int
    """Its first token."""
    lengths: np.ndarray
    """Of its documents, in tokens."""


def _pieces(folder: Path, manifest: Manifest) -> Iterator[_Piece]:
    """The training documents, about PIECE tokens at a time."""
    for shard in manifest.of("train"):
        ends = np.cumsum(document_lengths(folder / shard.file), dtype=np.int64)
        first = 0
        while first < len(ends):
            start = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, start + PIECE, "right")))
            yield _Piece(shard.file, start, np.diff(ends[first:last], prepend=start))
            first = last


def _search(search: _Search, piece: _Piece) -> tuple[np.ndarray, int]:
    """The places in `wanted` of the grams that were found, and how many grams were looked at."""
    size = int(piece.lengths.sum())
    tokens = np.asarray(open_shard(search.folder / piece.file)[piece.start : piece.start + size])
    bodies = np.split(tokens, np.cumsum(piece.lengths)[:-1])
    seen, _ = grams(
        *word_hashes([search.tokenizer.decode(body[1:].tolist()) for body in bodies], split=True),
        GRAM,
    )
    maybe = seen[search.filter[(seen & np.uint64(len(search.filter) - 1)).astype(np.int64)]]
    places = np.searchsorted(search.wanted, maybe)
    places[places == len(search.wanted)] = 0
    return np.unique(places[search.wanted[places] == maybe]), len(seen)
