"""Learning against a few plain lines of byte-pair encoding, and the layout of ids that GPT-2
has.
"""

from __future__ import annotations

import json
import random
import sysconfig
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.errors import InputError, UsageError
from gptcli.events import Events
from gptcli.optional_kernels import merge_learner
from gptcli.tokenizer import training
from gptcli.tokenizer.encoders import UNICODE_17
from gptcli.tokenizer.gpt1 import train_gpt1_tokenizer
from gptcli.tokenizer.tokenizer import PATTERN, Tokenizer, byte_alphabet
from gptcli.tokenizer.training import MIN_VOCAB, PIECE, character_classes, train_tokenizer


class Heard(Events):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(merge.split(" ")) for merge in json.loads(tokenizer.to_json())["model"]["merges"]]


def plain_bpe(texts: list[str], merges: int) -> list[tuple[str, str]]:
    """Count every pair, merge the most frequent (of equals the lowest ids) and again, while one is
    seen twice.
    """
    spelling = {byte: character for character, byte in byte_alphabet().items()}
    ids = {character: number for number, character in enumerate(byte_alphabet())}
    found = Counter(word for text in texts for word in regex.findall(PATTERN, text))
    words = {word: [spelling[byte] for byte in word.encode()] for word in found}
    learnt: list[Any] = []
    while len(learnt) < merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in found.items():
            for pair in pairwise(words[word]):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]), default=None)
        if best is None or pairs[best] < 2:
            break
        learnt.append(best)
        ids.setdefault("".join(best), len(ids))
        for parts in words.values():
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == best:
                    parts[at : at + 2] = ["".join(best)]
                at += 1
    return learnt


def test_merges_equal_plain_bpe(text: str) -> None:
    texts = [text[:20_000], text[20_000:40_000]]
    assert merges_of(train_tokenizer(texts, MIN_VOCAB + 150)) == plain_bpe(texts, 150)


@given(st.lists(st.text(st.sampled_from("aab c'd1é\n"), max_size=60), min_size=1).filter(any))
@settings(max_examples=100, deadline=None)
def test_merges_of_any_small_text_equal_plain_bpe(texts: list[str]) -> None:
    assert merges_of(train_tokenizer(texts, 2000)) == plain_bpe(texts, 2000)


def test_ids_lie_as_gpt2s(text: str) -> None:
    value = json.loads(train_tokenizer([text], 600).to_json())
    vocab = value["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.get)
    assert tokens[:256] == list(byte_alphabet())
    assert tokens[256:599] == [merge.replace(" ", "") for merge in value["model"]["merges"]]
    assert tokens[599:] == ["<|endoftext|>"]
    assert [
        (token["content"], token["id"], token["special"]) for token in value["added_tokens"]
    ] == [("<|endoftext|>", 599, True)]


def test_the_order_of_documents_does_not_matter(text: str) -> None:
    documents = text.split("\n\n")
    assert (
        train_tokenizer(documents, 800).to_json() == train_tokenizer(documents[::-1], 800).to_json()
    )


def test_a_long_document_teaches_what_its_lines_teach(text: str) -> None:
    """It goes to the library in pieces, which must not change a count."""
    assert len(text) > 20 * PIECE
    # no blanks that join two lines
    lines = [f"{line.strip()}\n" for line in text.split("\n") if line.strip()]
    assert merges_of(train_tokenizer(["".join(lines)], 800)) == merges_of(
        train_tokenizer(lines, 800)
    )


def test_a_word_of_a_megabyte_does_not_hang() -> None:
    tokenizer = train_tokenizer(["ab" * 500_000], 300)
    assert merges_of(tokenizer)[:2] == [("a", "b"), ("ab", "ab")]


def test_too_little_text_gives_a_smaller_vocabulary_and_says_so() -> None:
    heard = Heard()
    tokenizer = train_tokenizer(["low low low"], 50257, events=heard)
    assert tokenizer.vocab_size == MIN_VOCAB + len(merges_of(tokenizer)) < 270
    assert heard.warnings == [
        f"the text has pairs for a vocabulary of {tokenizer.vocab_size} only, not 50,257: give more text or a smaller size"
    ]
    heard.warnings.clear()
    train_tokenizer(["low low low"], tokenizer.vocab_size, events=heard)
    assert heard.warnings == []


def test_the_smallest_vocabulary_is_the_bytes() -> None:
    tokenizer = train_tokenizer(["hello"], MIN_VOCAB)
    assert (tokenizer.vocab_size, tokenizer.merges, tokenizer.eot_id) == (257, 0, 256)
    assert tokenizer.decode(tokenizer.encode("héllo\n")) == "héllo\n"


def test_no_vocabulary_below_the_bytes_or_beyond_what_memory_holds() -> None:
    with pytest.raises(UsageError, match="vocabulary of 256 is too small"):
        train_tokenizer(["hello"], 256)
    # the library would end the process: it reserves memory for every entry
    for train in (train_tokenizer, train_gpt1_tokenizer):
        with pytest.raises(UsageError, match=r"vocabulary of 1,000,000,000 is too large") as caught:
            train(["hello"], 10**9)
        assert caught.value.field == "vocab_size"


@pytest.mark.parametrize("texts", [[], [""]])
def test_no_text_is_an_error(texts: list[str]) -> None:
    with pytest.raises(InputError, match="no text to learn from"):
        train_tokenizer(texts, 300)


def test_an_error_of_the_reader_comes_through() -> None:
    def broken():
        yield "fine"
        raise InputError("not valid UTF-8 at byte 7", where="a.txt")

    with pytest.raises(InputError, match=r"a\.txt: not valid UTF-8 at byte 7"):
        train_tokenizer(broken(), 300)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InputError, match=r"a lone surrogate, U\+D800, at character 1"):
        train_tokenizer(["fine", "x\ud800"], 300)


