"""From sorted units to shards: cut the sequence of all keys into shards at document borders, then
write each shard by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gptcli.corpus.chunks import Unit
from gptcli.corpus.workers import Pool
from gptcli.errors import InputError
from gptcli.events import Events
from gptcli.files import read_json, write_json
from gptcli.shards.format import MAX_TOKENS, index_path, write_shard
from gptcli.shards.manifest import DEFAULT_SOURCE, SPLITS, Shard

PLAN_DOCUMENTS = 4_000_000  # planned at a time, at some 50 bytes each
PIECE_DOCUMENTS = 1024  # written at a time


@dataclass(frozen=True, slots=True)
class ShardPlan:
    source: str
    split: str
    number: int
    first_key: int
    last_key: int
    """Inclusive; no other shard of the split has a key in between."""
    documents: int
    tokens: int

    @property
    def file(self) -> str:
        source = "" if self.source == DEFAULT_SOURCE else f"-{self.source}"
        return f"{self.split}{source}-{self.number:06d}.bin"


def plan_shards(
    units: list[Unit], split: str, shard_tokens: int, source: str = DEFAULT_SOURCE
) -> Iterator[ShardPlan]:
    """Cut a source's split, in key order, into shards of at most `shard_tokens` tokens; a longer
    document is a shard of its own.

    Looks at a range of keys at a time, so its memory does not grow with the corpus. Raises
    InputError where one document is too long for any shard.
    """
    bits = (sum(unit.documents[split] for unit in units) // PLAN_DOCUMENTS).bit_length()
    number = documents = tokens = first_key = last_key = 0  # of the shard that is open
    for bucket in range(2**bits):
        keys, lengths = _lengths(
            units, split, bucket << (64 - bits), ((bucket + 1) << (64 - bits)) - 1
        )
        if len(lengths) and lengths.max() > MAX_TOKENS:
            raise InputError(
                f"a document of {lengths.max()} tokens is longer than a shard can be ({MAX_TOKENS})"
            )
        total = np.cumsum(lengths)
        done = 0  # documents of this bucket that lie in shards
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


def _lengths(units: list[Unit], split: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and token counts of the documents in a range of keys, in key order."""
    tables = [unit.table(split, first, last) for unit in units]
    keys = np.concatenate([keys for keys, _ in tables])
    lengths = np.concatenate([np.diff(borders) for _, borders in tables])
    order = np.argsort(keys)
    return keys[order], lengths[order]


def write_planned(folder: Path, units: list[Unit], plan: ShardPlan) -> Shard:
    """Collect one shard's documents from the units and write it, whole or not at all. Holds the
    shard's tokens in memory once.
    """
    dtype = units[0].dtype
    tokens = np.empty(plan.tokens, dtype)
    keys, starts, lengths = [], [], []
    filled = 0
    for unit in units:
        found, borders = unit.table(plan.split, plan.first_key, plan.last_key)
        size = int(borders[-1] - borders[0])
        unit.read(int(borders[0]), tokens[filled : filled + size])
        keys.append(found)
        starts.append(borders[:-1] - borders[0] + filled)
        lengths.append(np.diff(borders))
        filled += size
    order = np.argsort(np.concatenate(keys))
    start, length = np.concatenate(starts)[order], np.concatenate(lengths)[order]

    def pieces() -> Iterator[np.ndarray]:
        for at in range(0, len(order), PIECE_DOCUMENTS):
            spans = zip(
                start[at : at + PIECE_DOCUMENTS], length[at : at + PIECE_DOCUMENTS], strict=True
            )
            yield np.concatenate([tokens[begin : begin + count] for begin, count in spans])

    digest = write_shard(folder / plan.file, length, pieces(), dtype)
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
    out: Path
    record: Path
    """Where the shard's entry of the manifest is kept once it is whole."""
    units: list[Unit]
    plan: ShardPlan

    def done(self) -> bool:
        shard = self.out / self.plan.file
        return self.record.exists() and shard.exists() and index_path(shard).exists()


def _write_shard(_: object, task: ShardTask) -> Shard:
    shard = write_planned(task.out, task.units, task.plan)
    write_json(task.record, asdict(shard))
    return shard


def write_shards(
    out: Path,
    work: Path,
    units: dict[str, list[Unit]],
    shard_tokens: int,
    pool: Pool,
    events: Events,
) -> list[Shard]:
    """Write every shard of the sources' `units` that is not there whole yet. All of them: train
    first, source by source, in order.
    """
    tasks = [
        ShardTask(out, work / f"{plan.file}.json", mine, plan)
        for split in SPLITS
        for name, mine in units.items()
        for plan in plan_shards(mine, split, shard_tokens, name)
    ]
    shards = [Shard(**read_json(task.record)) for task in tasks if task.done()]
    total = sum(task.plan.tokens for task in tasks)
    done = sum(shard.tokens for shard in shards)
    for shard in pool.map(_write_shard, [task for task in tasks if not task.done()]):
        shards.append(shard)
        done += shard.tokens
        events.progress("write shards", done, total, "tokens", shards=len(shards))
    events.finish("write shards")
    return sorted(
        shards,
        key=lambda shard: (SPLITS.index(shard.split), list(units).index(shard.source), shard.file),
    )
