"""Units: runs of tokenised documents on their way into shards, each one a file, sorted by where the shuffle will put them.

The global shuffle is a sort: every document gets a 64-bit key, a one-to-one hash of its number in reading order and of the seed, so
no two are equal and the order depends neither on workers nor on how documents are grouped into units. A unit holds its train
documents by key, then its validation documents by key; whoever needs a range of keys finds it in one piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptcli.corpus.readers import Document
from gptcli.files import atomic_write
from gptcli.shards.format import TokenDtype, token_dtype
from gptcli.shards.order import mix64
from gptcli.tokenizer.tokenizer import Tokenizer

SPLIT_RULE = "validation where the first 8 bytes of BLAKE2b-64(text in UTF-8), big-endian, are below val_fraction * 2**64"
ENCODE_CHARACTERS = 1_000_000  # given to the tokenizer at a time; bounds the Python integers alive at once


@dataclass(frozen=True, slots=True)
class UnitTask:
    path: Path
    first: int
    """The number of the unit's first document in reading order."""
    documents: list[Document]
    seed: int
    val_fraction: float


def tokenize_unit(tokenizer: Tokenizer, task: UnitTask) -> Unit:
    """Hash, sort and tokenise a unit's documents and write them to `task.path`, whole or not at all.

    Documents of blanks only are left out.
    """
    texts, kept, hashes = [], [], []
    text_bytes = 0
    for number, document in enumerate(task.documents):
        if not document.text.strip():
            continue
        data = document.text.encode()
        texts.append(document.text)
        kept.append(task.first + number)
        hashes.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()))
        text_bytes += len(data)
    val = np.array([value < task.val_fraction * 2**64 for value in hashes], bool)
    keys = shuffle_keys(np.array(kept, np.uint64), task.seed)
    order = np.lexsort((keys, val))
    pieces = list(_encode(tokenizer, [texts[index] for index in order]))
    counts = np.array([len(texts) - val.sum(), val.sum(), len(task.documents), text_bytes], "<i8")
    borders = np.cumsum([0, *map(len, pieces)], dtype="<i8")
    with atomic_write(task.path) as file:
        for part in (counts, keys[order].astype("<u8"), borders, *pieces):
            file.write(part.data)
    return Unit(task.path, token_dtype(tokenizer.vocab_size))


def shuffle_keys(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Where the shuffle puts the documents of these `numbers` (uint64): distinct uint64 sort keys, for ever the same."""
    first, second = np.frombuffer(hashlib.blake2b(f"{seed}".encode(), digest_size=16, person=b"gpt shard order").digest(), "<u8")
    return mix64(mix64(numbers ^ first) ^ second)


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Iterator[np.ndarray]:
    """Each text's tokens, an end-of-text before them."""
    dtype = token_dtype(tokenizer.vocab_size)
    for batch in _batches(texts):
        for ids in tokenizer.encode_batch(batch):
            yield np.array([tokenizer.eot_id, *ids], dtype)


def _batches(texts: list[str]) -> Iterator[list[str]]:
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
    """A unit's file: int64 counts (train documents, val documents, documents read, text bytes kept), keys, token borders, tokens."""

    def __init__(self, path: Path, dtype: TokenDtype) -> None:
        self.path, self.dtype = path, dtype
        counts = np.fromfile(path, "<i8", 4)
        self.documents = {"train": int(counts[0]), "val": int(counts[1])}
        self.documents_read, self.text_bytes = int(counts[2]), int(counts[3])
        self._borders = counts.nbytes + 8 * self.kept  # where in the file
        self._tokens = self._borders + 8 * (self.kept + 1)
        self.tokens = (path.stat().st_size - self._tokens) // dtype.itemsize

    @property
    def kept(self) -> int:
        return sum(self.documents.values())

    def table(self, split: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The split's documents whose keys are `first` to `last` inclusive: keys (n,) uint64, borders (n + 1,) of their tokens, int64."""
        before = 0 if split == "train" else self.documents["train"]
        count = self.documents[split]
        # Mapped, because a search touches a few of the keys only. Nothing cannot be mapped.
        keys = np.memmap(self.path, "<u8", "r", 32 + 8 * before, (count,)) if count else np.empty(0, "<u8")
        low = int(np.searchsorted(keys, np.uint64(first), "left"))
        high = int(np.searchsorted(keys, np.uint64(last), "right"))
        borders = np.fromfile(self.path, "<i8", high - low + 1, offset=self._borders + 8 * (before + low))
        return np.array(keys[low:high]), borders

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop, a copy."""
        return np.fromfile(self.path, self.dtype, stop - start, offset=self._tokens + self.dtype.itemsize * start)


def grouped(documents: Iterable[Document], characters: int) -> Iterator[list[Document]]:
    """Runs of documents, in order, each of about this many characters."""
    run: list[Document] = []
    size = 0
    for document in documents:
        run.append(document)
        size += len(document.text) + 64  # a document costs something even when it is empty
        if size >= characters:
            yield run
            run, size = [], 0
    if run:
        yield run
