"""The kernel's own interface; `tests/tokenizer/test_training.py` compares merges of any text."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from gptcli.kernels import bpe_kernel
from gptcli.kernels.bpe_kernel import MergeLearner, merge_learner

ORDER = bytes(range(256))


def classes(characters: str) -> list[int]:
    return [1 if c.isalpha() else 2 if c.isdigit() else 3 if c.isspace() else 0 for c in characters]


def learner(limit: int = 1000) -> MergeLearner:
    if (made := merge_learner(classes, ORDER, limit)) is None:
        pytest.skip("no compiler here")
    return made


def test_merges_are_pairs_of_ids_and_stop_at_the_limit() -> None:
    for limit, merges in {256: 0, 257: 1, 258: 2, 1000: 3}.items():
        made = learner(limit)
        made.count("low low lower")
        made.count(" low")
        # "l" "o", "lo" "w", " " "low": the first word has no blank
        expected = [(ord("l"), ord("o")), (256, ord("w")), (ord(" "), 257)]
        assert [pair for pairs in made.merges(2) for pair in pairs] == expected[:merges]


def test_lists_of_merges_join_where_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = learner()
    text = "the cat sat on the mat and the dog sat on the log " * 3
    whole.count(text)
    expected = [pair for pairs in whole.merges(1) for pair in pairs]
    for size in (1, 3, len(expected)):
        monkeypatch.setattr(bpe_kernel, "MERGES", size)
        parts = learner()
        parts.count(text)
        assert [pair for pairs in parts.merges(1) for pair in pairs] == expected


def test_a_learner_without_text_learns_nothing_and_is_freed() -> None:
    made = learner()
    assert [pair for pairs in made.merges(1) for pair in pairs] == []
    del made
    gc.collect()


def test_a_long_word_takes_linear_memory() -> None:
    made = learner(300)
    made.count("ab" * 1000 + " " + "é" * 2000)
    pairs = [pair for some in made.merges(2) for pair in some]
    assert pairs[0] == (0xC3, 0xA9)


def test_no_memory_for_a_learner_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner()
    monkeypatch.setattr(made, "_count", lambda *_: -1)
    with pytest.raises(MemoryError, match="count words"):
        made.count("word")
    monkeypatch.setattr(made, "_merge", lambda *_: -1)
    with pytest.raises(MemoryError, match="learn merges"):
        list(made.merges(2))


def test_none_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe_kernel, "library", lambda _: None)
    assert merge_learner(classes, ORDER, 300) is None


def test_it_needs_neither_pytorch_nor_numpy() -> None:
    program = (
        "import sys\nfrom gptcli.optional_kernels import merge_learner\n"
        "merge_learner(lambda text: [0] * len(text), bytes(range(256)), 300)\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
