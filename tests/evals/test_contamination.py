"""GPT-3's contamination analysis (Appendix C) finds exactly the planted overlaps."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from gptcli.errors import InputError
from gptcli.evals import contamination
from gptcli.evals.contamination import (
    find_contamination,
    normalize_words,
    overlap_length,
    split_scores,
)
from gptcli.shards.format import token_dtype, write_shard
from gptcli.shards.manifest import Manifest, Shard, write_manifest
from gptcli.tokenizer.tokenizer import Tokenizer


def shards_of(folder: Path, documents: list[str], tokenizer: Tokenizer) -> Path:
    dtype, eot = token_dtype(tokenizer.vocab_size), tokenizer.eot_id
    assert eot is not None
    arrays = [np.array([eot, *tokenizer.encode(text)], dtype) for text in documents]
    shards = []
    half = len(arrays) // 2
    for number, part in enumerate((arrays[:half], arrays[half:])):
        name, lengths = f"train-{number:06d}.bin", np.array([len(array) for array in part])
        digest = write_shard(folder / name, lengths, part, dtype)
        shards.append(
            Shard(
                file=name,
                split="train",
                tokens=int(lengths.sum()),
                documents=len(part),
                sha256=digest,
            )
        )
    manifest = Manifest(
        tokenizer_sha256=tokenizer.sha256, vocab_size=tokenizer.vocab_size, eot_id=eot, seed=0, val_fraction=0.0, split_rule="",
        shards=shards, sources=[],
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def brute(items: list[tuple[str, str]], documents: list[str], n: int) -> set[str]:
    joined = [f" {' '.join(normalize_words(text))} " for text in documents]
    found = set()
    for name, text in items:
        words = normalize_words(text)
        grams = [f" {' '.join(words[start : start + n])} " for start in range(len(words) - n + 1)]
        if any(gram in text for gram in grams for text in joined):
            found.add(name)
    return found


@pytest.mark.parametrize("chunk", [1 << 20, 700])
def test_contamination_equals_a_brute_force_search(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Search with one chunk, and with chunks shorter than the longest document."""
    monkeypatch.setattr(contamination, "CHUNK_TOKENS", chunk)
    draw = random.Random(chunk)
    words = ["lorem", "ipsum", "dolor", "sit", "amet", "it's", "café"]

    def text(count: int) -> str:
        return " ".join(draw.choice(words) for _ in range(count))

    items = [(f"item-{number}", text(draw.randint(9, 30))) for number in range(40)]
    documents = [text(draw.randint(0, 60)) for _ in range(30)] + [text(400)]
    for _, item in items[::4]:  # copied with another case and punctuation to another position
        start = draw.randint(0, 2)
        copied = item.split()[start:]
        place = draw.randrange(len(documents))
        documents[place] += "\n\n" + ", ".join(copied).upper() + "!\n" + text(5)
    n = overlap_length(len(normalize_words(item)) for _, item in items)
    expected = brute(items, documents, n)
    found = find_contamination(items, shards_of(tmp_path, documents, tokenizer), tokenizer)
    assert (found.n, found.items, found.documents) == (
        n,
        40,
        len([text for text in documents if text]),
    )
    assert set(found.dirty) == expected
    assert 7 <= len(expected) < 40
    for name, gram in found.dirty.items():
        assert f" {gram} " in f" {' '.join(normalize_words(dict(items)[name]))} "
        assert len(gram.split()) == n


def test_overlaps_do_not_span_documents(tmp_path: Path, tokenizer: Tokenizer) -> None:
    item = "one two three four five six seven eight"
    folder = shards_of(tmp_path, ["one two three four", "five six seven eight", "zero"], tokenizer)
    assert find_contamination([("a", item)], folder, tokenizer).dirty == {}
    assert (
        find_contamination([("a", "zero")], folder, tokenizer).dirty == {}
    )  # shorter than N, and therefore clean
    assert find_contamination([("a", "zero")], folder, tokenizer, synthetic=True).dirty == {
        "a": "zero"
    }


def test_overlap_length_is_the_fifth_percentile_between_8_and_13() -> None:
    assert overlap_length([100] * 50) == 13
    assert overlap_length([3] * 50) == 8
    assert overlap_length([3] * 50, synthetic=True) == 3
    assert overlap_length(range(8, 109)) == 13
    assert overlap_length([*range(100, 195), 10, 10, 10, 10, 10, 10]) == 10
    assert normalize_words("It's  a\tTest -- 1,000_x.") == ["its", "a", "test", "1000x"]


def test_scores_are_split_into_clean_and_dirty() -> None:
    split = split_scores({"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}, ["b", "c"])
    assert (split.all, split.clean, split.dirty) == (0.75, 1.0, 0.5)
    assert split.difference == pytest.approx(1 / 3)
    assert split_scores({"a": 1.0}, []).dirty is None
    nothing = split_scores({"a": 1.0}, ["a"])
    assert (nothing.clean, nothing.difference) == (None, None)


def test_shards_of_another_tokenizer_and_empty_items_are_refused(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    folder = shards_of(tmp_path, ["one", "two"], tokenizer)
    with pytest.raises(InputError, match="no items to search for"):
        find_contamination([], folder, tokenizer)
    manifest = (folder / "manifest.json").read_text().replace(tokenizer.sha256, "0" * 64)
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match="another tokenizer"):
        find_contamination([("a", "one")], folder, tokenizer)
