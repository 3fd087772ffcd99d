"""GPT-3's training filter (Brown et al. 2020, Appendix C): remove overlaps with evaluation items.

A 13-gram of words that also occurs in an evaluation item is removed with 200 characters on each
side. Pieces of less than 200 characters are dropped, and so is a document that is left in more than
10 pieces. N-grams that occur in more than 10 training documents are ordinary text and are kept.
N-grams are searched by hash; only documents with a match are looked at word by word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gptcli.corpus.formats import read_documents, read_json_values
from gptcli.corpus.inputs import file_suffixes
from gptcli.errors import InputError
from gptcli.text.ngrams import NgramSet, grams, normalised, word_hashes

NGRAM_WORDS = 13
WINDOW_CHARACTERS = 200  # removed on each side of an n-gram
MIN_PIECE_CHARACTERS = 200
MAX_PIECES = 10
MAX_NGRAM_DOCUMENTS = 10  # documents an n-gram may occur in and still be contamination


def evaluation_ngrams(files: Sequence[str]) -> np.ndarray:
    """Return the distinct 13-grams of the evaluation items in `files`, sorted (uint64).

    Raises InputError if a file has no item of 13 words.
    """
    found = []
    for path in files:
        hashes, _ = grams(*word_hashes(list(read_items(path))), NGRAM_WORDS)
        if not len(hashes):
            raise InputError(
                f"no evaluation item in it has {NGRAM_WORDS} words",
                where=path,
                hint="remove it from [decontaminate]",
            )
        found.append(hashes)
    return np.unique(np.concatenate(found))


def read_items(path: str) -> Iterator[str]:
    """Yield the text of each item: all strings of a JSON line, or a paragraph of any other file."""
    if file_suffixes(path)[0] == ".jsonl":
        for _, value in read_json_values(path):
            yield " ".join(_strings(value))
    else:
        yield from (document.text for document in read_documents(path, documents="paragraph"))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def shared_ngrams(texts: list[str], items: NgramSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the n-grams that `texts` share with evaluation items, each once per text.

    The result is (hashes uint64, indices of the texts int64), sorted.
    """
    hashes, owners = grams(*word_hashes(texts), NGRAM_WORDS)
    matches, _ = items.find(hashes)
    pairs = np.unique(np.stack([hashes[matches], owners[matches].astype(np.uint64)]), axis=1)
    return pairs[0], pairs[1].astype(np.int64)


def remove_ngrams(text: str, contaminated: np.ndarray) -> list[str]:
    """Return the pieces of a document that are left without the `contaminated` n-grams (uint64)."""
    words = list(normalised(text))
    hashes, counts = word_hashes([" ".join(word for word, _, _ in words)])
    ngrams, _ = grams(hashes, counts, NGRAM_WORDS)
    pieces, begin = [], 0
    for first in np.flatnonzero(np.isin(ngrams, contaminated)).tolist():
        start = words[first][1] - WINDOW_CHARACTERS
        stop = words[first + NGRAM_WORDS - 1][2] + WINDOW_CHARACTERS
        if start > begin:
            pieces.append(text[begin:start])
        begin = max(begin, stop)
    pieces.append(text[begin:])
    return [piece for piece in pieces if len(piece) >= MIN_PIECE_CHARACTERS]
