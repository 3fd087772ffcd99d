"""GPT-3's training filter (Appendix C): cut out of documents what evaluation items share with them.

A 13-gram of words that also stands in an evaluation item is cut with 200 characters on each side;
pieces below 200 characters go; a document cut into more than 10 pieces goes as a whole; grams that
stand in more than 10 training documents are ordinary text and are left alone. Documents are
searched by hash; only those that hold one are looked at word by word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gptcli.corpus.readers import read_documents
from gptcli.corpus.streams import ending, opened
from gptcli.errors import InputError
from gptcli.files import parse_json
from gptcli.text.ngrams import grams, normalised, word_hashes

GRAM = 13  # words
WINDOW = 200  # characters cut on each side
SHORTEST = 200  # characters of a piece that stays
MOST_PIECES = 10
MOST_DOCUMENTS = 10  # that a gram may stand in and still be contamination


def item_grams(files: Sequence[str]) -> np.ndarray:
    """The distinct 13-grams of evaluation items, sorted (uint64). Raises InputError where a file
    holds none.
    """
    found = []
    for path in files:
        hashes, _ = grams(*word_hashes(list(read_items(path))), GRAM)
        if not len(hashes):
            raise InputError(
                f"no evaluation item in it is {GRAM} words long",
                where=path,
                hint="leave it out of [decontaminate]",
            )
        found.append(hashes)
    return np.unique(np.concatenate(found))


def read_items(path: str) -> Iterator[str]:
    """The text of each item: in JSON lines all strings of a record, in other files each
    paragraph.
    """
    if ending(path)[0] != ".jsonl":
        yield from (document.text for document in read_documents(path, documents="paragraph"))
        return
    with opened(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield " ".join(_strings(parse_json(line, f"{path}:{number}")))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def shared(texts: list[str], items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The grams that texts share with the items, each once a text: (hashes, numbers of the
    texts).
    """
    found, owner = grams(*word_hashes(texts), GRAM)
    low = np.uint64(len(_bitmap(items)) - 1)
    maybe = np.flatnonzero(_bitmap(items)[(found & low).astype(np.int64)])
    found, owner = found[maybe], owner[maybe]
    there = items[np.minimum(np.searchsorted(items, found), len(items) - 1)] == found
    pairs = np.unique(np.stack([found[there], owner[there].astype(np.uint64)]), axis=1)
    return pairs[0], pairs[1].astype(np.int64)


_bitmaps: dict[int, np.ndarray] = {}


def _bitmap(items: np.ndarray) -> np.ndarray:
    """Which low bits occur among the items: rules out nearly every gram with one look."""
    if id(items) not in _bitmaps:
        bits = max(16, (16 * len(items)).bit_length())
        table = np.zeros(1 << bits, bool)
        table[(items & np.uint64((1 << bits) - 1)).astype(np.int64)] = True
        _bitmaps.clear()
        _bitmaps[id(items)] = table
    return _bitmaps[id(items)]


def cut(text: str, contaminated: np.ndarray) -> list[str]:
    """The pieces of a document that stay. `contaminated`: the grams to cut (uint64)."""
    words = list(normalised(text))
    hashes, counts = word_hashes([" ".join(word for word, _, _ in words)])
    found, _ = grams(hashes, counts, GRAM)
    pieces, begin = [], 0
    for first in np.flatnonzero(np.isin(found, contaminated)).tolist():
        start, stop = words[first][1] - WINDOW, words[first + GRAM - 1][2] + WINDOW
        if start > begin:
            pieces.append(text[begin:start])
        begin = max(begin, stop)
    pieces.append(text[begin:])
    return [piece for piece in pieces if len(piece) >= SHORTEST]
