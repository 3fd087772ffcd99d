"""What of a task stands in the training data: the analysis of GPT-3's Appendix C.

An item is dirty where any N words in a row of it occur in a row in a training document, both in
small letters and without punctuation. N is the 5th percentile of the task's lengths in words, at
least 8 (synthetic tasks: less) and at most 13. An item of fewer words than N has no such words, and
counts as clean. The training filter is another procedure, with other rules: `gpt build-shards` has
it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptcli.errors import InputError
from gptcli.events import SILENT, Events
from gptcli.shards.loader import TokenStream, open_split
from gptcli.shards.manifest import read_manifest
from gptcli.tokenizer.tokenizer import Tokenizer

LEAST, MOST, PERCENTILE = 8, 13, 5
CHUNK = 1 << 20  # tokens held at once, about
# of the polynomial that stands for N words; odd, so that no word's place is lost
_BASE = 0x9E3779B97F4A7C15
_PUNCTUATION = re.compile(r"[^\w\s]|_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contamination:
    """Which items of a task are dirty."""

    n: int
    """Words of an overlap."""
    items: int
    dirty: dict[str, str]
    """The first words in a row that were found in the training data, by the id of the item that has
    them.
    """
    documents: int
    tokens: int
    """What was searched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A score on all items, on the clean, on the dirty: shares from 0 to 1, None where there are
    none.
    """

    all: float
    clean: float | None
    dirty: float | None
    difference: float | None
    """Clean over all, less one: how much better (or, if negative, worse) the clean score is, as the
    paper draws it.
    """


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation; a word of nothing else is none."""
    return _PUNCTUATION.sub("", text.lower()).split()


def analysis_n(lengths: Iterable[int], *, synthetic: bool = False) -> int:
    """N for a task whose items have so many words."""
    percentile = int(np.percentile(np.fromiter(lengths, np.int64), PERCENTILE))
    return min(MOST, max(1 if synthetic else LEAST, percentile))


def analyse(
    items: Iterable[tuple[str, str]],
    shards: Path,
    tokenizer: Tokenizer,
    *,
    synthetic: bool = False,
    events: Events = SILENT,
) -> Contamination:
    """Which of `items` (id, text) overlap with the training split of a shard folder.

    Memory is that of the items and a million tokens: documents are read in order, and only N words
    in a row that are all known words of the items are looked up. Raises InputError where there are
    no items, or the shards are broken or another tokenizer's.
    """
    texts = {name: words_of(text) for name, text in items}
    if not texts:
        raise InputError("there are no items to look for", where=shards)
    manifest = read_manifest(shards)
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise InputError(
            "these shards were built with another tokenizer than the model's", where=shards
        )
    n = analysis_n(map(len, texts.values()), synthetic=synthetic)
    grams: dict[tuple[str, ...], list[str]] = {}
    for name, words in texts.items():
        for gram in {tuple(words[start : start + n]) for start in range(len(words) - n + 1)}:
            grams.setdefault(gram, []).append(name)
    index = _Index(grams, n)
    stream = open_split(shards, "train")
    dirty: dict[str, str] = {}
    documents = 0
    for read, count, text in _documents(stream, manifest.eot_id, tokenizer):
        documents += count
        for gram in index.found(words_of(text)):
            for name in grams.get(gram, ()):
                dirty.setdefault(name, " ".join(gram))
        events.progress("contamination", read, len(stream), "tokens")
    events.finish("contamination")
    return Contamination(
        n=n, items=len(texts), dirty=dirty, documents=documents, tokens=len(stream)
    )


class _Index:
    """N words in a row, looked for in long texts."""

    def __init__(self, grams: Iterable[tuple[str, ...]], n: int) -> None:
        self.n = n
        grams = list(grams)
        self.numbers = {
            word: number
            for number, word in enumerate(sorted({word for gram in grams for word in gram}), 1)
        }
        self.powers = np.array([pow(_BASE, power, 1 << 64) for power in range(n)], dtype=np.uint64)
        known = np.array(
            [[self.numbers[word] for word in gram] for gram in grams], dtype=np.uint64
        ).reshape(-1, n)
        self.keys = np.unique((known * self.powers).sum(axis=1, dtype=np.uint64))

    def found(self, words: list[str]) -> Iterator[tuple[str, ...]]:
        """The N words in a row of `words` that have the key of one that is looked for: it, or,
        hardly ever, another.
        """
        if len(words) < self.n or not len(self.keys):
            return
        numbers = np.fromiter((self.numbers.get(word, 0) for word in words), np.uint64, len(words))
        windows = np.lib.stride_tricks.sliding_window_view(numbers, self.n)
        # a word that no item has rules its windows out
        places = np.flatnonzero(windows.all(axis=1))
        keys = (windows[places] * self.powers).sum(axis=1, dtype=np.uint64)
        for place in places[np.isin(keys, self.keys)].tolist():
            yield tuple(words[place : place + self.n])


def _documents(
    stream: TokenStream, eot_id: int | None, tokenizer: Tokenizer
) -> Iterator[tuple[int, int, str]]:
    """(tokens read, 1 where a document begins, text) of each document; one longer than CHUNK in
    parts that overlap by more than N words.
    """
    overlap = 64 * MOST  # tokens: a word of more than 64 is no word
    pending = np.empty(0, stream.dtype)
    begins = 1
    for start in range(0, len(stream), CHUNK):
        pending = np.concatenate([pending, stream[start : start + CHUNK]])
        ends = np.flatnonzero(pending == eot_id) if eot_id is not None else np.empty(0, np.int64)
        read, first = min(start + CHUNK, len(stream)), 0
        for end in ends.tolist():
            if end > first:
                yield read, begins, tokenizer.decode(pending[first:end].tolist())
            begins, first = 1, end + 1
        pending = pending[first:]
        if len(pending) > CHUNK:
            yield read, begins, tokenizer.decode(pending.tolist())
            pending, begins = pending[-overlap:], 0
    if len(pending):
        yield len(stream), begins, tokenizer.decode(pending.tolist())


def split_scores(scores: Mapping[str, float], dirty: Iterable[str]) -> Split:
    """A task's scores by item, apart: the clean, the dirty, and all."""
    tainted = set(dirty)
    clean = [score for name, score in scores.items() if name not in tainted]
    unclean = [score for name, score in scores.items() if name in tainted]
    mean = sum(scores.values()) / len(scores)
    clean_mean = sum(clean) / len(clean) if clean else None
    return Split(
        all=mean,
        clean=clean_mean,
        dirty=sum(unclean) / len(unclean) if unclean else None,
        difference=clean_mean / mean - 1 if clean_mean is not None and mean else None,
    )
