"""Chunks: files of consecutive documents on their way from the inputs to the shards.

A chunk has the tokens of its documents. The global shuffle is a sort: each document gets a 64-bit
shuffle key, a one-to-one hash of its number and the seed, so no two keys are equal and the order
depends neither on workers nor on how documents are grouped into chunks. A chunk has its train
documents sorted by key, then its validation documents sorted by key, so the documents of a range of
keys are contiguous in every chunk.

A text chunk has the texts of documents that cannot be tokenized yet, because their source is
deduplicated or decontaminated, and the hashes that the comparison of all documents needs.

Both begin with a JSON header, which is padded so that the arrays after it are aligned. They are
written atomically: a chunk that exists is complete.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np

from gptcli.errors import RunError
from gptcli.files import atomic_write
from gptcli.shards.format import TokenDtype
from gptcli.shards.manifest import Split
from gptcli.shards.order import mix64
from gptcli.tokenizer.encoders import Encoder
from gptcli.tokenizer.tokenizer import pieces

SPLIT_RULE = (  # written to the manifest
    "validation where the first 8 bytes of BLAKE2b-64(text in UTF-8), big-endian, "
    "are below val_fraction * 2**64"
)
# Characters given to the encoder at a time: bounds the Python integers alive at once.
ENCODE_CHARACTERS = 1 << 22
MAX_SAMPLES = 2  # dropped texts kept for the report, per reason and chunk
SAMPLE_CHARACTERS = 200


@dataclass(slots=True)
class Tally:
    """Number of documents read, kept and dropped: `read` = `kept` + the sum of `dropped`."""

    read: int = 0
    """Number of documents read."""
    kept: int = 0
    """Number of documents kept."""
    text_bytes: int = 0
    """Size of the text kept, in bytes of UTF-8."""
    cut: int = 0
    """Number of kept documents that lost text to decontamination."""
    pieces: int = 0
    """Number of documents added because decontamination divided some into several."""
    spelled: int = 0
    """Number of documents, before duplicates are removed, that spell `<|endoftext|>`."""
    changed: Counter[str] = field(default_factory=Counter)
    """Number of documents whose text a stage changed, by stage; a later one may drop them."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Number of documents dropped, by reason."""
    samples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Places and first characters of a few dropped documents, by reason."""

    def as_json(self) -> dict[str, object]:
        """Return the fields as a JSON object, as `read_tally` reads them."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def drop(self, reason: str, where: str, text: str) -> None:
        """Count a dropped document, and keep a sample of it."""
        self.dropped[reason] += 1
        samples = self.samples.setdefault(reason, [])
        if len(samples) < MAX_SAMPLES:
            samples.append((where, text[:SAMPLE_CHARACTERS]))

    def add(self, other: Tally) -> None:
        """Add the counts of `other`, and its samples while there is room for them."""
        self.read += other.read
        self.kept += other.kept
        self.text_bytes += other.text_bytes
        self.cut += other.cut
        self.pieces += other.pieces
        self.spelled += other.spelled
        self.changed += other.changed
        self.dropped += other.dropped
        for reason, samples in other.samples.items():
            mine = self.samples.setdefault(reason, [])
            mine += samples[: MAX_SAMPLES - len(mine)]


def write_header(file: IO[bytes], header: dict[str, object]) -> None:
    """Write the JSON header of a chunk: u64 length, then JSON padded to a multiple of 8 bytes."""
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    file.write(len(data).to_bytes(8, "little") + data)


def read_header(path: Path) -> tuple[dict[str, object], int]:
    """Return the JSON header of a chunk and the byte offset of its arrays."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size)), 8 + size


def read_tally(header: dict[str, object]) -> Tally:
    """Return the tally in the header of a chunk."""
    tally = Tally(**header["tally"])  # type: ignore[arg-type]
    tally.dropped, tally.changed = Counter(tally.dropped), Counter(tally.changed)
    return tally


def shuffle_keys(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Return the shuffle keys (uint64, distinct) of documents with these distinct `numbers`.

    The keys decide the order of the documents in the shards. They must never change.
    """
    first, second = np.frombuffer(
        hashlib.blake2b(f"{seed}".encode(), digest_size=16, person=b"gpt shard order").digest(),
        "<u8",
    )
    return mix64(mix64(numbers ^ first) ^ second)


