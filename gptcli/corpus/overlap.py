"""GPT-2's overlap report (Radford et al. 2019, section 4, Table 6).

It gives the share of a test set's 8-grams that occur in the training text. The paper puts the
8-grams of the training text into Bloom filters with at most one false positive in 10^8. Here it is
the other way round: the 8-grams of the test sets are kept in memory, as 64-bit hashes, and the
training shards are streamed past them. The figures are the same, memory grows with the test sets
only, and the probability of a false positive is the number of the training text's 8-grams divided
by 2^64: below 10^-8 for up to 184 billion of them, and reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptcli.corpus.decontaminate import read_items
from gptcli.corpus.pool import LocalPool
from gptcli.errors import InputError
from gptcli.events import SILENT, Events
from gptcli.shards.format import document_lengths, open_shard
from gptcli.shards.manifest import MANIFEST, Manifest, read_manifest
from gptcli.text.ngrams import NgramSet, grams, word_hashes
from gptcli.tokenizer.tokenizer import Tokenizer, load_tokenizer

NGRAM_WORDS = 8
MAX_FALSE_POSITIVES = 1e-8
PIECE_TOKENS = 1 << 22  # searched at a time


@dataclass(frozen=True, slots=True)
class Overlap:
    """Overlap of one test set with the training text."""

    file: str
    """Path of the test set."""
    grams: int
    """Number of its 8-grams."""
    found: int
    """Number of those that occur in the training text."""

    @property
    def share(self) -> float:
        """Share of the 8-grams that occur in the training text, from 0 to 1."""
        return self.found / self.grams


@dataclass(frozen=True, slots=True)
class OverlapReport:
    """Overlap of several test sets with the same training text."""

    tests: list[Overlap]
    """Overlap of each test set."""
    train_grams: int
    """Number of 8-grams of the training text."""

    @property
    def false_positives(self) -> float:
        """Upper bound of the probability that an 8-gram is found which does not occur."""
        return self.train_grams / 2**64


@dataclass
class _SearchContext:
    """State of each worker."""

    folder: Path
    tokenizer: Tokenizer
    wanted: NgramSet


def find_overlap(
    folder: Path, files: Sequence[str], *, workers: int = 1, events: Events = SILENT
) -> OverlapReport:
    """Compare test sets with the training split of a shard folder.

    Each line of a JSON lines file and each paragraph of a text file is an item of a test set.
    Raises InputError if a file has no 8-gram, if the shards are damaged or have no document index,
    or if they are so large that false positives would exceed MAX_FALSE_POSITIVES.
    """
    manifest = read_manifest(folder)
    for shard in manifest.shards_of("train"):
        document_lengths(folder / shard.file)  # a missing index is found before hours of search
    hashes = [_test_ngrams(path) for path in files]
    wanted = np.unique(np.concatenate(hashes))
    is_found = np.zeros(len(wanted), bool)
    total = 0
    context = _SearchContext(folder, load_tokenizer(folder), NgramSet(wanted))
    with LocalPool(workers, context) as pool:
        results = pool.map(_search, _pieces(folder, manifest))
        for number, (positions, count) in enumerate(results, 1):
            is_found[positions] = True
            total += count
            events.progress("search", number, None, "pieces", grams=total)
    events.finish("search")
    tests = [
        Overlap(path, len(each), int(is_found[np.searchsorted(wanted, each)].sum()))
        for path, each in zip(files, hashes, strict=True)
    ]
    report = OverlapReport(tests, total)
    if report.false_positives > MAX_FALSE_POSITIVES:
        raise InputError(
            f"{total:,} 8-grams are too many to be distinguished by 64-bit hashes",
            where=folder / MANIFEST,
        )
    return report


def _test_ngrams(path: str) -> np.ndarray:
    found, _ = grams(*word_hashes(list(read_items(path)), split=True), NGRAM_WORDS)
    if not len(found):
        raise InputError(f"no item in it has {NGRAM_WORDS} words", where=path)
    return found


@dataclass(frozen=True, slots=True)
class _Piece:
    """Consecutive documents of a shard."""

    file: str
    start: int
    """Index of the first token."""
    lengths: np.ndarray
    """Tokens of each document."""


def _pieces(folder: Path, manifest: Manifest) -> Iterator[_Piece]:
    """Yield the training documents, about PIECE_TOKENS tokens at a time."""
    for shard in manifest.shards_of("train"):
        ends = np.cumsum(document_lengths(folder / shard.file), dtype=np.int64)
        first = 0
        while first < len(ends):
            start = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, start + PIECE_TOKENS, "right")))
            yield _Piece(shard.file, start, np.diff(ends[first:last], prepend=start))
            first = last


def _search(context: _SearchContext, piece: _Piece) -> tuple[np.ndarray, int]:
    """Return the positions of the n-grams found, and the number of n-grams searched."""
    size = int(piece.lengths.sum())
    shard = open_shard(context.folder / piece.file)
    tokens = np.asarray(shard[piece.start : piece.start + size])
    documents = np.split(tokens, np.cumsum(piece.lengths)[:-1])
    texts = [context.tokenizer.decode(document[1:].tolist()) for document in documents]
    hashes, _ = grams(*word_hashes(texts, split=True), NGRAM_WORDS)
    _, positions = context.wanted.find(hashes)
    return np.unique(positions), len(hashes)
