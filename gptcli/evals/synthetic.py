"""GPT-3's synthetic tasks (section 3.9), generated from a seed: ten of arithmetic, five of words.

The forms are those of the released samples, and the tasks have their file names. All arithmetic
problems of a set differ; operands are uniform below the power of ten; a composite has digits from 1
to 9, with the brackets first. Scrambled words have five letters (six if letters are cycled,
inserted or reversed) to fifteen, each word once, in random order.
"""

from __future__ import annotations

import functools
import operator
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

Row = dict[str, Any]

N_PROBLEMS = 2_000
MAX_WORDS = 10_000
MAX_LETTERS = 15
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "plus": operator.add,
    "minus": operator.sub,
    "times": operator.mul,
}
_SIGNS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}
ARITHMETIC: dict[str, tuple[int, str]] = {  # digits of the operands, operation
    "two_digit_addition": (2, "plus"),
    "two_digit_subtraction": (2, "minus"),
    "three_digit_addition": (3, "plus"),
    "three_digit_subtraction": (3, "minus"),
    "four_digit_addition": (4, "plus"),
    "four_digit_subtraction": (4, "minus"),
    "five_digit_addition": (5, "plus"),
    "five_digit_subtraction": (5, "minus"),
    "two_digit_multiplication": (2, "times"),
    "single_digit_three_ops": (1, ""),
}
SCRAMBLES = {  # minimum letters of a word
    "cycle_letters_in_word": 6,
    "mid_word_1_anagrams": 5,
    "mid_word_2_anagrams": 6,
    "random_insertion_in_word": 6,
    "reversed_words": 6,
}
GENERATED = (*ARITHMETIC, *SCRAMBLES)
# "A random punctuation or space character": ASCII's 32 punctuation characters and the space.
_INSERTED = " !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}


def generate_rows(name: str, seed: int, words: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the items of a synthetic task as rows {id, prompt, answer}.

    There are 2,000 arithmetic problems, or up to 10,000 scrambled words: the first of `words`
    (`library_words()` by default) that are long enough. The same name, seed and words give the same
    rows on any Python, because only `Random.random` is used, whose sequence is documented.
    """
    random = Random(f"{name} {seed}")
    if name in ARITHMETIC:
        pairs: Iterator[tuple[str, str]] = (
            arithmetic(question, answer)
            for question, answer in _problems(random, *ARITHMETIC[name])
        )
    else:
        pairs = _scrambles(random, name, library_words() if words is None else words)
    for number, (prompt, answer) in enumerate(pairs):
        yield {"id": f"{name}:{number}", "prompt": prompt, "answer": answer}


def arithmetic(question: str, answer: int) -> tuple[str, str]:
    """Return prompt and answer of a problem such as "98 plus 45", as given to GPT-3."""
    return f"Q: What is {question}?\n\nA:", str(answer)


def _problems(random: Random, digits: int, operation: str) -> Iterator[tuple[str, int]]:
    seen: set[str] = set()
    while len(seen) < N_PROBLEMS:
        if operation:
            a, b = _below(random, 10**digits), _below(random, 10**digits)
            question, answer = f"{a} {operation} {b}", OPERATIONS[operation](a, b)
        else:
            a, b, c = (1 + _below(random, 9) for _ in range(3))
            first, second = (list(_SIGNS)[_below(random, 3)] for _ in range(2))
            question, answer = (
                f"({a} {first} {b}) {second} {c}",
                _SIGNS[second](_SIGNS[first](a, b), c),
            )
        if question not in seen:
            seen.add(question)
            yield question, answer


def _scrambles(random: Random, name: str, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    candidates = [
        word
        for word in dict.fromkeys(words)
        if SCRAMBLES[name] <= len(word) <= MAX_LETTERS and word.isalpha()
    ][:MAX_WORDS]
    for word in _shuffled(random, candidates):
        if (scrambled := scramble(name, word, random)) is not None:
            yield f"{scrambled} =", word


def scramble(name: str, word: str, random: Random) -> str | None:
    """Return the word scrambled by the rule of a task, or None if the rule cannot change it.

    "eeeee" has no other order. A palindrome is reversed all the same, as in the released samples.
    """
    if name == "reversed_words":
        return word[::-1]
    if name == "random_insertion_in_word":
        return (
            "".join(letter + _INSERTED[_below(random, len(_INSERTED))] for letter in word[:-1])
            + word[-1]
        )
    if name == "cycle_letters_in_word":
        return _differing(
            word, lambda: _cycled(word, 1 + _below(random, len(word) - 1)), len(set(word)) > 1
        )
    kept = {"mid_word_1_anagrams": 1, "mid_word_2_anagrams": 2}[name]
    middle = word[kept:-kept]
    return _differing(
        word,
        lambda: word[:kept] + "".join(_shuffled(random, middle)) + word[-kept:],
        len(set(middle)) > 1,
    )


def _differing(word: str, draw: Callable[[], str], possible: bool) -> str | None:
    while possible:
        if (scrambled := draw()) != word:
            return scrambled
    return None


def _cycled(word: str, by: int) -> str:
    return word[by:] + word[:by]


def _below(random: Random, n: int) -> int:
    return int(random.random() * n)


def _shuffled(random: Random, sequence: Sequence[str]) -> list[str]:
    return sorted(sequence, key=lambda _: random.random())


@functools.cache
def library_words() -> tuple[str, ...]:
    """Return the words of 5 to 15 lower-case letters in Python's standard library.

    They are sorted by the number of files that contain them, most first: about 12,000 words, of
    which 11,000 have at least six letters. The paper used the most frequent words of the web, a
    list that is not distributed here; `generate_rows` accepts any list.
    """
    files: Counter[str] = Counter()
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        # in place: they are not entered, and site-packages may have many more files than Python
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        for name in names:
            if name.endswith(".py"):
                text = Path(folder, name).read_text(encoding="utf-8", errors="ignore")
                files.update(set(re.findall(r"(?<![A-Za-z_])[a-z]{5,15}(?![A-Za-z_])", text)))
    return tuple(sorted(files, key=lambda word: (-files[word], word)))
