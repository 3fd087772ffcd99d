"""A text unit gives back its texts, keys, features and grams as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gptcli.corpus.chunks import Tally
from gptcli.corpus.decontaminate import shared
from gptcli.corpus.minhash import BANDINGS, band_keys, shingles
from gptcli.corpus.quality import spark_features
from gptcli.corpus.text_chunks import TextUnit, write_text_unit
from gptcli.text.ngrams import grams, word_hashes

ITEM = "one two three four five six seven eight nine ten eleven twelve thirteen"
TEXTS = ["a b c d e f g", f"before {ITEM} after", "Grüße", f"{ITEM} {ITEM}", ""]
NUMBERS = [3, 8, 11, 40, 41]
EVERY = (0, 2**64 - 1)


def written(
    path: Path, method: str | None, items: np.ndarray | None = None, texts: list[str] = TEXTS
) -> TextUnit:
    tally = Tally(read=len(texts) + 1, kept=len(texts))
    tally.drop("blank", "a:1", "")
    write_text_unit(path, NUMBERS[: len(texts)], texts, tally, method, items)
    return TextUnit(path)


@pytest.mark.parametrize("method", [None, "lsh", "paper"])
def test_texts_and_tally_come_back(tmp_path: Path, method: str | None) -> None:
    unit = written(tmp_path / "text", method)
    assert (len(unit), list(unit.texts()), unit.numbers.tolist()) == (5, TEXTS, NUMBERS)
    assert (unit.tally.read, unit.tally.dropped) == (6, {"blank": 1})


def test_each_band_is_sorted_by_key(tmp_path: Path) -> None:
    unit = written(tmp_path / "text", "lsh")
    expected = band_keys(*shingles(TEXTS), BANDINGS["lsh"])
    for band in range(BANDINGS["lsh"].bands):
        keys, numbers = unit.band(band, *EVERY)
        assert keys.tolist() == sorted(expected[:, band].tolist())
        assert dict(zip(numbers.tolist(), keys.tolist(), strict=True)) == dict(
            zip(NUMBERS, expected[:, band].tolist(), strict=True)
        )
        some, _ = unit.band(band, int(keys[1]), int(keys[3]))
        assert some.tolist() == keys[1:4].tolist()


def test_features_of_one_document(tmp_path: Path) -> None:
    unit = written(tmp_path / "text", "paper")
    for number, text in zip(NUMBERS, TEXTS, strict=True):
        assert unit.features(number).tolist() == np.unique(spark_features(text)).tolist()


def test_grams_shared_with_items(tmp_path: Path) -> None:
    items = np.unique(grams(*word_hashes([ITEM]), 13)[0])
    unit = written(tmp_path / "text", None, items)
    found, owner = shared(TEXTS, items)
    assert owner.tolist() == [1, 3]
    assert {row: list(grams) for row, grams in unit.hits().items()} == {
        row: found[owner == row].tolist() for row in (1, 3)
    }
    assert [part.tolist() for part in unit.gram_counts()] == [items.tolist(), [2]]


def test_a_text_unit_without_texts(tmp_path: Path) -> None:
    unit = written(tmp_path / "text", "lsh", texts=[])
    assert (len(unit), list(unit.texts()), unit.hits()) == (0, [], {})
    assert [len(part) for part in unit.band(0, *EVERY)] == [0, 0]
