"""Learn a byte-level BPE from text, by a kernel whose merges are those of `tokenizers`, the reference,
or by the reference itself: where the kernel cannot be built, and with a pattern of one's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from gptcli.errors import InputError, UsageError
from gptcli.events import SILENT, Events
from gptcli.numbers import counted
from gptcli.optional_kernels import merge_learner
from gptcli.tokenizer.tokenizer import (
    END_OF_TEXT,
    PATTERN,
    Tokenizer,
    byte_alphabet,
    pieces,
    refuse_surrogates,
    word_splitter,
)

MIN_VOCAB = 256 + 1  # the bytes and <|endoftext|>
MAX_VOCAB = 1 << 24  # the libraries reserve memory for every entry: about 70 bytes
MIN_FREQUENCY = 2  # a pair that occurs once teaches nothing
PIECE = 1 << 10  # characters; the time the library takes is quadratic in the length of a word
Merges = list[tuple[str, str]]


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    pattern: str = PATTERN,
    special: Sequence[str] = (),
    events: Events = SILENT,
) -> Tokenizer:
    """Learn `vocab_size` entries: the 256 bytes in GPT-2's order, the merges from the most frequent
    pair on, `<|endoftext|>` and the `special` tokens.

    `pattern` is the regular expression of a word; with one that is not GPT-2's, `tokenizers` learns
    from the whole texts in memory. The same texts give the same tokenizer in any order. If they
    contain too few pairs the vocabulary stays smaller, with a warning. Raises UsageError on a size
    that has no room for the bytes and the special tokens or is above `MAX_VOCAB`, on a special
    token that is empty or given twice, and on an invalid pattern; InputError if there is no text.
    """
    check_largest(vocab_size)
    named = [END_OF_TEXT, *(token for token in special if token != END_OF_TEXT)]
    if len(set(named)) != len(named) or not all(token.strip() for token in named):
        raise UsageError(
            "a special token is empty or given twice", field="special_token", code="bad_special"
        )
    if vocab_size < 256 + len(named):
        raise UsageError(
            f"a vocabulary of {vocab_size} is too small",
            hint=f"it needs 256 bytes and {', '.join(named)}: {256 + len(named)} or more",
        )
    splitter = word_splitter(pattern)
    count = vocab_size - 256 - len(named)

    def reference(texts: Iterable[str]) -> Merges:
        return _reference(texts, 256 + count, splitter)

    if pattern == PATTERN:
        merges = learn_merges(_reported(texts, events), count, reference, events)
    else:
        merges = reference(_matched(_reported(texts, events, is_cut=False), pattern))
    # two merges may make one token
    tokens = dict.fromkeys([*byte_alphabet(), *(left + right for left, right in merges)])
    if clash := tokens.keys() & set(named):
        raise UsageError(
            f"{min(clash)!r} is an ordinary token of this vocabulary",
            field="special_token",
            code="bad_special",
            hint="spell it as no text does: <|name|>",
        )
    tokenizer = Tokenizer([*tokens, *named], merges, named, pattern=pattern)
    if tokenizer.vocab_size < vocab_size:
        events.warn(
            f"the text has pairs for a vocabulary of {tokenizer.vocab_size:,} only, not {vocab_size:,}: give more text or a smaller size"
        )
    return tokenizer


def check_largest(vocab_size: int) -> None:
    """Raise UsageError if a vocabulary is too large to be learned."""
    if vocab_size > MAX_VOCAB:
        raise UsageError(
            f"a vocabulary of {vocab_size:,} is too large",
            field="vocab_size",
            code="out_of_range",
            hint=f"at most {MAX_VOCAB:,}; GPT-2's is 50257",
        )


def _reference(texts: Iterable[str], vocab_size: int, splitter: Any) -> list[tuple[str, str]]:
    """Return the merges that tokenizers learns, up to a vocabulary of bytes and merges."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=list(byte_alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]


def _matched(texts: Iterable[str], pattern: str) -> Iterator[str]:
    """Yield the texts. Raises UsageError after the last if the pattern matches nothing in them."""
    others = pre_tokenizers.Split(Regex(pattern), "removed")
    has_match = False
    for text in texts:
        has_match = has_match or len(text) > sum(
            len(piece) for piece, _ in others.pre_tokenize_str(text)
        )
        yield text
    if not has_match:
        raise UsageError(
            f"{pattern!r} matches no character of the text",
            field="pattern",
            code="matches_nothing",
            hint=f"it is what a word looks like; GPT-2's is {PATTERN}",
        )


def _reported(texts: Iterable[str], events: Events, *, is_cut: bool = True) -> Iterator[str]:
    """Yield the texts, in pieces that suit the library if `is_cut`, and report progress.

    Raises InputError if there are none, and on a lone surrogate.
    """
    characters = 0
    for text in texts:
        refuse_surrogates(text)
        if not is_cut:
            yield text
        for piece in pieces(text, PIECE) if is_cut else ():
            # A word longer than two pieces is cut where it stands: at most one pair of it is
            # miscounted.
            yield from (
                piece[start : start + 2 * PIECE] for start in range(0, len(piece), 2 * PIECE)
            )
        characters += len(text)
        events.progress("reading text", characters, unit="characters")
    events.finish("reading text")
    if not characters:
        raise InputError("there is no text to learn from")
    events.info(f"learning merges from {counted(characters, 'character')}")


def learn_merges(
    texts: Iterable[str],
    count: int,
    reference: Callable[[Iterable[str]], Merges],
    events: Events = SILENT,
) -> Merges:
    """Return up to `count` merges of pairs that occur at least twice, most frequent first, spelt in
    the byte alphabet, as `reference` learns them; it does where the kernel cannot be built.

    Memory holds the distinct words only.
    """
    alphabet = byte_alphabet()
    learner = merge_learner(character_classes, bytes(alphabet.values()), 256 + count)
    if learner is None:
        return reference(texts)
    for text in texts:
        learner.count(text)
    tokens = dict.fromkeys(alphabet)
    spelled = list(tokens)
    merges: Merges = []
    for pairs in learner.merges(MIN_FREQUENCY):
        for left, right in pairs:
            merges.append((spelled[left], spelled[right]))
            if (token := spelled[left] + spelled[right]) not in tokens:
                tokens[token] = None
                spelled.append(token)
        events.progress("learning merges", len(merges), count, "merges")
    events.finish("learning merges")
    return merges


def character_classes(characters: str) -> list[int]:
    """Return the class of each character by the tables of `tokenizers`: 1 for \\p{L}, 2 for \\p{N},
    3 for \\s, 0 for any other.
    """
    classes = [0] * len(characters)
    for number, pattern in enumerate((r"\p{L}", r"\p{N}", r"\s"), start=1):
        others = pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(characters)
        left = {at for _, (start, stop) in others for at in range(start, stop)}
        for at in range(len(characters)):
            if at not in left:
                classes[at] = number
    return classes
