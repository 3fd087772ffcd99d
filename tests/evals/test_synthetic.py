"""Every rule of GPT-3's synthetic tasks, and the form of the released samples."""

from __future__ import annotations

import gzip
import json
import operator
import re
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.evals.synthetic import (
    ARITHMETIC,
    GENERATED,
    SCRAMBLES,
    generate_rows,
    library_words,
    scramble,
)

SIGNS = {
    "plus": operator.add,
    "minus": operator.sub,
    "times": operator.mul,
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}
WORD = st.text("abcdefgh", min_size=6, max_size=15)


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_problems_follow_the_papers_rules(name: str) -> None:
    rows = list(generate_rows(name, seed=3))
    digits, operation = ARITHMETIC[name]
    assert (
        len(rows)
        == len({row["prompt"] for row in rows})
        == len({row["id"] for row in rows})
        == 2000
    )
    operands = []
    for row in rows:
        question = re.fullmatch(r"Q: What is (.+)\?\n\nA:", row["prompt"])
        assert question
        if operation:
            a, word, b = question[1].split()
            assert word == operation
            operands += [int(a), int(b)]
            assert row["answer"] == str(SIGNS[word](int(a), int(b)))
        else:
            found = re.fullmatch(r"\((\d) ([-+*]) (\d)\) ([-+*]) (\d)", question[1])
            assert found
            a, first, b, second, c = found.groups()
            operands += [int(a), int(b), int(c)]
            assert row["answer"] == str(SIGNS[second](SIGNS[first](int(a), int(b)), int(c)))
    low, high = (0, 10**digits) if operation else (1, 10)
    assert low <= min(operands) < max(operands) < high
    mean = (low + high - 1) / 2
    assert abs(sum(operands) / len(operands) - mean) < 0.03 * high  # five standard errors are 0.023


@given(WORD, st.integers(0, 99))
def test_scrambled_words_follow_their_rules(word: str, seed: int) -> None:
    def scrambled(name: str) -> str | None:
        return scramble(name, word, Random(seed))

    assert scrambled("reversed_words") == word[::-1]
    inserted = scrambled("random_insertion_in_word")
    assert inserted is not None
    assert inserted[::2] == word
    assert all(not mark.isalnum() for mark in inserted[1::2])
    assert len(inserted) == 2 * len(word) - 1
    cycled = scrambled("cycle_letters_in_word")
    assert (cycled is None) == (len(set(word)) == 1)
    if cycled is not None:
        assert cycled != word
        assert cycled in word + word
    for name, kept in (("mid_word_1_anagrams", 1), ("mid_word_2_anagrams", 2)):
        anagram = scrambled(name)
        assert (anagram is None) == (len(set(word[kept:-kept])) == 1)
        if anagram is not None:
            assert anagram != word
            assert (anagram[:kept], anagram[-kept:], sorted(anagram)) == (
                word[:kept],
                word[-kept:],
                sorted(word),
            )


@pytest.mark.parametrize("name", SCRAMBLES)
def test_words_are_distinct_and_of_the_required_length(name: str) -> None:
    words = ["abcd", "abcde", "abcdef", "abcdef", "don't", "a" * 16] + [f"{a}{b}{c}{d}xyz" for a in "abcdefghijk" for b in "abcdefghijk"
                                                                       for c in "abcdefghijk" for d in "abcdefghijk"]  # fmt: skip
    rows = list(generate_rows(name, seed=0, words=words))
    answers = [row["answer"] for row in rows]
    assert len(set(answers)) == len(answers) <= 10_000
    assert len(answers) > 9_990  # except words that have no other order
    assert "abcdef" in answers
    assert ("abcde" in answers) == (name == "mid_word_1_anagrams")
    assert answers != sorted(answers)


@pytest.mark.parametrize("name", GENERATED)
def test_rows_depend_on_the_seed(name: str) -> None:
    words = ["scrambled", "letters", "within", "ordinary"]
    one, again, other = (list(generate_rows(name, seed=seed, words=words)) for seed in (1, 1, 2))
    assert one == again != other


def test_rows_of_a_seed_never_change() -> None:
    first = next(generate_rows("two_digit_addition", seed=0))
    assert (first["prompt"], first["answer"]) == ("Q: What is 43 plus 79?\n\nA:", "122")
    words = ["scrambled", "letters"]
    assert [row["prompt"] for row in generate_rows("mid_word_2_anagrams", seed=0, words=words)] == [
        "scrlabmed =",
        "letetrs =",
    ]


def test_the_standard_library_has_enough_words() -> None:
    words = library_words()
    assert sum(len(word) >= 6 for word in words) > 5_000
    assert words.index("which") < words.index("argument") < len(words)
    assert all(re.fullmatch("[a-z]{5,15}", word) for word in words)


@pytest.mark.real_data
def test_rows_have_the_form_of_the_released_samples(real_data: Path) -> None:
    folder = real_data / "gpt3-synthetic"
    for name in (
        "two_digit_addition",
        "two_digit_subtraction",
        "three_digit_addition",
        "two_digit_multiplication",
        "single_digit_three_ops",
    ):
        theirs = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        assert forms(row["context"].lstrip("\n") for row in theirs) == forms(
            row["prompt"] for row in generate_rows(name, seed=0)
        )
        assert len({row["context"] for row in theirs}) == len(theirs) == 2000
    for name in ("cycle_letters_in_word", "mid_word_1_anagrams", "reversed_words"):
        with gzip.open(folder / f"{name}.jsonl.gz", "rt") as file:
            theirs = [json.loads(line) for line in file]
        words = [row["completion"].strip() for row in theirs]
        ours = list(generate_rows(name, seed=0, words=words))
        assert {row["answer"] for row in ours} == set(words)
        assert min(map(len, words)) == SCRAMBLES[name]
        assert max(map(len, words)) == 15
        for row in theirs:  # each follows the rule of the generated ones
            made, word = row["context"].strip().removesuffix(" ="), row["completion"].strip()
            if name == "reversed_words":
                assert made == word[::-1]
            elif name == "cycle_letters_in_word":
                assert made in word + word
            else:
                assert (made[0], made[-1], sorted(made)) == (word[0], word[-1], sorted(word))


def forms(prompts: object) -> set[str]:
    return {re.sub(r"(?<= )[-+*](?= )", "o", re.sub(r"\d+", "n", prompt)) for prompt in prompts}  # type: ignore[attr-defined]
