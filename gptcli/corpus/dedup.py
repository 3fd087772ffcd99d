"""Near-duplicates: documents similar to an earlier one, or to one of another source.

MinHash: documents of Jaccard similarity s share the key of a band with the probability
1 - (1 - s^rows)^bands. Two methods:

- "lsh": word 5-grams, 14 bands of 8 hashes. Half of all pairs with s = 0.70 are found, 90 % of
  those with s = 0.80.
- "paper": GPT-3's 10 hashes of the words of Spark's tokenizer (Appendix A), all of which must be
  equal; the features of such pairs are then compared exactly.

Equal URLs, alone or beside a method, are one more band, as in RefinedWeb (Penedo et al. 2023).

Every text chunk has the keys of each band sorted, so a range of keys is contiguous in each chunk.
Tasks look at one range of one band at a time, and memory does not grow with the corpus. A document
is a duplicate if one with the same key comes before it in its own source, or is anywhere in a
source that it is compared against. Each task writes the numbers of its duplicates to a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from gptcli.corpus.chunks import Signatures, TextChunk
from gptcli.corpus.quality import spark_features
from gptcli.corpus.recipe import Comparison
from gptcli.files import atomic_write
from gptcli.shards.order import mix64
from gptcli.text.ngrams import ngram_hashes, word_hashes

SHINGLE_WORDS = 5
MINHASH_SEED = 42
FEATURE_BLOCK = 4096  # features hashed at a time
URL_KIND = "url"  # in the names of files of duplicates by URL
MAX_TASK_KEYS = 4_000_000  # keys compared at a time, at about 60 bytes each


@dataclass(frozen=True, slots=True)
class Banding:
    """Number of MinHash bands, and of hashes (rows) in each."""

    bands: int
    """Number of bands."""
    rows: int
    """Number of hashes in a band, all of which must be equal."""

    def probability(self, similarity: float) -> float:
        """Return the probability that a pair of this Jaccard similarity shares a band."""
        return 1 - (1 - similarity**self.rows) ** self.bands


BANDINGS = {"lsh": Banding(14, 8), "paper": Banding(1, 10)}


def band_count(comparison: Comparison) -> int:
    """Return the number of bands; that of URLs is the last."""
    method = comparison.method
    return (BANDINGS[method].bands if method in BANDINGS else 0) + comparison.by_url


def document_signatures(
    texts: list[str],
    comparison: Comparison | None,
    urls: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Signatures:
    """Return the signatures of `texts`, or empty ones without a `comparison`.

    `names` are distinct in all sources: documents without a URL have no equal one.
    """
    method = None if comparison is None else comparison.method
    features, counts = np.empty(0, np.uint64), np.zeros(len(texts), np.int64)
    sizes = counts
    if method == "lsh":
        found, sizes = shingles(texts)
        keys = band_keys(found, sizes, BANDINGS[method]).T
    elif method == "paper":
        distinct = [np.unique(spark_features(text)).astype(np.uint64) for text in texts]
        sizes = counts = np.array([len(row) for row in distinct], np.int64)
        features = np.concatenate([features, *distinct])
        keys = band_keys(mix64(features + np.uint64(1)), counts, BANDINGS[method]).T
    else:
        keys = np.empty((0, len(texts)), np.uint64)
    for row in np.flatnonzero(sizes == 0).tolist():  # no words: like an equal text alone
        keys[:, row] = _hash(texts[row])
    if comparison is not None and comparison.by_url:
        urls = [comparable_url(url) or name for url, name in zip(urls, names, strict=True)]
        keys = np.concatenate([keys, np.array([list(map(_hash, urls))], np.uint64)])
    return Signatures(keys, features, counts)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def comparable_url(url: str) -> str:
    """Return a URL to compare: without scheme, fragment and final slash, its host in lower case."""
    host, slash, rest = url.split("://", 1)[-1].split("#", 1)[0].partition("/")
    return (host.lower() + slash + rest).rstrip("/")


def shingles(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of the word 5-grams of all texts end to end, and their number in each text.

    The arrays are (shingles,) uint64 and (texts,) int64. A text of fewer words is one shingle.
    """
    hashes, counts = word_hashes(texts)
    found, owner = ngram_hashes(hashes, counts, SHINGLE_WORDS)
    short = np.flatnonzero((counts > 0) & (counts < SHINGLE_WORDS))
    if len(short):
        starts = np.cumsum(counts) - counts
        short_texts = (
            hashes[start : start + count]
            for start, count in zip(starts[short], counts[short], strict=True)
        )
        whole = np.concatenate(
            [ngram_hashes(words, np.array([len(words)]), len(words))[0] for words in short_texts]
        )
        owner = np.concatenate([owner, short])
        order = np.argsort(owner, kind="stable")
        found, owner = np.concatenate([found, whole])[order], owner[order]
    return found, np.bincount(owner, minlength=len(texts))


