"""The fast trainer learns what tokenizers learns, or does not learn."""

from __future__ import annotations

import json
import random
import sysconfig
from pathlib import Path

import pytest

from gptcli.tokenizer import fast_bpe, training
from gptcli.tokenizer.encoders import UNICODE_17
from gptcli.tokenizer.training import train_tokenizer

pytest.importorskip("gigatoken")


def merges(
    texts: list[str], size: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[list[str]], list[list[str]], int]:
    """What is learnt, what tokenizers learns, and how often the reference was asked."""
    asked = 0
    reference = training._reference

    def counted(*arguments: object) -> list[tuple[str, str]]:
        nonlocal asked
        asked += 1
        return reference(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_reference", counted)
    learnt = train_tokenizer(texts, size)
    with monkeypatch.context() as patch:
        patch.setattr(training, "learn_merges", lambda pieces, _, reference: reference(pieces))
        expected = train_tokenizer(texts, size)
    assert learnt.sha256 == expected.sha256
    ours, theirs = (
        [merge.split(" ") for merge in json.loads(tokenizer.to_json())["model"]["merges"]]
        for tokenizer in (learnt, expected)
    )
    return ours, theirs, asked - 1


def test_the_same_merges_on_source_code(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(encoding="utf-8") for path in sorted(library.glob("*.py"))[:40]]
    learnt, expected, asked = merges(texts, 3000, monkeypatch)
    assert learnt == expected
    assert len(learnt) == 3000 - 257
    assert asked == 0, "the fast trainer was not used"


def test_pairs_that_occur_once_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt, expected, asked = merges(["the cat sat on the mat"], 5000, monkeypatch)
    assert learnt == expected == [["a", "t"], ["h", "e"], ["t", "he"]]
    assert asked == 1
    for size in range(257, 257 + 8):  # to the very merge where pairs run out
        assert merges(["the cat sat on the mat"], size, monkeypatch)[0] == learnt[: size - 257]


def test_random_words_with_many_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(5)
    texts = [
        " ".join("".join(chance.choices("abcé你", k=chance.randrange(1, 7))) for _ in range(300))
        for _ in range(6)
    ]
    for size in (300, 500, 900):
        learnt, expected, _ = merges(texts, size, monkeypatch)
        assert learnt == expected


def test_a_character_of_unicode_17_sends_the_text_to_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learnt, expected, asked = merges(
        [f"a{chr(UNICODE_17[9][0])}b " * 50, "abc " * 20], 300, monkeypatch
    )
    assert learnt == expected
    assert asked == 1


def test_standard_output_stays_clean(capfd: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(["the cat sat on the mat " * 9], 262)
    assert capfd.readouterr() == ("", "")


def test_a_long_spool_is_read_back_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_bpe, "CHUNK", 7)
    learnt, expected, asked = merges(
        [f"one {chr(0x16EA0)} two three " * 5, "two", "é" * 20], 280, monkeypatch
    )
    assert learnt == expected
    assert asked == 1
