"""MinHash and its bands: documents that are alike share a band's key, with the probability of the
S-curve 1 - (1 - s^rows)^bands.

"lsh": word 5-grams, 14 bands of 8 hashes (half of all pairs at s = 0.70 are found; 90 % at 0.80).
"paper": GPT-3's 10 hashes of the words of Spark's tokenizer, all of which must be equal; pairs are
then compared exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gptcli.shards.order import mix64
from gptcli.text.ngrams import grams, word_hashes

SHINGLE = 5  # words
SEED = 42


@dataclass(frozen=True, slots=True)
class Banding:
    bands: int
    rows: int

    def probability(self, similarity: float) -> float:
        """That a pair of this Jaccard similarity shares a band."""
        return 1 - (1 - similarity**self.rows) ** self.bands


BANDINGS = {"lsh": Banding(14, 8), "paper": Banding(1, 10)}


def shingles(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the word 5-grams of each text (uint64) end to end, and how many each has; a shorter
    text is one shingle.
    """
    hashes, counts = word_hashes(texts)
    found, owner = grams(hashes, counts, SHINGLE)
    short = np.flatnonzero((counts > 0) & (counts < SHINGLE))
    if len(short):
        starts = np.cumsum(counts) - counts
        each = (
            hashes[start : start + count]
            for start, count in zip(starts[short], counts[short], strict=True)
        )
        whole = np.concatenate(
            [grams(words, np.array([len(words)]), len(words))[0] for words in each]
        )
        owner = np.concatenate([owner, short])
        order = np.argsort(owner, kind="stable")
        found, owner = np.concatenate([found, whole])[order], owner[order]
    return found, np.bincount(owner, minlength=len(texts))


def band_keys(features: np.ndarray, counts: np.ndarray, banding: Banding) -> np.ndarray:
    """The key of each document in each band: (documents, bands) uint64. `features`: hashes (uint64)
    end to end, `counts` a document.

    Hash k of a feature is the high half of it, times an odd number of k's own, plus another, modulo
    2**32; all are equally likely to be least, and a document without features has keys of its own.
    """
    chance = np.random.default_rng(SEED)
    size = banding.bands * banding.rows
    factors = chance.integers(0, 1 << 32, size, np.uint32) | np.uint32(1)
    terms = chance.integers(0, 1 << 32, size, np.uint32)
    halves = (features >> np.uint64(32)).astype(np.uint32)
    minima = np.empty((len(counts), size), np.uint32)
    hashed = np.empty((4096, size), np.uint32)
    start = 0
    for row, count in enumerate(counts.tolist()):
        minima[row] = 0xFFFFFFFF
        for at in range(start, start + count, len(hashed)):
            part = halves[at : min(at + len(hashed), start + count), None]
            out = hashed[: len(part)]
            np.multiply(part, factors, out=out)
            out += terms
            np.minimum(minima[row], out.min(0), out=minima[row])
        start += count
    keys = mix64(
        np.arange(1, banding.rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    ) | np.uint64(1)
    found = mix64(
        (minima.reshape(len(counts), banding.bands, banding.rows) * keys).sum(-1, dtype=np.uint64)
    )
    empty = np.flatnonzero(counts == 0)
    found[empty] = chance.integers(0, 1 << 63, (len(empty), banding.bands), np.uint64)
    return found
