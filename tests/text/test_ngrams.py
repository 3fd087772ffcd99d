"""Hashes of words and n-grams depend on the normalised words alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.text import ngrams
from gptcli.text.ngrams import grams, normalised, word_hashes

LETTERS = "aB1 .,_'\n\t\u00a0\u3000éÉΣςß“”—你İ\x00\x1c😀"


def test_normalised_gives_words_with_positions() -> None:
    text = "Don't — STOP,  now!\n_x_ ..."
    assert [(word, text[start:end]) for word, start, end in normalised(text)] == [
        ("dont", "Don't"),
        ("stop", "STOP,"),
        ("now", "now!"),
        ("x", "_x_"),
    ]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(LETTERS, max_size=40), max_size=6))
def test_hashes_are_equal_only_for_equal_words(texts: list[str]) -> None:
    hashes, counts = word_hashes(texts)
    expected = [[word for word, _, _ in normalised(text)] for text in texts]
    assert counts.tolist() == [len(row) for row in expected]
    flat = [word for row in expected for word in row]
    assert (
        len(set(zip(flat, hashes.tolist(), strict=True)))
        == len(set(flat))
        == len(set(hashes.tolist()))
    )


def test_hashes_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one two three", "two, " * 50, "", "THREE " * 30]
    expected = word_hashes(texts)
    monkeypatch.setattr(ngrams, "MAX_BATCH_CHARS", 10)
    assert all(map(np.array_equal, word_hashes(texts), expected))


def test_ngrams_do_not_span_texts() -> None:
    hashes, counts = word_hashes(["a b c d", "a", "b c d e", ""])
    found, owner = grams(hashes, counts, 3)
    assert owner.tolist() == [0, 0, 2, 2]
    assert found[1] == found[2]
    assert len(set(found.tolist())) == 3
    assert [len(part) for part in grams(*word_hashes(["a b"]), 3)] == [0, 0]
    assert grams(*word_hashes(["a b c"]), 3)[0] != grams(*word_hashes(["c b a"]), 3)[0]
