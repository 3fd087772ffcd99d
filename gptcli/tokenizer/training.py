"""Learn a byte-level BPE from text: with gigatoken if its merges are certain to be those of
tokenizers, the reference, and otherwise with the reference.

Two things could make them differ. A character first assigned in Unicode 17 is split from its
neighbours differently; and when pairs run out, gigatoken goes on to merge pairs that occur once.
The highest count of any pair only falls during training, so checking the last merge settles the
second. In both cases the reference learns from the same text again.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import IO, Any

from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from gptcli.errors import InputError, RunError, UsageError
from gptcli.events import SILENT, Events
from gptcli.files import scratch_folder, temporary_room
from gptcli.interrupts import Cleanup
from gptcli.numbers import counted
from gptcli.tokenizer.encoders import knows_more
from gptcli.tokenizer.tokenizer import (
    END_OF_TEXT,
    PATTERN,
    Tokenizer,
    byte_alphabet,
    pieces,
    word_splitter,
)

MIN_VOCAB = 256 + 1  # the bytes and <|endoftext|>
MAX_VOCAB = 1 << 24  # the libraries reserve memory for every entry: about 70 bytes
MIN_FREQUENCY = 2  # a pair that occurs once teaches nothing
PIECE = 1 << 10  # characters; the time the library takes is quadratic in the length of a word
Merges = list[tuple[str, str]]
SEPARATOR = b"\xff"  # no byte of UTF-8
SMALL_CHARACTERS = 1 << 24  # for which gigatoken, if its merges have to be learned again, is slower
CHUNK = 1 << 24  # bytes read at once to count the last merge
REPORT_S = 0.2  # between two reports of progress
LEARN = """
import json, sys
job = json.load(sys.stdin)
sys.path[:] = job["modules"]
import gigatoken
from pathlib import Path
source = gigatoken.TextFileSource([Path(job["text"])], bytes.fromhex(job["separator"]))
_, pairs = gigatoken.train_bpe(source, job["size"], [], tie_breaking="huggingface")
with open(job["merges"], "w") as file:
    json.dump([[left.hex(), right.hex()] for left, right in pairs], file)
"""
"""Program of the process in which gigatoken learns: it lets no other thread run meanwhile, and
writes its own progress to standard output and error.
"""


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

    Raises InputError if there are none.
    """
    characters = 0
    for text in texts:
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
    the byte alphabet, as `reference` learns them.

    A small text is learned from by the reference, which takes a second or two for it; a large one
    goes through a temporary file, so that memory holds its distinct words only.
    """
    waiting = iter(texts)
    first: list[str] = []
    characters = 0
    for text in waiting:
        first.append(text)
        characters += len(text)
        if characters > SMALL_CHARACTERS:
            break
    else:
        return reference(first)
    texts = chain(first, waiting)
    try:
        import gigatoken
    except ImportError:
        return reference(texts)
    with (
        temporary_room("all of the text"),
        scratch_folder() as folder,
        open(folder / "text", "w+b") as spool,
    ):
        alike = _spooled(texts, spool)
        if not alike or not (pairs := _learnt(gigatoken, Path(spool.name), count, events)):
            return reference(_read_back(spool))
    spelling = {byte: character for character, byte in byte_alphabet().items()}
    return [
        ("".join(spelling[byte] for byte in left), "".join(spelling[byte] for byte in right))
        for left, right in pairs
    ]


def _spooled(texts: Iterable[str], spool: IO[bytes]) -> bool:
    """Write all texts; return whether every Unicode table splits them alike."""
    alike = True
    for text in texts:
        alike = alike and not knows_more(text)
        spool.write(text.encode() + SEPARATOR)
    spool.flush()
    return alike


def _read_back(spool: IO[bytes]) -> Iterator[str]:
    for document in _documents(spool):
        yield document.decode()


def _documents(spool: IO[bytes]) -> Iterator[bytes]:
    spool.seek(0)
    rest = b""
    while chunk := spool.read(CHUNK):
        *whole, rest = (rest + chunk).split(SEPARATOR)
        yield from whole


def _learnt(
    gigatoken: Any, path: Path, count: int, events: Events
) -> list[tuple[bytes, bytes]] | None:
    """Return the merges, or None if tokenizers would learn others."""
    pairs = _learnt_apart(path, 256 + count, events)
    if len(pairs) != count or len({left + right for left, right in pairs}) != count:
        return None  # pairs ran out; or two merges make one token, which tokenizers count once
    return pairs if _occurs_twice(gigatoken, path, pairs) else None


def _learnt_apart(path: Path, size: int, events: Events) -> list[tuple[bytes, bytes]]:
    """Return the merges that gigatoken learns in a process of its own; report the seconds it takes.

    Raises RunError if the process fails.
    """
    merges = path.with_name("merges")
    job = {
        "text": str(path),
        "merges": str(merges),
        "size": size,
        "separator": SEPARATOR.hex(),
        "modules": sys.path,
    }
    started = time.monotonic()
    with (
        open(path.with_name("messages"), "w+b") as messages,
        subprocess.Popen(
            [sys.executable, "-c", LEARN],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=messages,
        ) as child,
        Cleanup(child.kill),
    ):
        assert child.stdin is not None
        child.stdin.write(json.dumps(job).encode())
        child.stdin.close()
        try:
            while child.poll() is None:
                events.progress("learning merges", time.monotonic() - started, unit="s")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(REPORT_S)
        except BaseException:
            child.kill()
            raise
        events.finish("learning merges")
        if child.returncode:
            messages.seek(0)
            lines = messages.read().decode("utf-8", "replace").strip().splitlines()
            what = lines[-1] if lines else f"status {child.returncode}"
            raise RunError(f"the process that learns the merges failed: {what}")
    return [
        (bytes.fromhex(left), bytes.fromhex(right))
        for left, right in json.loads(merges.read_bytes())
    ]


def _occurs_twice(gigatoken: Any, path: Path, pairs: list[tuple[bytes, bytes]]) -> bool:
    """Return whether the last pair occurs more than once."""
    if not pairs:
        return True
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    token, seen = b"".join(pairs[-1]), 0
    with open(path, "rb") as spool:
        for document in _documents(spool):
            if token in document:
                seen += sum(
                    _merged(word, ranks).count(token)
                    for word in gigatoken.pretokenizer(document)
                    if token in bytes(word)
                )
            if seen > 1:
                return True
    return False


def _merged(word: bytes, ranks: dict[tuple[bytes, bytes], int]) -> list[bytes]:
    """Return the tokens of one word by the plain rule: the earliest merge first, everywhere it
    applies.
    """
    parts = [bytes([byte]) for byte in bytes(word)]
    while (
        len(parts) > 1
        and (best := min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))) in ranks
    ):
        joined: list[bytes] = []
        for part in parts:
            if joined and (joined[-1], part) == best:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined
    return parts
