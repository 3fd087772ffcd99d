"""Global shuffle: merge the sorted chunks into shards.

The documents of a source and split, sorted by shuffle key, are one long sequence. A plan cuts it
into shards at document borders, and each shard is then written by itself: every chunk contributes
the documents of one range of keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gptcli.corpus.chunks import Chunk
from gptcli.corpus.pool import Pool
from gptcli.errors import InputError
from gptcli.events import Events
from gptcli.files import read_json, write_json
from gptcli.numbers import counted
from gptcli.shards.format import MAX_TOKENS, index_path, write_shard
from gptcli.shards.manifest import DEFAULT_SOURCE, SPLITS, Shard, Split

MAX_PLANNED_DOCUMENTS = 4_000_000  # planned at a time, at about 50 bytes each
WRITTEN_DOCUMENTS = 1024  # written at a time


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Range of shuffle keys whose documents make one shard."""

    source: str
    """Name of the source."""
    split: Split
    """Split, "train" or "val"."""
    number: int
    """Number of the shard within its source and split, from 0."""
    first_key: int
    """First shuffle key of the shard."""
    last_key: int
    """Last shuffle key, inclusive; no other shard of the source and split has one in between."""
    documents: int
    """Number of documents."""
    tokens: int
    """Number of tokens."""

    @property
    def file(self) -> str:
        """Name of the shard file."""
        source = "" if self.source == DEFAULT_SOURCE else f"-{self.source}"
        return f"{self.split}{source}-{self.number:06d}.bin"


def plan_shards(
    chunks: list[Chunk], split: Split, shard_tokens: int, source: str = DEFAULT_SOURCE
) -> Iterator[ShardPlan]:
    """Cut a source's split, in key order, into shards of at most `shard_tokens` tokens.

    A longer document is a shard by itself. Keys are read a range at a time, so memory does not grow
    with the corpus. Raises InputError if a document is longer than a shard can be.
    """
    bits = (sum(chunk.documents[split] for chunk in chunks) // MAX_PLANNED_DOCUMENTS).bit_length()
    number = documents = tokens = first_key = last_key = 0  # of the current shard
    for bucket in range(2**bits):
        keys, lengths = _document_lengths(
            chunks, split, bucket << (64 - bits), ((bucket + 1) << (64 - bits)) - 1
        )
        if len(lengths) and lengths.max() > MAX_TOKENS:
            raise InputError(
                f"a document of {counted(lengths.max(), 'token')} is longer than a shard can be "
                f"({MAX_TOKENS})"
            )
        total = np.cumsum(lengths)
        done = 0  # documents of this bucket that are in a shard
        while done < len(keys):
            used = int(total[done - 1]) if done else 0
            until = int(np.searchsorted(total, used + shard_tokens - tokens, "right"))
            if not documents:
                until, first_key = max(until, done + 1), int(keys[done])
            if until > done:
                documents += until - done
                tokens += int(total[until - 1]) - used
                last_key = int(keys[until - 1])
                done = until
            if done < len(keys):  # the next document does not fit
                yield ShardPlan(source, split, number, first_key, last_key, documents, tokens)
                number, documents, tokens = number + 1, 0, 0
    if documents:
        yield ShardPlan(source, split, number, first_key, last_key, documents, tokens)


def _document_lengths(
    chunks: list[Chunk], split: Split, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and token counts of the documents in a range of keys, in key order."""
    tables = [chunk.documents_between(split, first, last) for chunk in chunks]
    keys = np.concatenate([keys for keys, _ in tables])
    lengths = np.concatenate([np.diff(borders) for _, borders in tables])
    order = np.argsort(keys)
    return keys[order], lengths[order]


def write_planned_shard(folder: Path, chunks: list[Chunk], plan: ShardPlan) -> Shard:
    """Collect the documents of a shard from the chunks, write it, and return its manifest entry.

    Memory: the tokens of the shard, once.
    """
    dtype = chunks[0].dtype
    tokens = np.empty(plan.tokens, dtype)
    all_keys, all_starts, all_lengths = [], [], []
    filled = 0
    for chunk in chunks:
        keys, borders = chunk.documents_between(plan.split, plan.first_key, plan.last_key)
        size = int(borders[-1] - borders[0])
        chunk.read_tokens(int(borders[0]), tokens[filled : filled + size])
        all_keys.append(keys)
        all_starts.append(borders[:-1] - borders[0] + filled)
        all_lengths.append(np.diff(borders))
        filled += size
    order = np.argsort(np.concatenate(all_keys))
    starts, lengths = np.concatenate(all_starts)[order], np.concatenate(all_lengths)[order]

    def pieces() -> Iterator[np.ndarray]:
        for first in range(0, len(order), WRITTEN_DOCUMENTS):
            rows = slice(first, first + WRITTEN_DOCUMENTS)
            documents = zip(starts[rows], lengths[rows], strict=True)
            yield np.concatenate([tokens[start : start + length] for start, length in documents])

    digest = write_shard(folder / plan.file, lengths, pieces(), dtype)
    return Shard(
        file=plan.file,
        split=plan.split,
        tokens=plan.tokens,
        documents=plan.documents,
        sha256=digest,
        source=plan.source,
    )


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Task to write one shard."""

    out: Path
    """Output folder."""
    record: Path
    """File for the shard's manifest entry, written when the shard is complete."""
    chunks: list[Chunk]
    """Chunks of the source."""
    plan: ShardPlan
    """Documents of the shard."""

    def is_done(self) -> bool:
        """Return True if the shard, its index and its record exist."""
        shard = self.out / self.plan.file
        return self.record.exists() and shard.exists() and index_path(shard).exists()


def _write_shard(_: object, task: ShardTask) -> Shard:
    shard = write_planned_shard(task.out, task.chunks, task.plan)
    write_json(task.record, asdict(shard))
    return shard


def write_shards(
    out: Path,
    work: Path,
    chunks: dict[str, list[Chunk]],
    shard_tokens: int,
    pool: Pool,
    events: Events,
) -> list[Shard]:
    """Write every shard of the sources' `chunks` that is not complete yet.

    Returns the manifest entries of all shards: train first, source by source, in order.
    """
    tasks = [
        ShardTask(out, work / f"{plan.file}.json", mine, plan)
        for split in SPLITS
        for name, mine in chunks.items()
        for plan in plan_shards(mine, split, shard_tokens, name)
    ]
    shards = [Shard(**read_json(task.record)) for task in tasks if task.is_done()]
    total = sum(task.plan.tokens for task in tasks)
    done = sum(shard.tokens for shard in shards)
    for shard in pool.map(_write_shard, [task for task in tasks if not task.is_done()]):
        shards.append(shard)
        done += shard.tokens
        events.progress("write shards", done, total, "tokens", shards=len(shards))
    events.finish("write shards")
    order = list(chunks)
    return sorted(
        shards,
        key=lambda shard: (SPLITS.index(shard.split), order.index(shard.source), shard.file),
    )
