"""Pairs of known similarity share a band as often as the S-curve says, and duplicates are those that
plain Python finds.
"""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gptcli.corpus import dedup
from gptcli.corpus.chunks import Signatures, Tally, TextChunk, write_text_chunk
from gptcli.corpus.dedup import (
    BANDINGS,
    band_keys,
    comparable_url,
    dedup_tasks,
    document_signatures,
    find_duplicates,
    is_duplicate,
    shingles,
)
from gptcli.corpus.recipe import Comparison, DedupMethod

PAIRS = 500


@pytest.mark.parametrize("method", ["lsh", "paper"])
@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_pairs_share_a_band_as_often_as_the_s_curve_says(
    method: DedupMethod, similarity: float
) -> None:
    """Within four standard errors, over independent pairs."""
    chance = np.random.default_rng(int(similarity * 1000))
    size = 180
    changed = round(size * (1 - similarity) / (1 + similarity))
    rows = []
    for _ in range(PAIRS):
        one = chance.integers(0, 1 << 63, size, np.uint64)
        two = np.concatenate([chance.integers(0, 1 << 63, changed, np.uint64), one[changed:]])
        rows += [one, two]
    banding = BANDINGS[method]
    keys = band_keys(np.concatenate(rows), np.full(2 * PAIRS, size), banding)
    assert keys.shape == (2 * PAIRS, banding.bands)
    found = (keys[::2] == keys[1::2]).any(1).mean()
    expected = banding.probability((size - changed) / (size + changed))
    assert abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / PAIRS) + 1e-9, (
        found,
        expected,
    )
    strangers = (keys[:-2:2] == keys[2::2]).any(1).mean()
    assert strangers == 0


def test_a_shingle_is_five_words_or_a_shorter_text() -> None:
    found, counts = shingles(["a b c d e f", "A, b c d e!", "a b", "b a", "", "a b"])
    assert counts.tolist() == [2, 1, 1, 1, 0, 1]
    assert found[0] == found[2]
    assert found[3] == found[5]
    assert len(set(found.tolist())) == 4


def test_band_keys_do_not_depend_on_order_or_other_documents() -> None:
    chance = np.random.default_rng(0)
    features = chance.integers(0, 1 << 63, 9000, np.uint64)
    alone = band_keys(features, np.array([9000]), BANDINGS["lsh"])
    company = band_keys(
        np.concatenate([features[:10], chance.permutation(features)]),
        np.array([10, 9000]),
        BANDINGS["lsh"],
    )
    assert np.array_equal(alone[0], company[1])
    empty = band_keys(features[:0], np.array([0, 0]), BANDINGS["lsh"])
    assert not (empty[0] == empty[1]).any()


