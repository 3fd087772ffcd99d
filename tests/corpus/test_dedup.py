"""Pairs of known similarity share a band as often as the S-curve says, and duplicates are those that
plain Python finds.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from gptcli.corpus import dedup
from gptcli.corpus.chunks import Tally, TextChunk, write_text_chunk
from gptcli.corpus.dedup import (
    BANDINGS,
    band_keys,
    dedup_tasks,
    document_signatures,
    find_duplicates,
    is_duplicate,
    shingles,
)
from gptcli.corpus.recipe import DedupMethod

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
        signatures = document_signatures(part, method)
        write_text_chunk(path, numbers, part, Tally(read=len(part)), signatures)
        found.append(TextChunk(path))
    return found


def find_all(
    folder: Path, method: DedupMethod, within: bool, mine: list[TextChunk], others: list[TextChunk]
) -> set[int]:
    paths = [
        find_duplicates(task) for task in dedup_tasks(folder, 0, method, within, 0.5, mine, others)
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
