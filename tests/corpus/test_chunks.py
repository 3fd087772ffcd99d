"""A unit holds each document once, split by its hash and sorted by its key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gptcli.corpus.chunks import Tally, Unit, shuffle_keys
from gptcli.errors import RunError
from gptcli.tokenizer.tokenizer import Tokenizer

TEXTS = ["one", "two", "three", "four", "one", "five", "Grüße", "six"]


MakeUnit = Callable[..., Unit]


def ids(text: str, tokenizer: Tokenizer) -> list[int]:
    return [256, *tokenizer.encode(text)]


def goes_to_val(text: str, val_fraction: float) -> bool:
    return (
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
        < val_fraction
    )


def read(unit: Unit, start: int, stop: int) -> list[int]:
    out = np.empty(stop - start, unit.dtype)
    unit.read(start, out)
    return out.tolist()


def test_documents_are_split_by_hash_and_sorted_by_key(
    tmp_path: Path, byte_tokenizer: Tokenizer, make_unit: MakeUnit
) -> None:
    unit = make_unit(tmp_path / "unit", TEXTS, first=100, seed=7, val_fraction=0.5)
    kept = [(text, 100 + number) for number, text in enumerate(TEXTS)]
    for split in ("train", "val"):
        there = [
            (text, number) for text, number in kept if goes_to_val(text, 0.5) == (split == "val")
        ]
        keys = shuffle_keys(np.array([number for _, number in there], np.uint64), 7)
        order = np.argsort(keys)
        found, borders = unit.table(split, 0, 2**64 - 1)
        assert unit.documents[split] == len(there) > 0
        assert found.tolist() == keys[order].tolist()
        documents = [read(unit, start, stop) for start, stop in pairwise(borders)]
        assert documents == [ids(there[index][0], byte_tokenizer) for index in order]
    assert (unit.tally.read, unit.tally.kept) == (8, 8)
    assert unit.tokens == sum(len(text.encode()) for text, _ in kept) + 8


def test_a_table_is_cut_at_its_keys(tmp_path: Path, make_unit: MakeUnit) -> None:
    unit = make_unit(
        tmp_path / "unit", [str(number) for number in range(40)], seed=7, val_fraction=0.3
    )
    for split in ("train", "val"):
        keys, borders = unit.table(split, 0, 2**64 - 1)
        for low, high in ((0, 0), (2, 5), (len(keys) - 1, len(keys) - 1)):
            some_keys, some_borders = unit.table(split, int(keys[low]), int(keys[high]))
            assert some_keys.tolist() == keys[low : high + 1].tolist()
            assert some_borders.tolist() == borders[low : high + 2].tolist()
        none, border = unit.table(split, int(keys[3]) + 1, int(keys[4]) - 1)
        assert (len(none), len(border)) == (0, 1)


def test_the_split_depends_on_the_text_alone(tmp_path: Path, make_unit: MakeUnit) -> None:
    unit = make_unit(tmp_path / "unit", ["the same"] * 5, val_fraction=0.5)
    assert sorted(unit.documents.values()) == [0, 5]


def test_a_unit_that_was_cut_short_says_so(tmp_path: Path, make_unit: MakeUnit) -> None:
    unit = make_unit(tmp_path / "unit", TEXTS)
    with open(unit.path, "r+b") as file:
        file.truncate(unit.path.stat().st_size - 1)
    with pytest.raises(RunError, match="cut short"):
        read(unit, 0, unit.tokens)


def test_a_unit_without_text(tmp_path: Path, make_unit: MakeUnit) -> None:
    unit = make_unit(tmp_path / "unit", [])
    assert (unit.documents, unit.tokens) == ({"train": 0, "val": 0}, 0)
    keys, borders = unit.table("val", 0, 2**64 - 1)
    assert (keys.tolist(), borders.tolist()) == ([], [0])


def test_keys_are_the_same_for_ever() -> None:
    """Written down once: another value here is another shuffle for everybody."""
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
