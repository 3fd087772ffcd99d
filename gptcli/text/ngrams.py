"""Hashes of normalised words and of word n-grams, computed for batches of texts with numpy.

A word is a run of characters between white space, in lower case and without punctuation (GPT-3's
Appendix C); `normalized_words` implements this in plain Python. With `split`, punctuation separates
words like white space does, which leaves alphanumeric words only (GPT-2's overlap). The arrays
contain a 64-bit hash of each word or n-gram.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from functools import cached_property, lru_cache

import numpy as np

from gptcli.shards.order import mix64
from gptcli.tokenizer.tokenizer import pieces

MAX_BATCH_CHARS = 1 << 20  # characters hashed at a time
FILTER_BITS = 16  # bitmap bits per hash of a set: one in 16 other hashes passes
# Base of the polynomial hash; odd, so that it has an inverse modulo 2**64.
_BASE = 0x9E3779B97F4A7C15 | 1
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_DROPPED, _BLANK, _BORDER, _WORD = range(4)  # classes of bytes
_KIND = np.full(256, _WORD, np.uint8)
_KIND[list(string.punctuation.encode())] = _DROPPED
_KIND[list(b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f")] = _BLANK
_KIND[0] = _BORDER
_SPLIT_KIND = _KIND.copy()
_SPLIT_KIND[_KIND == _DROPPED] = _BLANK


def normalized_words(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield (word, start, end) for each word of `text` and its position in it."""
    for match in re.finditer(r"\S+", text):
        word = _PUNCTUATION.sub("", match[0].lower()).replace("\0", "")
        if word:
            yield word, match.start(), match.end()


def word_hashes(texts: list[str], *, split: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of all words, concatenated (uint64), and the words per text (int64)."""
    parts: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    batch: list[str] = []
    owner: list[int] = []
    characters = 0
    for number, text in enumerate(texts):
        for piece in pieces(text, MAX_BATCH_CHARS):
            batch.append(piece)
            owner.append(number)
            characters += len(piece)
            if characters >= MAX_BATCH_CHARS:
                _flush(batch, owner, parts, owners, split)
                characters = 0
    _flush(batch, owner, parts, owners, split)
    counts = np.bincount(np.concatenate([np.empty(0, np.int64), *owners]), minlength=len(texts))
    return np.concatenate([np.empty(0, np.uint64), *parts]), counts


def _flush(
    batch: list[str],
    owner: list[int],
    parts: list[np.ndarray],
    owners: list[np.ndarray],
    split: bool,
) -> None:
    if batch:
        hashes, which = _hashed(batch, split)
        parts.append(hashes)
        owners.append(np.array(owner, np.int64)[which])
        batch.clear()
        owner.clear()


def _hashed(texts: list[str], split: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash of each word (uint64) and the index of its text (int64)."""
    data = np.frombuffer(b"\0".join(_plain(text, " " if split else "") for text in texts), np.uint8)
    kind = (_SPLIT_KIND if split else _KIND)[data]
    kept = kind != _DROPPED
    data, kind = data[kept], kind[kept]
    inside = kind == _WORD
    edges = np.flatnonzero(np.diff(inside, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    powers, inverses = _tables(max(16, len(data).bit_length()))
    sums = np.concatenate(
        [np.zeros(1, np.uint64), np.cumsum(data * powers[: len(data)], dtype=np.uint64)]
    )
    hashes = mix64(
        (sums[ends] - sums[starts]) * inverses[starts] + (ends - starts).astype(np.uint64)
    )
    return hashes, np.searchsorted(np.flatnonzero(kind == _BORDER), starts)


def _plain(text: str, punctuation: str) -> bytes:
    """Return the text in lower case as UTF-8, with `punctuation` for punctuation outside ASCII."""
    text = text.lower()
    if not text.isascii():
        text = " ".join(_PUNCTUATION.sub(punctuation, text).split())
    return text.encode().replace(b"\0", b"")


@lru_cache(maxsize=4)
def _tables(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first 2**bits powers of the base and of its inverse (uint64)."""
    tables = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        table = np.full(1 << bits, base, np.uint64)
        table[0] = 1
        tables.append(np.cumprod(table, dtype=np.uint64))
    return tables[0], tables[1]


def ngram_hashes(hashes: np.ndarray, counts: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash of each word n-gram (uint64) and the index of its text (int64).

    `hashes` and `counts` are those of `word_hashes`. A text of fewer words has no n-gram.
    """
    if len(hashes) < n:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    is_inside_text = owner[: len(owner) - n + 1] == owner[n - 1 :]
    total = np.zeros(len(hashes) - n + 1, np.uint64)
    keys = mix64(np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_BASE))
    for offset, key in enumerate(keys):
        total += hashes[offset : offset + len(total)] * (key | np.uint64(1))
    return mix64(total[is_inside_text]), owner[: len(total)][is_inside_text]


class NgramSet:
    """Set of n-gram hashes for which long texts are searched.

    A bitmap over the low bits of the hashes rules out nearly every other n-gram with one lookup;
    the rest are found by binary search.
    """

    def __init__(self, hashes: np.ndarray) -> None:
        """Take the distinct values of `hashes` (uint64)."""
        self.hashes = np.unique(hashes)
        """Distinct hashes in ascending order."""

    @cached_property
    def _bitmap(self) -> np.ndarray:
        """Low bits that occur among the hashes, (2**k,) bool."""
        bitmap = np.zeros(1 << max(16, (FILTER_BITS * len(self.hashes)).bit_length()), bool)
        bitmap[(self.hashes & np.uint64(len(bitmap) - 1)).astype(np.int64)] = True
        return bitmap

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of `hashes` are in the set, in their order.

        Returns their positions in `hashes` and the positions of the same values in `self.hashes`
        (both int64).
        """
        low_bits = (hashes & np.uint64(len(self._bitmap) - 1)).astype(np.int64)
        positions = np.flatnonzero(self._bitmap[low_bits])
        indices = np.searchsorted(self.hashes, hashes[positions])
        indices[indices == len(self.hashes)] = 0
        found = np.zeros(0, bool)
        if len(self.hashes):
            found = self.hashes[indices] == hashes[positions]
        return positions[found], indices[found]