def write_chunk(
    path: Path,
    encoder: Encoder,
    eot_id: int,
    dtype: TokenDtype,
    keys: np.ndarray,
    texts: list[str],
    val_fraction: float,
    tally: Tally,
    piece_characters: int = sys.maxsize,
) -> None:
    """Split texts into train and validation, sort them, tokenize them and write a chunk.

    `keys` (documents,) uint64 are the shuffle keys of the `texts`. Each document begins with the
    token `eot_id`. A longer text than `piece_characters` is encoded in pieces (`Tokenizer.divides`).
    """
    limit = val_fraction * 2**64
    is_val = np.array([_split_hash(text) < limit for text in texts], bool)
    order = np.lexsort((keys, is_val))
    blocks = []
    counts = np.ones(len(texts), np.int64)  # the end-of-text tokens
    for rows, batch, begins in _batches([texts[index] for index in order], piece_characters):
        ids, lengths = encoder.encode(batch)
        np.add.at(counts, rows, lengths)
        starts = np.cumsum(lengths) - lengths
        blocks.append(np.insert(ids.astype(dtype), starts[begins], eot_id))
    borders = np.concatenate([[0], counts]).cumsum().astype("<i8")
    val = int(is_val.sum())
    with atomic_write(path) as file:
        write_header(file, {"train": len(texts) - val, "val": val, "tally": tally.as_json()})
        for array in (keys[order].astype("<u8"), borders, *blocks):
            file.write(array.data)


def _split_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _batches(
    texts: Iterable[str], piece_characters: int
) -> Iterator[tuple[list[int], list[str], list[bool]]]:
    """Yield batches of the texts or their pieces: the row of each, the piece, and True if it begins
    its text.
    """
    rows: list[int] = []
    batch: list[str] = []
    begins: list[bool] = []
    size = 0
    for row, text in enumerate(texts):
        for number, piece in enumerate(pieces(text, piece_characters)):
            rows.append(row)
            batch.append(piece)
            begins.append(number == 0)
            size += len(piece)
            if size >= ENCODE_CHARACTERS:
                yield rows, batch, begins
                rows, batch, begins, size = [], [], [], 0
    if batch:
        yield rows, batch, begins


