"""Overlaps of training text and evaluation items: GPT-3's filter and GPT-2's report.

The filter (Brown et al. 2020, Appendix C): a 13-gram of words that also occurs in an evaluation item is removed with 200 characters on each
side. Pieces of less than 200 characters are dropped, and so is a document that is left in more than
10 pieces. N-grams that occur in more than 10 training documents are ordinary text and are kept.
N-grams are searched by hash; only documents with a match are looked at word by word.

The report (Radford et al. 2019, section 4, Table 6): the share of a test set's 8-grams that occur
in the training text. The paper puts the 8-grams of the training text into Bloom filters with at
most one false positive in 10^8. Here it is the other way round: the 8-grams of the test sets are
kept in memory, as 64-bit hashes, and the training shards are streamed past them. The figures are
the same, memory grows with the test sets only, and the probability of a false positive is the
number of the training text's 8-grams divided by 2^64: below 10^-8 for up to 184 billion of them,
and reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.corpus.formats import find_format, read_documents, read_json_values
from gptcli.corpus.pool import LocalPool, startable
from gptcli.errors import InputError
from gptcli.events import SILENT, Events
from gptcli.shards.format import document_lengths, open_shard
from gptcli.shards.manifest import MANIFEST, Manifest, read_manifest
from gptcli.text.ngrams import NgramSet, ngram_hashes, normalized_words, word_hashes
from gptcli.tokenizer.load import load_tokenizer
from gptcli.tokenizer.tokenizer import Tokenizer

NGRAM_WORDS = 13
WINDOW_CHARACTERS = 200  # removed on each side of an n-gram
MIN_PIECE_CHARACTERS = 200
MAX_PIECES = 10
MAX_NGRAM_DOCUMENTS = 10  # documents an n-gram may occur in and still be contamination

OVERLAP_WORDS = 8  # in an n-gram of the report
MAX_FALSE_POSITIVES = 1e-8
PIECE_TOKENS = 1 << 22  # searched at a time


def evaluation_ngrams(files: Sequence[str]) -> np.ndarray:
    """Return the distinct 13-grams of the evaluation items in `files`, sorted (uint64).

    Raises InputError if a file has no item of 13 words.
    """
    found = []
    for path in files:
        hashes, _ = ngram_hashes(*word_hashes(list(read_items(path))), NGRAM_WORDS)
        if not len(hashes):
            raise InputError(
                f"no evaluation item in it has {NGRAM_WORDS} words",
                where=path,
                hint="remove it from [decontaminate]",
            )
        found.append(hashes)
    return np.unique(np.concatenate(found))


def read_items(path: str) -> Iterator[str]:
    """Yield the text of each item: all strings of a JSON value, or a paragraph of any other file."""
    if find_format(path) in ("jsonl", "json"):
        for _, value in read_json_values(path):
            yield " ".join(_strings(value))
    else:
        yield from (document.text for document in read_documents(path, documents="paragraph"))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def shared_ngrams(texts: list[str], items: NgramSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the n-grams that `texts` share with evaluation items, each once per text.

    The result is (hashes uint64, indices of the texts int64), sorted.
    """
    hashes, owners = ngram_hashes(*word_hashes(texts), NGRAM_WORDS)
    matches, _ = items.find(hashes)
    pairs = np.unique(np.stack([hashes[matches], owners[matches].astype(np.uint64)]), axis=1)
    return pairs[0], pairs[1].astype(np.int64)


def remove_ngrams(text: str, contaminated: np.ndarray) -> list[str]:
    """Return the pieces of a document that are left without the `contaminated` n-grams (uint64)."""
    words = list(normalized_words(text))
    hashes, counts = word_hashes([" ".join(word for word, _, _ in words)])
    ngrams, _ = ngram_hashes(hashes, counts, NGRAM_WORDS)
    pieces, begin = [], 0
    for first in np.flatnonzero(np.isin(ngrams, contaminated)).tolist():
        start = words[first][1] - WINDOW_CHARACTERS
        stop = words[first + NGRAM_WORDS - 1][2] + WINDOW_CHARACTERS
        if start > begin:
            pieces.append(text[begin:start])
        begin = max(begin, stop)
    pieces.append(text[begin:])
    return [piece for piece in pieces if len(piece) >= MIN_PIECE_CHARACTERS]


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
    with LocalPool(startable(workers, events), context) as pool:
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
    found, _ = ngram_hashes(*word_hashes(list(read_items(path)), split=True), OVERLAP_WORDS)
    if not len(found):
        raise InputError(f"no item in it has {OVERLAP_WORDS} words", where=path)
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
    hashes, _ = ngram_hashes(*word_hashes(texts, split=True), OVERLAP_WORDS)
    _, positions = context.wanted.find(hashes)
    return np.unique(positions), len(hashes)
