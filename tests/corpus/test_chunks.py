"""A chunk holds each document once, split by its hash and sorted by its key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gptcli.corpus import chunks
from gptcli.corpus.chunks import (
    NO_MATCHES,
    Chunk,
    Tally,
    TextChunk,
    shuffle_keys,
    write_chunk,
    write_text_chunk,
)
from gptcli.corpus.decontaminate import shared_ngrams
from gptcli.corpus.dedup import BANDINGS, band_keys, document_signatures, shingles
from gptcli.corpus.quality import spark_features
from gptcli.corpus.recipe import Comparison, DedupMethod
from gptcli.errors import RunError
from gptcli.text.ngrams import NgramSet, ngram_hashes, word_hashes
from gptcli.tokenizer.encoders import open_encoder
from gptcli.tokenizer.tokenizer import Tokenizer

TEXTS = ["one", "two", "three", "four", "one", "five", "Grüße", "six"]


MakeChunk = Callable[..., Chunk]


def ids(text: str, tokenizer: Tokenizer) -> list[int]:
    return [256, *tokenizer.encode(text)]


def goes_to_val(text: str, val_fraction: float) -> bool:
    return (
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
        < val_fraction
    )


def read(chunk: Chunk, start: int, stop: int) -> list[int]:
    out = np.empty(stop - start, chunk.dtype)
    chunk.read_tokens(start, out)
    return out.tolist()


def test_a_long_text_is_encoded_in_pieces_to_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte_tokenizer: Tokenizer
) -> None:
    texts = ["", "one two three " * 40, "", "four", "five\n six" * 30, ""]
    monkeypatch.setattr(chunks, "ENCODE_CHARACTERS", 50)
    found = []
    for size in (10**9, 20):
        path = tmp_path / f"{size}"
        encoder = open_encoder(byte_tokenizer, "tokenizers")
        keys = np.arange(len(texts), dtype=np.uint64)
        write_chunk(path, encoder, 256, np.dtype("<u2"), keys, texts, 0.0, Tally(), size)
        chunk = Chunk(path, np.dtype("<u2"))
        assert read(chunk, 0, chunk.tokens) == [
            token for text in texts for token in ids(text, byte_tokenizer)
        ]
        found.append(path.read_bytes())
    assert found[0] == found[1]


def test_documents_are_split_by_hash_and_sorted_by_key(
    tmp_path: Path, byte_tokenizer: Tokenizer, make_chunk: MakeChunk
) -> None:
    chunk = make_chunk(tmp_path / "unit", TEXTS, first=100, seed=7, val_fraction=0.5)
    kept = [(text, 100 + number) for number, text in enumerate(TEXTS)]
    for split in ("train", "val"):
        there = [
            (text, number) for text, number in kept if goes_to_val(text, 0.5) == (split == "val")
        ]
        keys = shuffle_keys(np.array([number for _, number in there], np.uint64), 7)
        order = np.argsort(keys)
        found, borders = chunk.documents_between(split, 0, 2**64 - 1)
        assert chunk.documents[split] == len(there) > 0
        assert found.tolist() == keys[order].tolist()
        documents = [read(chunk, start, stop) for start, stop in pairwise(borders)]
        assert documents == [ids(there[index][0], byte_tokenizer) for index in order]
    assert (chunk.tally.read, chunk.tally.kept) == (8, 8)
    assert chunk.tokens == sum(len(text.encode()) for text, _ in kept) + 8


def test_a_range_of_keys_has_the_documents_between_them(
    tmp_path: Path, make_chunk: MakeChunk
) -> None:
    chunk = make_chunk(
        tmp_path / "unit", [str(number) for number in range(40)], seed=7, val_fraction=0.3
    )
    for split in ("train", "val"):
        keys, borders = chunk.documents_between(split, 0, 2**64 - 1)
        for low, high in ((0, 0), (2, 5), (len(keys) - 1, len(keys) - 1)):
            some_keys, some_borders = chunk.documents_between(
                split, int(keys[low]), int(keys[high])
            )
            assert some_keys.tolist() == keys[low : high + 1].tolist()
            assert some_borders.tolist() == borders[low : high + 2].tolist()
        none, border = chunk.documents_between(split, int(keys[3]) + 1, int(keys[4]) - 1)
        assert (len(none), len(border)) == (0, 1)


def test_the_split_depends_on_the_text_alone(tmp_path: Path, make_chunk: MakeChunk) -> None:
    chunk = make_chunk(tmp_path / "unit", ["the same"] * 5, val_fraction=0.5)
    assert sorted(chunk.documents.values()) == [0, 5]


def test_a_truncated_chunk_is_an_error(tmp_path: Path, make_chunk: MakeChunk) -> None:
    chunk = make_chunk(tmp_path / "unit", TEXTS)
    with open(chunk.path, "r+b") as file:
        file.truncate(chunk.path.stat().st_size - 1)
    with pytest.raises(RunError, match="cut short"):
        read(chunk, 0, chunk.tokens)


def test_a_chunk_may_have_no_documents(tmp_path: Path, make_chunk: MakeChunk) -> None:
    chunk = make_chunk(tmp_path / "unit", [])
    assert (chunk.documents, chunk.tokens) == ({"train": 0, "val": 0}, 0)
    keys, borders = chunk.documents_between("val", 0, 2**64 - 1)
    assert (keys.tolist(), borders.tolist()) == ([], [0])


def test_shuffle_keys_have_not_changed() -> None:
    """Recorded once: another value here changes the shuffle of every build."""
    assert shuffle_keys(np.arange(3, dtype=np.uint64), 0).tolist() == [
        378882369245573341,
        12488100904549480403,
        3859639994205599085,
    ]
    assert shuffle_keys(np.arange(3, dtype=np.uint64), 1).tolist() == [
        9174915746372889881,
        8252837004624768572,
        10911783669615250138,
    ]


def test_keys_are_distinct_and_even() -> None:
    keys = shuffle_keys(np.arange(100_000, dtype=np.uint64), 5)
    assert len(np.unique(keys)) == 100_000
    counts = np.bincount((keys >> np.uint64(56)).astype(int), minlength=256)
    # chi-square, 255 degrees of freedom, 0.9999
    assert ((counts - 390.625) ** 2 / 390.625).sum() < 347


def test_tallies_add_up() -> None:
    one, two = Tally(read=3, kept=1, text_bytes=10), Tally(read=4, kept=3, cut=1, pieces=2)
    one.drop("blank", "a:1", "x" * 999)
    one.drop("blank", "a:2", "")
    two.drop("blank", "b:1", "")
    two.drop("quality", "b:2", "bad")
    one.add(two)
    assert (one.read, one.kept, one.text_bytes, one.cut, one.pieces) == (7, 4, 10, 1, 2)
    assert one.dropped == {"blank": 3, "quality": 1}
    assert [where for where, _ in one.samples["blank"]] == ["a:1", "a:2"]
    assert len(one.samples["blank"][0][1]) == 200


ITEM = "one two three four five six seven eight nine ten eleven twelve thirteen"
STORED_TEXTS = ["a b c d e f g", f"before {ITEM} after", "Grüße", f"{ITEM} {ITEM}", ""]
NUMBERS = [3, 8, 11, 40, 41]
EVERY = (0, 2**64 - 1)


def write_and_open(
    path: Path,
    method: DedupMethod | None,
    items: np.ndarray | None = None,
    texts: list[str] = STORED_TEXTS,
) -> TextChunk:
    tally = Tally(read=len(texts) + 1, kept=len(texts))
    tally.drop("blank", "a:1", "")
    matches = NO_MATCHES if items is None else shared_ngrams(texts, NgramSet(items))
    comparison = Comparison(method, False) if method else None
    signatures = document_signatures(texts, comparison)
    write_text_chunk(path, NUMBERS[: len(texts)], texts, tally, signatures, matches)
    return TextChunk(path)


@pytest.mark.parametrize("method", [None, "lsh", "paper"])
def test_a_text_chunk_gives_back_texts_and_tally(
    tmp_path: Path, method: DedupMethod | None
) -> None:
    chunk = write_and_open(tmp_path / "text", method)
    assert (len(chunk), list(chunk.texts()), chunk.numbers.tolist()) == (5, STORED_TEXTS, NUMBERS)
    assert (chunk.tally.read, chunk.tally.dropped) == (6, {"blank": 1})


def test_each_band_of_a_text_chunk_is_sorted_by_key(tmp_path: Path) -> None:
    chunk = write_and_open(tmp_path / "text", "lsh")
    found, sizes = shingles(STORED_TEXTS)
    expected = band_keys(found, sizes, BANDINGS["lsh"])
    wordless = set()
    for band in range(BANDINGS["lsh"].bands):
        keys, numbers = chunk.band_keys(band, *EVERY)
        assert keys.tolist() == sorted(keys.tolist())
        key_of = dict(zip(numbers.tolist(), keys.tolist(), strict=True))
        for number, key, size in zip(NUMBERS, expected[:, band].tolist(), sizes, strict=True):
            if size:
                assert key_of[number] == key
            else:  # the same in every band: equal to an equal text alone
                wordless.add((number, key_of[number]))
        some, _ = chunk.band_keys(band, int(keys[1]), int(keys[3]))
        assert some.tolist() == [key for key in keys.tolist() if keys[1] <= key <= keys[3]]
    assert [number for number, _ in wordless] == [41]


def test_a_text_chunk_gives_back_the_features_of_each_document(tmp_path: Path) -> None:
    chunk = write_and_open(tmp_path / "text", "paper")
    for number, text in zip(NUMBERS, STORED_TEXTS, strict=True):
        assert chunk.features(number).tolist() == np.unique(spark_features(text)).tolist()


def test_a_text_chunk_gives_back_evaluation_ngrams(tmp_path: Path) -> None:
    items = np.unique(ngram_hashes(*word_hashes([ITEM]), 13)[0])
    chunk = write_and_open(tmp_path / "text", None, items)
    found, owner = shared_ngrams(STORED_TEXTS, NgramSet(items))
    assert owner.tolist() == [1, 3]
    hashes, which = chunk.matches()
    assert (hashes.tolist(), which.tolist()) == (found.tolist(), owner.tolist())


def test_a_text_chunk_may_have_no_texts(tmp_path: Path) -> None:
    chunk = write_and_open(tmp_path / "text", "lsh", texts=[])
    assert (len(chunk), list(chunk.texts()), len(chunk.matches()[0])) == (0, [], 0)
    assert [len(part) for part in chunk.band_keys(0, *EVERY)] == [0, 0]


def test_a_text_chunk_gives_back_any_texts(tmp_path: Path) -> None:
    items = np.array([5], np.uint64)
    tally = Tally(read=4)
    tally.drop("blank", "x:1", "")
    texts = ["Grüße", "", "你\n"]
    matches = shared_ngrams(texts, NgramSet(items))
    signatures = document_signatures(texts, Comparison("lsh", False))
    write_text_chunk(tmp_path / "text", [3, 9, 11], texts, tally, signatures, matches)
    chunk = TextChunk(tmp_path / "text")
    assert list(chunk.texts()) == ["Grüße", "", "你\n"]
    assert chunk.numbers.tolist() == [3, 9, 11]
    assert (chunk.tally.read, chunk.tally.dropped) == (4, {"blank": 1})
    keys, which = chunk.band_keys(0, 0, 2**64 - 1)
    assert sorted(which.tolist()) == [3, 9, 11]
    assert keys.tolist() == sorted(keys.tolist())
    assert [len(part) for part in chunk.matches()] == [0, 0]
    signatures = document_signatures([], Comparison("paper", True))
    write_text_chunk(tmp_path / "none", [], [], Tally(), signatures)
    assert TextChunk(tmp_path / "none").band_keys(0, 0, 2**64 - 1)[0].tolist() == []
    assert list(TextChunk(tmp_path / "none").texts()) == []