def texts(seed: int, count: int) -> list[str]:
    """Return documents, many of which are near-copies of others."""
    chance = random.Random(seed)
    originals = [[f"w{chance.randrange(3000)}" for _ in range(60)] for _ in range(count // 2)]
    found = []
    for _ in range(count):
        words = list(chance.choice(originals))
        for _ in range(chance.choice([0, 0, 1, 4, 30])):
            words[chance.randrange(len(words))] = f"x{chance.randrange(10**6)}"
        found.append(" ".join(words))
    return found


def text_chunks(
    folder: Path, name: str, documents: list[str], method: DedupMethod
) -> list[TextChunk]:
    found = []
    for start in range(0, len(documents), 37):
        part = documents[start : start + 37]
        path = folder / f"text-{name}-{start}"
        numbers = list(range(start, start + len(part)))
        signatures = document_signatures(part, Comparison(method, False))
        write_text_chunk(path, numbers, part, Tally(read=len(part)), signatures)
        found.append(TextChunk(path))
    return found


def find_all(
    folder: Path, method: DedupMethod, within: bool, mine: list[TextChunk], others: list[TextChunk]
) -> set[int]:
    by = Comparison(method, False)
    paths = [
        find_duplicates(task) for task in dedup_tasks(folder, 0, by, within, 0.5, mine, others)
    ]
    duplicates = set()
    for chunk in mine:
        numbers = chunk.numbers
        duplicates |= set(numbers[is_duplicate(paths, numbers)].tolist())
    return duplicates


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("part", [10**9, 16])
def test_lsh_finds_the_duplicates_that_plain_python_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within: bool, part: int
) -> None:
    monkeypatch.setattr(dedup, "MAX_TASK_KEYS", part)
    mine, others = texts(1, 120), texts(2, 80) + texts(1, 120)[:9]
    banding = BANDINGS["lsh"]
    keys, other_keys = (band_keys(*shingles(documents), banding) for documents in (mine, others))
    expected = set()
    for number, row in enumerate(keys):
        before = keys[:number] if within else keys[:0]
        if (before == row).any() or (other_keys == row).any():
            expected.add(number)
    assert 10 < len(expected) < 110
    assert (
        find_all(
            tmp_path,
            "lsh",
            within,
            text_chunks(tmp_path, "mine", mine, "lsh"),
            text_chunks(tmp_path, "others", others, "lsh"),
        )
        == expected
    )


def test_the_paper_method_compares_candidates_exactly(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    mine = ["a b c d", "a b c d e f g h", "D c b A a", "q r s t", "a b c d"]
    assert find_all(tmp_path, "paper", True, text_chunks(tmp_path, "mine", mine, "paper"), []) >= {
        2,
        4,
    }
    found = find_all(tmp_path, "paper", True, text_chunks(tmp_path, "mine", mine, "paper"), [])
    # 1 shares all ten hashes with 0 by chance only, and then its Jaccard is 0.5
    assert found <= {1, 2, 4}
    (tmp_path / "removed").mkdir()
    others = text_chunks(tmp_path, "others", ["t s r q"], "paper")
    assert find_all(
        tmp_path / "removed", "paper", False, text_chunks(tmp_path, "mine", mine, "paper"), others
    ) == {3}


def test_documents_without_words_are_like_equal_texts_alone(tmp_path: Path) -> None:
    texts = ["!!!", "???", "...", "!!!"]
    chunks = []
    for number, text in enumerate(texts):
        path = tmp_path / f"text-{number}"
        signatures = document_signatures([text], Comparison("lsh", False))
        write_text_chunk(path, [number], [text], Tally(read=1), signatures)
        chunks.append(TextChunk(path))
    assert find_all(tmp_path, "lsh", True, chunks, []) == {3}


@pytest.mark.parametrize(("method", "expected"), [("url", {2, 5}), ("lsh", {2, 4, 5})])
def test_equal_urls_are_duplicates(tmp_path: Path, method: DedupMethod, expected: set[int]) -> None:
    urls = [
        *("http://A.com/x/", "", "https://a.com/x#part", "", "http://a.com/X", "http://a.com/X")
    ]
    documents = [f"words of document number {n} and no other one" for n in range(6)]
    documents[4] = documents[3]
    by = Comparison(method, True)
    chunks = []
    for start in range(0, 6, 2):
        rows = range(start, start + 2)
        texts, names = [documents[row] for row in rows], [f"inputs {row}" for row in rows]
        signatures = document_signatures(texts, by, [urls[row] for row in rows], names)
        path = tmp_path / f"text-{start}"
        write_text_chunk(path, list(rows), texts, Tally(read=2), signatures)
        chunks.append(TextChunk(path))
    tasks = list(dedup_tasks(tmp_path, 0, by, True, 0.5, chunks, []))
    paths = [find_duplicates(task) for task in tasks]
    numbers = np.arange(6, dtype=np.uint64)
    assert set(np.flatnonzero(is_duplicate(paths, numbers)).tolist()) == expected
    by_url = [path for path in paths if path.name.startswith("dropurl-")]
    assert set(np.flatnonzero(is_duplicate(by_url, numbers)).tolist()) == {2, 5}


def test_urls_are_compared_in_one_form() -> None:
    assert comparable_url("HTTPS://User.Example.ORG/Path/?q=A#top") == "user.example.org/Path/?q=A"
    assert comparable_url("http://a.com/") == comparable_url("a.com") == "a.com"
    assert comparable_url("") == ""


def test_comparing_keys_takes_memory_for_one_range_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys alone of 400,000 documents, compared 25,000 to 50,000 at a time."""
    monkeypatch.setattr(dedup, "MAX_TASK_KEYS", 50_000)
    generator = np.random.default_rng(0)
    count, size = 20, 20_000
    keys = generator.integers(0, 1 << 64, count * size, np.uint64)
    repeated = generator.choice(len(keys), 1000, replace=False)
    keys[repeated[1:]] = keys[repeated[:-1]]
    expected = len(keys) - len(np.unique(keys))
    chunks = []
    for number in range(count):
        rows = slice(number * size, (number + 1) * size)
        signatures = Signatures(keys[None, rows], np.empty(0, np.uint64), np.zeros(size, np.int64))
        path = tmp_path / f"text-{number:02}"
        numbers = list(range(rows.start, rows.stop))
        write_text_chunk(path, numbers, [""] * size, Tally(), signatures)
        chunks.append(TextChunk(path))
    found = 0
    tasks = list(dedup_tasks(tmp_path, 0, Comparison("url", True), True, 0.5, chunks, []))
    assert len(tasks) == 16
    for task in tasks:
        tracemalloc.start()
        path = find_duplicates(task)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 100 * 50_000
        found += path.stat().st_size // 8
    assert found == expected
