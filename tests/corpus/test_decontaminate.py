"""Overlaps with evaluation items are removed, with a window around them, and nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from gptcli.corpus.decontaminate import evaluation_ngrams, remove_ngrams, shared_ngrams
from gptcli.errors import InputError
from gptcli.text.ngrams import NgramSet, grams, word_hashes

ITEM = "the quick brown fox jumps over the lazy dog while seven wizards watch from afar today"


def prose(seed: int, count: int) -> str:
    chance = random.Random(seed)
    return " ".join("".join(chance.choices("abcdefgh", k=5)) for _ in range(count))


def items(tmp_path: Path, *texts: str) -> np.ndarray:
    (tmp_path / "items.jsonl").write_text(
        "".join(
            json.dumps({"question": text, "answers": {"label": [1, "no"]}}) + "\n" for text in texts
        )
    )
    return evaluation_ngrams([str(tmp_path / "items.jsonl")])


def test_an_item_is_removed_with_200_characters_on_each_side(tmp_path: Path) -> None:
    before, after = prose(1, 200), prose(2, 200)
    planted = "The QUICK brown fox, jumps over the lazy dog; while seven wizards watch from afar -- today!"
    text = f"{before} {planted} {after}"
    grams_of = items(tmp_path, ITEM)
    found, owner = shared_ngrams([prose(3, 500), text], NgramSet(grams_of))
    assert set(owner.tolist()) == {1}
    pieces = remove_ngrams(text, found)
    start = text.index("The QUICK")
    stop = text.index("today!") + len("today!")
    assert pieces == [text[: start - 200], text[stop + 200 :]]


def test_twelve_words_are_no_overlap(tmp_path: Path) -> None:
    text = f"{prose(1, 90)} {' '.join(ITEM.split()[:12])} {prose(2, 90)}"
    assert len(shared_ngrams([text], NgramSet(items(tmp_path, ITEM)))[0]) == 0


def test_short_pieces_are_dropped(tmp_path: Path) -> None:
    grams_of = items(tmp_path, ITEM)
    text = (
        f"{prose(1, 60)} {ITEM} {prose(2, 200)}"  # 360 characters before, of which 200 are removed
    )
    assert remove_ngrams(text, grams_of) == [text[text.index(ITEM) + len(ITEM) + 200 :]]
    assert remove_ngrams(ITEM, grams_of) == []
    many = f" {prose(5, 150)} ".join([ITEM] * 13)
    assert len(remove_ngrams(many, grams_of)) == 12


def test_only_contaminated_ngrams_are_removed(tmp_path: Path) -> None:
    grams_of = items(tmp_path, ITEM, prose(9, 30))
    text = f"{prose(1, 90)} {ITEM} {prose(2, 150)} {prose(9, 30)} {prose(3, 90)}"
    only = grams(*word_hashes([ITEM]), 13)[0]
    assert len(remove_ngrams(text, only)) == 2
    assert len(remove_ngrams(text, grams_of)) == 3


def test_an_evaluation_file_without_a_long_item_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"items.jsonl: no evaluation item in it has 13 words"):
        items(tmp_path, "too short")
    (tmp_path / "bad.jsonl").write_text('{"a": "b"}\n{"a"')
    with pytest.raises(InputError, match=r"bad.jsonl:2: not valid JSON"):
        evaluation_ngrams([str(tmp_path / "bad.jsonl")])
    (tmp_path / "items.txt").write_text(f"{ITEM}\n\n{prose(1, 20)}\n")
    assert len(evaluation_ngrams([str(tmp_path / "items.txt")])) == 4 + 8
