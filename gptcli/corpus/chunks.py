"""Units: runs of documents on their way into shards, each one a file, sorted by where the shuffle
will put them.

The global shuffle is a sort: every document gets a 64-bit key, a one-to-one hash of its number and
of the seed, so no two are equal and the order depends neither on workers nor on how documents are
grouped into units. A unit holds its train documents by key, then its validation documents by key;
whoever needs a range of keys finds it in one piece.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO

import numpy as np

from gptcli.errors import RunError
from gptcli.files import atomic_write
from gptcli.shards.format import TokenDtype
from gptcli.shards.order import mix64
from gptcli.tokenizer.encoders import Encoder

SPLIT_RULE = "validation where the first 8 bytes of BLAKE2b-64(text in UTF-8), big-endian, are below val_fraction * 2**64"
# given to the encoder at a time; bounds the Python integers alive at once
ENCODE_CHARACTERS = 1 << 22
SAMPLES = 2  # texts kept of what was dropped, for each reason and unit
SAMPLE_CHARACTERS = 200


@dataclass(slots=True)
class Tally:
    """What became of documents. `read` = those kept + the sum of `dropped`."""

    read: int = 0
    kept: int = 0
    text_bytes: int = 0
    """Of what is left of those kept."""
    cut: int = 0
    """Documents among those kept that lost text to decontamination."""
    pieces: int = 0
    """Documents made besides those kept, because some were cut apart."""
    dropped: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """(where, how it begins) of a few that were dropped, by reason."""

    def as_json(self) -> dict[str, object]:
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def drop(self, reason: str, where: str, text: str) -> None:
        self.dropped[reason] += 1
        some = self.samples.setdefault(reason, [])
        if len(some) < SAMPLES:
            some.append((where, text[:SAMPLE_CHARACTERS]))

    def add(self, other: Tally) -> None:
        self.read += other.read
        self.kept += other.kept
        self.text_bytes += other.text_bytes
        self.cut += other.cut
        self.pieces += other.pieces
        self.dropped += other.dropped
        for reason, some in other.samples.items():
            mine = self.samples.setdefault(reason, [])
            mine += some[: SAMPLES - len(mine)]


def write_head(file: IO[bytes], head: dict[str, object]) -> None:
    """JSON before the arrays of a work file, padded so that they are aligned."""
    data = json.dumps(head).encode()
    data += b" " * (-len(data) % 8)
    file.write(len(data).to_bytes(8, "little") + data)


def read_head(path: Path) -> tuple[dict[str, object], int]:
    """The JSON, and where the arrays begin."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size)), 8 + size


def read_tally(head: dict[str, object]) -> Tally:
    tally = Tally(**head["tally"])  # type: ignore[arg-type]
    tally.dropped = Counter(tally.dropped)
    return tally


def write_unit(
    path: Path,
    encoder: Encoder,
    eot_id: int,
    dtype: TokenDtype,
    keys: np.ndarray,
    texts: list[str],
    val_fraction: float,
    tally: Tally,
) -> None:
    """Hash, sort and tokenise texts and write them to `path`, whole or not at all. `keys` (uint64):
    where the shuffle puts each.
    """
    limit = val_fraction * 2**64
    val = np.array(
        [
            int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) < limit
            for text in texts
        ],
        bool,
    )
    order = np.lexsort((keys, val))
    pieces, counts = [], []
    for batch in _batches([texts[index] for index in order]):
        ids, lengths = encoder.encode(batch)
        piece = np.full(len(ids) + len(lengths), eot_id, dtype)
        inside = np.ones(len(piece), bool)
        inside[np.cumsum(lengths + 1) - lengths - 1] = False  # where documents begin
        piece[inside] = ids
        pieces.append(piece)
        counts.append(lengths + 1)
    borders = np.concatenate([[0], *counts]).cumsum().astype("<i8")
    with atomic_write(path) as file:
        write_head(
            file,
            {"train": len(texts) - int(val.sum()), "val": int(val.sum()), "tally": tally.as_json()},
        )
        for part in (keys[order].astype("<u8"), borders, *pieces):
            file.write(part.data)


def shuffle_keys(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Where the shuffle puts the documents of these `numbers` (uint64): distinct uint64 sort keys,
    for ever the same.
    """
    first, second = np.frombuffer(
        hashlib.blake2b(f"{seed}".encode(), digest_size=16, person=b"gpt shard order").digest(),
        "<u8",
    )
    return mix64(mix64(numbers ^ first) ^ second)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= ENCODE_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Unit:
    """A unit's file: a head with counts, keys, token borders, tokens."""

    def __init__(self, path: Path, dtype: TokenDtype) -> None:
        self.path, self.dtype = path, dtype
        head, self._keys = read_head(path)
        self.documents = {split: int(head[split]) for split in ("train", "val")}  # type: ignore[call-overload]
        self.tally = read_tally(head)
        self._borders = self._keys + 8 * sum(self.documents.values())
        self._tokens = self._borders + 8 * (sum(self.documents.values()) + 1)
        self.tokens = (path.stat().st_size - self._tokens) // dtype.itemsize

    def table(self, split: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The split's documents whose keys are `first` to `last` inclusive: keys (n,) uint64,
        borders (n + 1,) of their tokens, int64.
        """
        before = 0 if split == "train" else self.documents["train"]
        count = self.documents[split]
        # Mapped, because a search touches a few of the keys only. Nothing cannot be mapped.
        keys = (
            np.memmap(self.path, "<u8", "r", self._keys + 8 * before, (count,))
            if count
            else np.empty(0, "<u8")
        )
        low = int(np.searchsorted(keys, np.uint64(first), "left"))
        high = int(np.searchsorted(keys, np.uint64(last), "right"))
        borders = np.fromfile(
            self.path, "<i8", high - low + 1, offset=self._borders + 8 * (before + low)
        )
        return np.array(keys[low:high]), borders

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out` with the tokens from `start` on. Raises RunError where there are not so
        many.
        """
        with open(self.path, "rb") as file:
            file.seek(self._tokens + self.dtype.itemsize * start)
            if file.readinto(out.data) != out.nbytes:
                raise RunError(
                    "was cut short since it was written",
                    where=self.path,
                    hint="start over with {option:force}",
                )
