"""Which documents go, against the same said in plain Python."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from gptcli.corpus import dedup
from gptcli.corpus.chunks import Tally
from gptcli.corpus.dedup import find_duplicates, gone_among, plan_dedup
from gptcli.corpus.minhash import BANDINGS, band_keys, shingles
from gptcli.corpus.text_chunks import TextUnit, write_text_unit


def texts(seed: int, count: int) -> list[str]:
    """Documents of which many are near-copies of others."""
    chance = random.Random(seed)
    originals = [[f"w{chance.randrange(3000)}" for _ in range(60)] for _ in range(count // 2)]
    found = []
    for _ in range(count):
        words = list(chance.choice(originals))
        for _ in range(chance.choice([0, 0, 1, 4, 30])):
            words[chance.randrange(len(words))] = f"x{chance.randrange(10**6)}"
        found.append(" ".join(words))
    return found


def units(folder: Path, name: str, documents: list[str], method: str) -> list[TextUnit]:
    found = []
    for start in range(0, len(documents), 37):
        part = documents[start : start + 37]
        path = folder / f"text-{name}-{start}"
        write_text_unit(
            path, list(range(start, start + len(part))), part, Tally(read=len(part)), method, None
        )
        found.append(TextUnit(path))
    return found


def dropped(
    folder: Path, method: str, within: bool, mine: list[TextUnit], others: list[TextUnit]
) -> set[int]:
    paths = [
        find_duplicates(task) for task in plan_dedup(folder, 0, method, within, 0.5, mine, others)
    ]
    gone = set()
    for unit in mine:
        numbers = unit.numbers
        gone |= set(numbers[gone_among(paths, numbers)].tolist())
    return gone


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("part", [10**9, 16])
def test_lsh_against_plain_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within: bool, part: int
) -> None:
    monkeypatch.setattr(dedup, "TASK_KEYS", part)
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
        dropped(
            tmp_path,
            "lsh",
            within,
            units(tmp_path, "mine", mine, "lsh"),
            units(tmp_path, "others", others, "lsh"),
        )
        == expected
    )


def test_paper_compares_candidates_exactly(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    mine = ["a b c d", "a b c d e f g h", "D c b A a", "q r s t", "a b c d"]
    assert dropped(tmp_path, "paper", True, units(tmp_path, "mine", mine, "paper"), []) >= {2, 4}
    found = dropped(tmp_path, "paper", True, units(tmp_path, "mine", mine, "paper"), [])
    # 1 shares all ten hashes with 0 by chance only, and then its Jaccard is 0.5
    assert found <= {1, 2, 4}
    (tmp_path / "removed").mkdir()
    others = units(tmp_path, "others", ["t s r q"], "paper")
    assert dropped(
        tmp_path / "removed", "paper", False, units(tmp_path, "mine", mine, "paper"), others
    ) == {3}


def test_a_unit_gives_back_what_was_written(tmp_path: Path) -> None:
    items = np.array([5], np.uint64)
    tally = Tally(read=4)
    tally.drop("blank", "x:1", "")
    write_text_unit(tmp_path / "text", [3, 9, 11], ["Grüße", "", "你\n"], tally, "lsh", items)
    unit = TextUnit(tmp_path / "text")
    assert list(unit.texts()) == ["Grüße", "", "你\n"]
    assert unit.numbers.tolist() == [3, 9, 11]
    assert (unit.tally.read, unit.tally.dropped) == (4, {"blank": 1})
    keys, which = unit.band(0, 0, 2**64 - 1)
    assert sorted(which.tolist()) == [3, 9, 11]
    assert keys.tolist() == sorted(keys.tolist())
    assert unit.hits() == {}
    write_text_unit(tmp_path / "none", [], [], Tally(), "paper", items)
    assert TextUnit(tmp_path / "none").band(0, 0, 2**64 - 1)[0].tolist() == []
    assert list(TextUnit(tmp_path / "none").texts()) == []