def by_both(texts: list[str], size: int) -> list[tuple[str, str]]:
    """Return the merges that the kernel learns, which are those of tokenizers."""
    if merge_learner(character_classes, bytes(range(256)), 256) is None:
        pytest.skip("no compiler here")
    learnt = train_tokenizer(texts, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "merge_learner", lambda *_: None)
        expected = train_tokenizer(texts, size)
    assert merges_of(learnt) == merges_of(expected)
    assert learnt.sha256 == expected.sha256
    return merges_of(learnt)


def test_the_same_merges_on_source_code() -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(encoding="utf-8") for path in sorted(library.glob("*.py"))[:40]]
    assert len(by_both(texts, 3000)) == 3000 - 257


def test_pairs_that_occur_once_teach_nothing() -> None:
    text = ["the cat sat on the mat"]
    learnt = by_both(text, 5000)
    assert learnt == [("a", "t"), ("h", "e"), ("t", "he")]
    for size in range(257, 257 + 8):  # to the very merge where pairs run out
        assert by_both(text, size) == learnt[: size - 257]


def test_random_words_with_many_ties() -> None:
    chance = random.Random(5)
    texts = [
        " ".join("".join(chance.choices("abcé你", k=chance.randrange(1, 7))) for _ in range(300))
        for _ in range(6)
    ]
    for size in (300, 500, 900):
        by_both(texts, size)


@given(st.lists(st.text(max_size=80), min_size=1, max_size=5).filter(any))
@settings(max_examples=100, deadline=None)
def test_any_text_is_divided_as_the_reference_divides_it(texts: list[str]) -> None:
    by_both(texts * 2, 2000)


def test_every_character_is_divided_as_the_reference_divides_it() -> None:
    """Those of Unicode's newest version too, which libraries know or do not."""
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    characters = "".join(map(chr, random.Random(7).sample(points, 20_000)))
    newest = "".join(f" a{chr(first)}b1" for first, _ in UNICODE_17)
    blanks = " ".join(
        f"x{blank}y{blank}{blank} z" for blank in "\t\n\v\f\r\x1c\x85\xa0\u2028\u3000"
    )
    by_both([characters, newest * 2, blanks * 2, characters[::-1]], 700)


def test_learning_shows_that_it_goes_on() -> None:
    class Seen(Events):
        tasks: ClassVar[list[str]] = []

        def progress(self, task: str, *_: object, **__: object) -> None:
            self.tasks.append(task)

        def finish(self, task: str) -> None:
            self.tasks.append(f"{task} is over")

    by_both(["the cat sat on the mat " * 9], 262)
    train_tokenizer(["the cat sat on the mat " * 9], 262, events=Seen())
    assert Seen.tasks[-2:] == ["learning merges", "learning merges is over"]


@pytest.mark.parametrize("pattern", ["zzz", "x*", r"\d+(?!.)"])
def test_a_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="matches no character"):
        train_tokenizer(["the river and a stone", "another"], 300, pattern=pattern)
    train_tokenizer(["the river", "another 12"], 300, pattern=r"\d+(?!.)")
