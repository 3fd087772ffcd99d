"""Contamination of a task by the training data: the analysis of GPT-3's Appendix C.

An item is dirty if any N consecutive words of it are consecutive words of a training document, both
in lower case and without punctuation. N is the 5th percentile of the task's item lengths in words,
at least 8 (less for synthetic tasks) and at most 13. An item of fewer than N words counts as clean.
The filter of the training data is a different procedure, with other rules: see
`gptcli.corpus.decontaminate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.errors import InputError, UsageError
from gptcli.evals.records import Record
from gptcli.evals.requests import Request, item_text
from gptcli.evals.results import item_score
from gptcli.evals.task import Task
from gptcli.events import SILENT, Events
from gptcli.shards.manifest import read_manifest
from gptcli.shards.order import TokenStream, open_split
from gptcli.text.ngrams import NgramSet, ngram_hashes, normalized_words, word_hashes
from gptcli.tokenizer.tokenizer import Tokenizer

MIN_OVERLAP_WORDS, MAX_OVERLAP_WORDS = 8, 13
LENGTH_PERCENTILE = 5
CHUNK_TOKENS = 1 << 20  # tokens searched at a time, approximately
MAX_TOKENS_PER_WORD = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Contamination:
    """Dirty items of a task."""

    n: int
    """Words in an overlap."""
    items: int
    """Number of items."""
    dirty: dict[str, str]
    """First overlap of each dirty item that was found in the training data, by its name."""
    documents: int
    """Number of documents searched."""
    tokens: int
    """Number of tokens searched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitScores:
    """Mean scores of all items, clean items and dirty items, from 0 to 1; None if there are none.

    The field names are keys of eval.json.
    """

    all: float
    """Mean score of all items."""
    clean: float | None
    """Mean score of clean items."""
    dirty: float | None
    """Mean score of dirty items."""
    difference: float | None
    """Relative difference of the clean score from the score of all items, as in the paper's plots:
    negative if contamination helped.
    """


def normalize_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return [word for word, _, _ in normalized_words(text)]


def overlap_length(lengths: Iterable[int], *, synthetic: bool = False) -> int:
    """Return N, the words in an overlap, for a task with items of these lengths in words."""
    percentile = int(np.percentile(np.fromiter(lengths, np.int64), LENGTH_PERCENTILE))
    return min(MAX_OVERLAP_WORDS, max(1 if synthetic else MIN_OVERLAP_WORDS, percentile))


def find_contamination(
    items: Iterable[tuple[str, str]],
    shards: Path,
    tokenizer: Tokenizer,
    *,
    synthetic: bool = False,
    events: Events = SILENT,
) -> Contamination:
    """Search the training split of a shard folder for overlaps with `items` (name, text).

    The names must differ.

    Documents are read in order, CHUNK_TOKENS at a time. Raises InputError if there are no items, or
    if the shards are broken or were built with another tokenizer.
    """
    texts = {name: normalize_words(text) for name, text in items}
    if not texts:
        raise InputError("there are no items to search for", where=shards)
    manifest = read_manifest(shards)
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise InputError(
            "these shards were built with another tokenizer than the model's", where=shards
        )
    n = overlap_length(map(len, texts.values()), synthetic=synthetic)
    owners: dict[tuple[str, ...], list[str]] = {}
    """Items by the n-grams that they contain."""
    for name, words in texts.items():
        for ngram in {tuple(words[start : start + n]) for start in range(len(words) - n + 1)}:
            owners.setdefault(ngram, []).append(name)
    wanted = NgramSet(
        ngram_hashes(*word_hashes([" ".join(words) for words in texts.values()]), n)[0]
    )
    stream = open_split(shards, "train")
    dirty: dict[str, str] = {}
    documents = 0
    for read, count, text in _documents(stream, manifest.eot_id, tokenizer):
        documents += count
        starts, _ = wanted.find(ngram_hashes(*word_hashes([text]), n)[0])
        words = normalize_words(text) if len(starts) else []
        for start in starts.tolist():
            ngram = tuple(words[start : start + n])
            for name in owners.get(ngram, ()):  # none if only the hashes agree
                dirty.setdefault(name, " ".join(ngram))
        events.progress("contamination", read, len(stream), "tokens")
    events.finish("contamination")
    return Contamination(
        n=n, items=len(texts), dirty=dirty, documents=documents, tokens=len(stream)
    )


def _documents(
    stream: TokenStream, eot_id: int | None, tokenizer: Tokenizer
) -> Iterator[tuple[int, int, str]]:
    """Yield (tokens read, 1 if a document begins or else 0, text) of each document.

    A document longer than CHUNK_TOKENS comes in parts that overlap by more than N words.
    """
    overlap = MAX_TOKENS_PER_WORD * MAX_OVERLAP_WORDS
    pending = np.empty(0, stream.dtype)
    begins = 1
    for start in range(0, len(stream), CHUNK_TOKENS):
        pending = np.concatenate([pending, stream[start : start + CHUNK_TOKENS]])
        ends = np.flatnonzero(pending == eot_id) if eot_id is not None else np.empty(0, np.int64)
        read, first = min(start + CHUNK_TOKENS, len(stream)), 0
        for end in ends.tolist():
            if end > first:
                yield read, begins, tokenizer.decode(pending[first:end].tolist())
            begins, first = 1, end + 1
        pending = pending[first:]
        if len(pending) > CHUNK_TOKENS:
            yield read, begins, tokenizer.decode(pending.tolist())
            pending, begins = pending[-overlap:], 0
    if len(pending):
        yield len(stream), begins, tokenizer.decode(pending.tolist())


def split_scores(scores: Mapping[str, float], dirty: Iterable[str]) -> SplitScores:
    """Return the mean of a task's scores (by the items' names) for all, clean and dirty items."""
    dirty_ids = set(dirty)
    clean_scores = [score for name, score in scores.items() if name not in dirty_ids]
    dirty_scores = [score for name, score in scores.items() if name in dirty_ids]
    mean = sum(scores.values()) / len(scores)
    clean_mean = sum(clean_scores) / len(clean_scores) if clean_scores else None
    return SplitScores(
        all=mean,
        clean=clean_mean,
        dirty=sum(dirty_scores) / len(dirty_scores) if dirty_scores else None,
        difference=clean_mean / mean - 1 if clean_mean is not None and mean else None,
    )


def contamination_report(
    task: Task,
    requests: Sequence[Request],
    records: Sequence[Record],
    shards: Path,
    tokenizer: Tokenizer,
    events: Events,
) -> dict[str, Any]:
    """Return the number of dirty items and the scores in percent of all, clean and dirty items.

    Raises UsageError for running text, which has no items, and the errors of `find_contamination`.
    """
    if task.kind == "text":
        raise contamination_of_text(task)
    found = find_contamination(
        ((str(request.index), item_text(request.item)) for request in requests),
        shards,
        tokenizer,
        synthetic=bool(task.generated),
        events=events,
    )
    scores = {
        str(record["index"]): score
        for record in records
        if (score := item_score(task, record)) is not None
    }
    split = asdict(split_scores(scores, found.dirty)) if scores else {}
    percent = {name: None if value is None else 100 * value for name, value in split.items()}
    return {
        "shards": str(shards),
        "n": found.n,
        "items": found.items,
        "dirty_items": len(found.dirty),
        **percent,
    }


def contamination_of_text(task: Task) -> UsageError:
    """Return the error for a search for the items of running text, which has none."""
    return UsageError(
        f"{task.name} is running text and has no items to search for",
        field="against",
        code="contamination_of_text",
    )