def band_keys(features: np.ndarray, counts: np.ndarray, banding: Banding) -> np.ndarray:
    """Return the key of each document in each band, (documents, bands) uint64.

    `features` are the hashes of all documents end to end (uint64), `counts` (documents,) their
    number in each. Hash k of a feature is its high half times a random odd number plus a random
    number, modulo 2**32. A document without features gets random keys, and so has no duplicate.
    """
    generator = np.random.default_rng(MINHASH_SEED)
    size = banding.bands * banding.rows
    factors = generator.integers(0, 1 << 32, size, np.uint32) | np.uint32(1)
    terms = generator.integers(0, 1 << 32, size, np.uint32)
    high_halves = (features >> np.uint64(32)).astype(np.uint32)
    minima = np.empty((len(counts), size), np.uint32)
    buffer = np.empty((FEATURE_BLOCK, size), np.uint32)
    start = 0
    for document, count in enumerate(counts.tolist()):
        minima[document] = 0xFFFFFFFF
        for first in range(start, start + count, FEATURE_BLOCK):
            block = high_halves[first : min(first + FEATURE_BLOCK, start + count), None]
            hashed = buffer[: len(block)]
            np.multiply(block, factors, out=hashed)
            hashed += terms
            np.minimum(minima[document], hashed.min(0), out=minima[document])
        start += count
    row_factors = mix64(
        np.arange(1, banding.rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    ) | np.uint64(1)
    bands = minima.reshape(len(counts), banding.bands, banding.rows)
    keys = mix64((bands * row_factors).sum(-1, dtype=np.uint64))
    empty = np.flatnonzero(counts == 0)
    keys[empty] = generator.integers(0, 1 << 63, (len(empty), banding.bands), np.uint64)
    return keys


@dataclass(frozen=True, slots=True)
class DedupTask:
    """Comparison of one range of keys of one band."""

    path: Path
    """File to write the numbers of the duplicates to."""
    band: int
    """Index of the band."""
    first: int
    """First key of the range."""
    last: int
    """Last key of the range, inclusive."""
    own: list[Path]
    """Text chunks of the source that is deduplicated."""
    others: list[Path]
    """Text chunks of the sources that it is compared against."""
    within: bool
    """Drop duplicates within the source as well."""
    threshold: float | None
    """Jaccard similarity of duplicates, for an exact comparison; None to compare keys only."""


def dedup_tasks(
    folder: Path,
    source: int,
    comparison: Comparison,
    within: bool,
    threshold: float,
    own: list[TextChunk],
    others: list[TextChunk],
) -> Iterator[DedupTask]:
    """Yield the tasks that deduplicate a source, each of about MAX_TASK_KEYS keys at most."""
    bits = (sum(len(chunk) for chunk in [*own, *others]) // MAX_TASK_KEYS).bit_length()
    paths = [chunk.path for chunk in own], [chunk.path for chunk in others]
    count = band_count(comparison)
    for band in range(count):
        is_url = comparison.by_url and band == count - 1
        exact = threshold if comparison.method == "paper" and not is_url else None
        kind = URL_KIND if is_url else ""
        for bucket in range(2**bits):
            name = f"drop{kind}-{source:03d}-{band:02d}-{bits:02d}-{bucket:06d}"
            first, last = bucket << (64 - bits), ((bucket + 1) << (64 - bits)) - 1
            yield DedupTask(folder / name, band, first, last, *paths, within, exact)


def find_duplicates(task: DedupTask) -> Path:
    """Write the numbers of the duplicates, sorted (uint64), and return the path of the file."""
    if not task.path.exists():
        duplicates = _duplicates(task)
        with atomic_write(task.path) as file:
            file.write(np.unique(duplicates).astype("<u8").data)
    return task.path


def _duplicates(task: DedupTask) -> np.ndarray:
    all_keys, all_numbers, all_chunks = [], [], []
    for index, path in enumerate([*task.own, *task.others]):
        keys, numbers = TextChunk(path).band_keys(task.band, task.first, task.last)
        all_keys.append(keys)
        all_numbers.append(numbers)
        all_chunks.append(np.full(len(keys), index))
    key, number, chunk = map(np.concatenate, (all_keys, all_numbers, all_chunks))
    is_other = chunk >= len(task.own)
    # By key; for equal keys, documents of other sources first, then those of this source, as read.
    order = np.lexsort((number, ~is_other, key))
    key, number, chunk, is_other = key[order], number[order], chunk[order], is_other[order]
    same_as_previous = np.diff(key, prepend=key[:1] ^ np.uint64(1)) == 0
    if task.threshold is not None:
        return _exact_duplicates(task, number, chunk, is_other, same_as_previous)
    starts = np.flatnonzero(~same_as_previous)
    group = np.cumsum(~same_as_previous) - 1
    first_is_other = is_other[starts][group] if len(starts) else is_other
    return number[~is_other & (first_is_other | (same_as_previous & task.within))]


def _exact_duplicates(
    task: DedupTask,
    number: np.ndarray,
    chunk: np.ndarray,
    is_other: np.ndarray,
    same_as_previous: np.ndarray,
) -> np.ndarray:
    """Return the documents whose features are similar to those of a kept one with the same key."""
    assert task.threshold is not None
    if not len(number):
        return number
    chunks = [TextChunk(path) for path in [*task.own, *task.others]]
    duplicates: list[int] = []
    starts = np.flatnonzero(~same_as_previous).tolist()
    for start, stop in zip(starts, [*starts[1:], len(number)], strict=True):
        if stop - start < 2:
            continue
        kept: list[np.ndarray] = []
        for row in range(start, stop):
            features = chunks[chunk[row]].features(int(number[row]))
            if not is_other[row] and any(
                _jaccard(features, earlier) >= task.threshold for earlier in kept
            ):
                duplicates.append(int(number[row]))
            elif is_other[row] or task.within:
                kept.append(features)
    return np.array(duplicates, np.uint64)


def _jaccard(one: np.ndarray, two: np.ndarray) -> float:
    """Return the Jaccard similarity of two sorted arrays of distinct values."""
    common = len(np.intersect1d(one, two, assume_unique=True))
    union = len(one) + len(two) - common
    return common / union if union else 1.0


def is_duplicate(paths: list[Path], numbers: np.ndarray) -> np.ndarray:
    """Return which of the sorted `numbers` are in any file of `find_duplicates`: (n,) bool."""
    found = np.zeros(len(numbers), bool)
    if not len(numbers):
        return found
    for path in paths:
        count = path.stat().st_size // 8
        if count:
            duplicates = np.memmap(path, "<u8", "r", shape=(count,))
            low, high = np.searchsorted(duplicates, numbers[[0, -1]]) + np.array([0, 1])
            found |= np.isin(numbers, duplicates[low:high])
    return found
