"""Text units: runs of cleaned documents that wait for what is known only when all are read:
duplicates, and how common a gram is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from gptcli.corpus.chunks import Tally, read_head, read_tally, write_head
from gptcli.corpus.decontaminate import shared
from gptcli.corpus.minhash import BANDINGS, band_keys, shingles
from gptcli.corpus.quality import spark_features
from gptcli.files import atomic_write
from gptcli.shards.order import mix64


def write_text_unit(
    path: Path,
    numbers: list[int],
    texts: list[str],
    tally: Tally,
    method: str | None,
    items: np.ndarray | None,
) -> None:
    """Write texts and their numbers, their band keys by `method`, and the grams they share with
    evaluation `items`.
    """
    which = np.array(numbers, "<u8")
    keys = np.empty((0, len(texts)), np.uint64)
    features, counts = np.empty(0, np.uint64), np.zeros(len(texts), np.int64)
    if method == "lsh":
        keys = band_keys(*shingles(texts), BANDINGS[method]).T
    elif method == "paper":
        rows = [np.unique(spark_features(text)).astype(np.uint64) for text in texts]
        counts = np.array([len(row) for row in rows], np.int64)
        features = np.concatenate([features, *rows])
        keys = band_keys(mix64(features + np.uint64(1)), counts, BANDINGS[method]).T
    order = np.argsort(keys, axis=1, kind="stable")
    found, owner = (
        shared(texts, items)
        if items is not None
        else (np.empty(0, np.uint64), np.empty(0, np.int64))
    )
    grams, documents = np.unique(found, return_counts=True)
    blobs = [text.encode() for text in texts]
    with atomic_write(path) as file:
        head = {
            "texts": len(texts),
            "bands": len(keys),
            "features": len(features),
            "grams": len(grams),
            "hits": len(found),
        }
        write_head(file, {**head, "tally": tally.as_json()})
        for part in (
            which,
            np.cumsum([0, *map(len, blobs)]),
            np.take_along_axis(keys, order, 1),
            which[order],
            np.cumsum([0, *counts.tolist()]),
        ):
            file.write(np.ascontiguousarray(part).astype("<u8").data)
        for part in (features, grams, documents, found, owner):
            file.write(part.astype("<u8").data)
        file.writelines(blobs)


class TextUnit:
    """A text unit's file: its small parts are read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        head, start = read_head(path)
        count, bands, features, grams, hits = (
            int(head[name])  # type: ignore[call-overload]
            for name in ("texts", "bands", "features", "grams", "hits")
        )
        self.tally = read_tally(head)
        self._count = count
        self._at: dict[str, tuple[int, int]] = {}  # part: where in the file, how many
        sizes = {
            "numbers": count,
            "borders": count + 1,
            "keys": bands * count,
            "which": bands * count,
            "feature_borders": count + 1,
        }
        for name, size in {
            **sizes,
            "features": features,
            "grams": grams,
            "documents": grams,
            "found": hits,
            "owner": hits,
        }.items():
            self._at[name] = start, size
            start += 8 * size
        self._texts = start

    def __len__(self) -> int:
        return self._count

    def _part(self, name: str) -> np.ndarray:
        at, size = self._at[name]
        return np.fromfile(self.path, "<u8", size, offset=at)

    @property
    def numbers(self) -> np.ndarray:
        return self._part("numbers")

    def texts(self) -> Iterator[str]:
        data = self.path.read_bytes()[self._texts :]
        for start, stop in pairwise(self._part("borders").tolist()):
            yield data[start:stop].decode()

    def band(self, band: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and numbers of the documents whose key in this band is `first` to `last`, in the
        order of the keys.
        """
        if not self._count:
            return np.empty(0, "<u8"), np.empty(0, "<u8")
        keys, which = (
            np.memmap(
                self.path, "<u8", "r", self._at[name][0] + 8 * band * self._count, (self._count,)
            )
            for name in ("keys", "which")
        )
        low, high = (
            np.searchsorted(keys, np.uint64(first), "left"),
            np.searchsorted(keys, np.uint64(last), "right"),
        )
        return np.array(keys[low:high]), np.array(which[low:high])

    def features(self, number: int) -> np.ndarray:
        """The distinct features of one document, sorted; method "paper"."""
        row = int(np.searchsorted(self.numbers, np.uint64(number)))
        at = self._at["feature_borders"][0] + 8 * row
        start, stop = np.fromfile(self.path, "<u8", 2, offset=at).tolist()
        return np.fromfile(
            self.path, "<u8", stop - start, offset=self._at["features"][0] + 8 * start
        )

    def gram_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """The evaluation grams found here, and in how many documents each."""
        return self._part("grams"), self._part("documents")

    def hits(self) -> dict[int, np.ndarray]:
        """The evaluation grams of each document that holds any, by its place in the unit."""
        found, owner = self._part("found"), self._part("owner")
        return {int(row): found[owner == row] for row in np.unique(owner)}
