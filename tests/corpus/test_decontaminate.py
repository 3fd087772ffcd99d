"""Overlaps with evaluation items are removed, with a window around them, and nothing else."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from gptcli.corpus import decontaminate
from gptcli.corpus.build import begin_build, finish_build
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.decontaminate import (
    OVERLAP_WORDS,
    Overlap,
    OverlapReport,
    evaluation_ngrams,
    find_overlap,
    read_items,
    remove_ngrams,
    shared_ngrams,
)
from gptcli.corpus.recipe import SourceConfig
from gptcli.errors import InputError
from gptcli.shards.format import document_lengths, open_shard
from gptcli.shards.manifest import read_manifest
from gptcli.text.ngrams import NgramSet, ngram_hashes, word_hashes
from gptcli.tokenizer.tokenizer import Tokenizer

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
    only = ngram_hashes(*word_hashes([ITEM]), 13)[0]
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


def plain_grams(text: str) -> list[tuple[str, ...]]:
    """Return the 8-grams of lower-case alphanumeric words, as in the paper."""
    words = re.findall(r"[^\W_]+", text.lower())
    return [tuple(words[at : at + OVERLAP_WORDS]) for at in range(len(words) - OVERLAP_WORDS + 1)]


TEXTS = [
    "Don't stop, e.g. at (one) or  TWO; three-four five_six 7!",
    "naïve Ünï — “quote” … 你好 x\u00a0y z q w e",
    "a b c",
    "",
]


def test_ngrams_are_of_alphanumeric_words() -> None:
    found, owner = ngram_hashes(*word_hashes(TEXTS, split=True), OVERLAP_WORDS)
    expected = [(row, gram) for row, text in enumerate(TEXTS) for gram in plain_grams(text)]
    assert len(expected) > 8
    assert owner.tolist() == [row for row, _ in expected]
    assert len(set(zip(found.tolist(), (gram for _, gram in expected), strict=True))) == len(
        set(found.tolist())
    )
    spelt = " / ".join(re.findall(r"[^\W_]+", TEXTS[0].upper()))
    assert np.array_equal(
        ngram_hashes(*word_hashes([spelt], split=True), OVERLAP_WORDS)[0], found[owner == 0]
    )


@pytest.fixture
def folder(tmp_path: Path, byte_tokenizer: Tokenizer) -> Path:
    """Shards of 200 documents of words that repeat, a fifth of them for validation."""
    chance = random.Random(2)
    words = ["the", "Cat", "sat,", "on", "a", "mat.", "Über"]
    lines = [" ".join(chance.choices(words, k=chance.randrange(1, 80))) for _ in range(200)]
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"text": line}) + "\n" for line in lines)
    )
    build = BuildConfig(
        sources=[SourceConfig(inputs=[str(tmp_path / "train.jsonl")])],
        tokenizer=byte_tokenizer,
        val_fraction=0.2,
        shard_tokens=9000,
    )
    begin_build(build, tmp_path / "shards", resume=False, force=False)
    finish_build(build, tmp_path / "shards")
    return tmp_path / "shards"


def training_texts(folder: Path, tokenizer: Tokenizer) -> list[str]:
    found = []
    for shard in read_manifest(folder).shards_of("train"):
        parts = np.split(
            open_shard(folder / shard.file), np.cumsum(document_lengths(folder / shard.file))[:-1]
        )
        found += [tokenizer.decode(part[1:].tolist()) for part in parts]
    return found


@pytest.mark.parametrize(("workers", "piece"), [(1, 1 << 22), (1, 500), (2, 500)])
def test_shares_equal_those_of_a_plain_search(
    folder: Path,
    byte_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    piece: int,
) -> None:
    monkeypatch.setattr(decontaminate, "PIECE_TOKENS", piece)
    texts = training_texts(folder, byte_tokenizer)
    there = {gram for text in texts for gram in plain_grams(text)}
    chance = random.Random(3)
    longest = max(texts, key=len)
    items = [
        longest.upper().replace(" ", " - "),
        *(" ".join(chance.choices(["the", "cat", "sat", "on", "a"], k=40)) for _ in range(50)),
    ]
    (tmp_path / "test.txt").write_text("\n\n".join(items))
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"question": longest[:60], "choices": [longest[60:], "and more"], "label": 1})
    )
    report = find_overlap(
        folder, [str(tmp_path / "test.txt"), str(tmp_path / "test.jsonl")], workers=workers
    )
    assert report.train_grams == sum(len(plain_grams(text)) for text in texts)
    assert report.false_positives == report.train_grams / 2**64 < 1e-8
    expected = [gram for item in items for gram in plain_grams(item)]
    assert report.tests[0] == Overlap(
        str(tmp_path / "test.txt"), len(expected), sum(gram in there for gram in expected)
    )
    assert 0.03 < report.tests[0].share < 0.97
    assert report.tests[1].grams == len(plain_grams(f"{longest[:60]} {longest[60:]} and more"))


def test_short_items_and_too_many_ngrams_are_errors(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short.txt").write_text("seven words are not enough for it")
    with pytest.raises(InputError, match=r"short.txt: no item in it has 8 words"):
        find_overlap(folder, [str(tmp_path / "short.txt")])
    (tmp_path / "test.txt").write_text("one two three four five six seven eight")
    assert find_overlap(folder, [str(tmp_path / "test.txt")]).tests[0].share == 0
    monkeypatch.setattr(OverlapReport, "false_positives", 1e-7)
    with pytest.raises(InputError, match="too many to be distinguished"):
        find_overlap(folder, [str(tmp_path / "test.txt")])


def test_items_of_json_files_are_read_like_those_of_json_lines(tmp_path: Path) -> None:
    rows = [{"question": ITEM, "choices": ["one", "two"]}, {"question": "other words"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "c.ndjson").write_text((tmp_path / "a.jsonl").read_text())
    expected = [f"{ITEM} one two", "other words"]
    for name in ("a.jsonl", "b.json", "c.ndjson"):
        assert list(read_items(str(tmp_path / name))) == expected
