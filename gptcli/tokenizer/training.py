"""Learn a byte-level BPE from text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from gptcli.errors import InputError, UsageError
from gptcli.events import SILENT, Events
from gptcli.tokenizer.fast_bpe import learn_merges
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet, pieces

MIN_VOCAB = 256 + 1  # the bytes and <|endoftext|>
MIN_FREQUENCY = 2  # a pair that occurs once teaches nothing
PIECE = 1 << 10  # characters; the time the library takes is quadratic in the length of a word


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, events: Events = SILENT) -> Tokenizer:
    """Learn `vocab_size` entries: the 256 bytes in GPT-2's order, the merges from the most frequent
    pair on, and `<|endoftext|>`.

    The same texts give the same tokenizer in any order. If they contain too few pairs the
    vocabulary stays smaller, with a warning. Raises UsageError on a size below 257, InputError if
    there is no text.
    """
    if vocab_size < MIN_VOCAB:
        raise UsageError(
            f"a vocabulary of {vocab_size} is too small",
            hint=f"it needs 256 bytes and {END_OF_TEXT}: {MIN_VOCAB} or more",
        )
    merges = learn_merges(
        _reported(texts, events),
        vocab_size - MIN_VOCAB,
        lambda pieces: _reference(pieces, vocab_size),
    )
    # two merges may make one token
    tokens = dict.fromkeys([*byte_alphabet(), *(left + right for left, right in merges)])
    tokenizer = Tokenizer([*tokens, END_OF_TEXT], merges)
    if tokenizer.vocab_size < vocab_size:
        events.warn(
            f"the text has pairs for a vocabulary of {tokenizer.vocab_size:,} only, not {vocab_size:,}: give more text or a smaller size"
        )
    return tokenizer


def _reference(texts: Iterable[str], vocab_size: int) -> list[tuple[str, str]]:
    """Return the merges that tokenizers learns."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=list(byte_alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]


def _reported(texts: Iterable[str], events: Events) -> Iterator[str]:
    """Yield the texts in pieces that suit the library, and report progress.

    Raises InputError if there are none.
    """
    characters = 0
    for text in texts:
        for piece in pieces(text, PIECE):
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
    events.info(f"learning merges from {characters:,} characters")
