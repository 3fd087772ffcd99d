"""The four transformations against sequences written by hand."""

from __future__ import annotations

import pytest

from gptcli.errors import InputError
from gptcli.finetune.inputs import Example, InputTransform, Kind, collate
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

TOKENIZER = Tokenizer([*byte_alphabet(), END_OF_TEXT], [])  # an id a byte: a is 64
S, D, E = 257, 258, 259  # after 256 bytes and end-of-text
A, B, C = ([TOKENIZER.encode(letter)[0]] for letter in "abc")


def sequences(kind: Kind, n_ctx: int = 64, **texts: object) -> list[list[int]]:
    return InputTransform(kind, TOKENIZER, n_ctx).sequences(texts)


def test_the_four_transformations_give_the_expected_sequences() -> None:
    assert sequences("classification", text="ab") == [[S, *A, *B, E]]
    assert sequences("entailment", premise="ab", hypothesis="c") == [[S, *A, *B, D, *C, E]]
    assert sequences("similarity", a="ab", b="c") == [[S, *A, *B, D, *C, E], [S, *C, D, *A, *B, E]]
    assert sequences("multiple-choice", context="a", answers=["b", "ca"]) == [
        [S, *A, D, *B, E],
        [S, *A, D, *C, *A, E],
    ]


def test_texts_are_truncated_to_half_the_context_less_two() -> None:
    n_ctx = 16  # 6 tokens a segment: 1 + 6 + 1 + 6 + 1 = 15
    assert sequences("entailment", n_ctx, premise="a" * 20, hypothesis="b" * 7) == [
        [S, *A * 6, D, *B * 6, E]
    ]
    assert sequences("classification", n_ctx, text="a" * 20) == [[S, *A * 6, E]]


def test_text_that_spells_a_special_token_is_encoded_as_text() -> None:
    (ids,) = sequences("classification", text="_start_")
    assert ids == [S, *TOKENIZER.encode("_start_"), E]


def test_a_batch_is_padded_at_the_end() -> None:
    batch = collate([Example([[S, *A, E], [S, *B, *B, E]], 1), Example([[S, E], [S, *C, E]], 0)])
    assert batch.ids.tolist() == [[[S, *A, E, 0], [S, *B, *B, E]], [[S, E, 0, 0], [S, *C, E, 0]]]
    assert batch.lengths.tolist() == [[3, 4], [2, 3]]
    assert batch.labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="examples of 1 and of 2 answers"):
        collate([Example([[S, E]], 0), Example([[S, E], [S, E]], 0)])