class Chunk:
    """Chunk file, opened for reading: header, shuffle keys, token borders of documents, tokens."""

    def __init__(self, path: Path, dtype: TokenDtype) -> None:
        self.path, self.dtype = path, dtype
        header, self._keys_offset = read_header(path)
        self.documents = {
            split: int(header[split])  # type: ignore[call-overload]
            for split in ("train", "val")
        }
        """Number of documents of each split."""
        self.tally = read_tally(header)
        """Tally of the documents that were read for this chunk."""
        count = sum(self.documents.values())
        self._borders_offset = self._keys_offset + 8 * count
        self._tokens_offset = self._borders_offset + 8 * (count + 1)
        self.tokens = (path.stat().st_size - self._tokens_offset) // dtype.itemsize
        """Number of tokens."""

    def documents_between(
        self, split: Split, first: int, last: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the documents of a split with shuffle keys from `first` to `last`, inclusive.

        They are given by keys (n,) uint64 and token borders (n + 1,) int64, for `read_tokens`.
        """
        before = 0 if split == "train" else self.documents["train"]
        count = self.documents[split]
        # Mapped, because the search touches only a few keys. An empty region cannot be mapped.
        keys = (
            np.memmap(self.path, "<u8", "r", self._keys_offset + 8 * before, (count,))
            if count
            else np.empty(0, "<u8")
        )
        low = int(np.searchsorted(keys, np.uint64(first), "left"))
        high = int(np.searchsorted(keys, np.uint64(last), "right"))
        borders = np.fromfile(
            self.path, "<i8", high - low + 1, offset=self._borders_offset + 8 * (before + low)
        )
        return np.array(keys[low:high]), borders

    def read_tokens(self, start: int, out: np.ndarray) -> None:
        """Fill `out` with the tokens from `start` on. Raises RunError if the file is too short."""
        with open(self.path, "rb") as file:
            file.seek(self._tokens_offset + self.dtype.itemsize * start)
            if file.readinto(out.data) != out.nbytes:
                raise RunError(
                    "was cut short after it was written",
                    where=self.path,
                    hint="start over with {option:force}",
                )


@dataclass(frozen=True, slots=True)
class Signatures:
    """Hashes by which documents are compared for deduplication."""

    keys: np.ndarray
    """Key of each document in each MinHash band, (bands, documents) uint64."""
    features: np.ndarray
    """Distinct features of all documents end to end, uint64; empty if only keys are compared."""
    feature_counts: np.ndarray
    """Number of features of each document, (documents,) int64."""


NO_REPEATS = (np.empty(0, np.uint64),) * 3
NO_MATCHES = np.empty(0, np.uint64), np.empty(0, np.int64)


def write_text_chunk(
    path: Path,
    numbers: list[int],
    texts: list[str],
    tally: Tally,
    signatures: Signatures,
    matches: tuple[np.ndarray, np.ndarray] = NO_MATCHES,
    repeats: tuple[np.ndarray, np.ndarray, np.ndarray] = NO_REPEATS,
) -> None:
    """Write a text chunk: documents with their numbers, signatures and evaluation n-grams.

    `matches` are the n-grams that the texts share with evaluation items: (hashes, indices of the
    texts), each pair once. `repeats` are those of `gptcli.corpus.repeats.repeat_hashes`.
    """
    document_numbers = np.array(numbers, "<u8")
    order = np.argsort(signatures.keys, axis=1, kind="stable")
    match_hashes, match_texts = matches
    encoded = [text.encode() for text in texts]
    with atomic_write(path) as file:
        header = {
            "texts": len(texts),
            "bands": len(signatures.keys),
            "features": len(signatures.features),
            "hits": len(match_hashes),
            "repeats": len(repeats[0]),
        }
        write_header(file, {**header, "tally": tally.as_json()})
        for array in (
            document_numbers,
            np.cumsum([0, *map(len, encoded)]),
            np.take_along_axis(signatures.keys, order, 1),
            document_numbers[order],
            np.cumsum([0, *signatures.feature_counts.tolist()]),
            signatures.features,
            match_hashes,
            match_texts,
            *repeats,
        ):
            file.write(np.ascontiguousarray(array).astype("<u8").data)
        file.writelines(encoded)


class TextChunk:
    """Text chunk file, opened for reading; its arrays are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header, offset = read_header(path)
        count, bands, features, matches = (
            int(header[name])  # type: ignore[call-overload]
            for name in ("texts", "bands", "features", "hits")
        )
        self.repeat_count = int(header.get("repeats", 0))  # type: ignore[call-overload]
        """Number of runs of units that are compared to find repeated text."""
        self.tally = read_tally(header)
        """Tally of the documents that were read for this chunk."""
        self._count = count
        sizes = {  # in the order of `write_text_chunk`
            "numbers": count,
            "text_borders": count + 1,
            "keys": bands * count,
            "key_numbers": bands * count,
            "feature_borders": count + 1,
            "features": features,
            "match_hashes": matches,
            "match_texts": matches,
            "repeat_hashes": self.repeat_count,
            "repeat_numbers": self.repeat_count,
            "repeat_firsts": self.repeat_count,
        }
        self._arrays: dict[str, tuple[int, int]] = {}  # name: (byte offset, length)
        for name, size in sizes.items():
            self._arrays[name] = offset, size
            offset += 8 * size
        self._texts_offset = offset

    def __len__(self) -> int:
        return self._count

    def _array(self, name: str) -> np.ndarray:
        offset, size = self._arrays[name]
        return np.fromfile(self.path, "<u8", size, offset=offset)

    @property
    def numbers(self) -> np.ndarray:
        """Numbers of the documents, (documents,) uint64, ascending."""
        return self._array("numbers")

    def texts(self) -> Iterator[str]:
        """Yield the text of each document."""
        data = self.path.read_bytes()[self._texts_offset :]
        for start, stop in pairwise(self._array("text_borders").tolist()):
            yield data[start:stop].decode()

    def band_keys(self, band: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the (keys, document numbers) of a band with keys from `first` to `last`, sorted.

        `last` is inclusive; both arrays are uint64.
        """
        names = ("keys", "key_numbers")
        keys, numbers = self._between(names, band * self._count, self._count, first, last)
        return keys, numbers

    def repeat_hashes(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return hashes of runs of units from `first` to `last`, sorted, and each one's document
        number and first unit.

        `last` is inclusive; all arrays are uint64.
        """
        names = ("repeat_hashes", "repeat_numbers", "repeat_firsts")
        hashes, numbers, firsts = self._between(names, 0, self.repeat_count, first, last)
        return hashes, numbers, firsts

    def _between(
        self, names: tuple[str, ...], skipped: int, count: int, first: int, last: int
    ) -> list[np.ndarray]:
        """Return the rows of arrays, `count` from `skipped` on, whose sorted first one is in range."""
        if not count:
            return [np.empty(0, "<u8") for _ in names]
        # Mapped, because the search touches only a few of them.
        arrays = [
            np.memmap(self.path, "<u8", "r", self._arrays[name][0] + 8 * skipped, (count,))
            for name in names
        ]
        low = np.searchsorted(arrays[0], np.uint64(first), "left")
        high = np.searchsorted(arrays[0], np.uint64(last), "right")
        return [np.array(array[low:high]) for array in arrays]

    def features(self, number: int) -> np.ndarray:
        """Return the distinct features of the document `number`, sorted (uint64)."""
        row = int(np.searchsorted(self.numbers, np.uint64(number)))
        offset = self._arrays["feature_borders"][0] + 8 * row
        start, stop = np.fromfile(self.path, "<u8", 2, offset=offset).tolist()
        offset = self._arrays["features"][0] + 8 * start
        return np.fromfile(self.path, "<u8", stop - start, offset=offset)

    def matches(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the evaluation n-grams found here, and the index of the document of each.

        They are (hashes uint64, indices int64); each pair occurs once.
        """
        return self._array("match_hashes"), self._array("match_texts").astype(np.int64)
