"""Fast encoders that give the same ids as the reference: tokenizers (the reference), tiktoken,
gigatoken.

A faster encoder is used only if its ids cannot differ. It must reproduce the reference on `PROBES`
when it is opened; it never sees `<|endoftext|>` as anything but text; and documents with a
character first assigned in Unicode 17 (gigatoken's tables contain those 4,657, the others' do not
yet) go to the reference. gigatoken caches every word: it is replaced after `RENEW_BYTES` of text,
so that its memory does not grow with the corpus.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Literal, Protocol, get_args

import numpy as np

from gptcli.errors import RunError, UsageError, install_hint, nearest
from gptcli.tokenizer.tokenizer import PATTERN, Tokenizer, byte_alphabet

EncoderName = Literal["auto", "tokenizers", "tiktoken", "gigatoken"]
ENCODERS: tuple[EncoderName, ...] = get_args(EncoderName)
FASTEST_FIRST = ("gigatoken", "tiktoken")
RENEW_BYTES = 1 << 28
# that gigatoken encodes one by one, 3 us a text: for batches it imports awkward, which takes 0.2 s,
# the time in which some 70 MB are read and written. Batches let other threads run meanwhile.
FIRST_TEXTS, FIRST_CHARACTERS = 50_000, 1 << 26

# fmt: off
UNICODE_17 = (  # first and last of each run
    (0x88F, 0x88F), (0xC5C, 0xC5C), (0xCDC, 0xCDC), (0xA7CE, 0xA7CF), (0xA7D2, 0xA7D2), (0xA7D4, 0xA7D4), (0xA7F1, 0xA7F1),
    (0x10940, 0x10959), (0x10EC5, 0x10EC7), (0x11DB0, 0x11DDB), (0x11DE0, 0x11DE9), (0x16EA0, 0x16EB8), (0x16EBB, 0x16ED3),
    (0x16FF2, 0x16FF6), (0x187F8, 0x187FF), (0x18D09, 0x18D1E), (0x18D80, 0x18DF2), (0x1E6C0, 0x1E6DE), (0x1E6E0, 0x1E6E2),
    (0x1E6E4, 0x1E6E5), (0x1E6E7, 0x1E6ED), (0x1E6F0, 0x1E6F4), (0x1E6FE, 0x1E6FF), (0x2B73A, 0x2B73F), (0x2CEA2, 0x2CEAD),
    (0x323B0, 0x33479),
)
# fmt: on


SCANNED = 1 << 18  # bytes looked through at once, so that they stay in a processor's cache


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Return whether a character of UNICODE_17 begins with two bytes, (65536,), by their number;
    and whether a code point is one, up to the last and one more.
    """
    newer = np.zeros(UNICODE_17[-1][1] + 2, bool)
    for first, last in UNICODE_17:
        newer[first : last + 1] = True
    begins = np.zeros(1 << 16, bool)
    for point in np.flatnonzero(newer):
        begins[int.from_bytes(chr(point).encode()[:2], "big")] = True
    return begins, newer


_BEGINS, _NEWER = _tables()
_LEADS = bytes(sorted({int(two) >> 8 for two in np.flatnonzero(_BEGINS)}))

PROBES = (
    "Hello, world! It's 1234.5 o'clock; they'll've won't.",
    "  two  spaces\tand\ttabs \n\n and\r\nlines \n  ",
    "<|endoftext|> is text here, and so is <|endoftext",
    "naïve café — “quotes” … Ωμέγα привет 你好，世界 こんにちは 한국어 ١٢٣ Ⅻ ½",
    "👩‍👩‍👧‍👦 🇫🇷 e\u0301 \u200b\u00a0\u3000\ufeff \x00\x7f\x85",
    "def f(x):\n    return {'a': [x**2 // 3] * 10}  # ok\n\n\n",
    "a" * 300 + "ab" * 200 + " " * 70 + "x" + "\n" * 9 + "=" * 80,
)


class Encoder(Protocol):
    """Encodes batches of texts."""

    name: str

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all texts concatenated (uint32), and the number of ids of each (int64,
        (len(texts),)).
        """


def check_encoder(name: str) -> None:
    """Raise UsageError if there is no encoder `name`."""
    if name not in ENCODERS:
        raise UsageError(
            f"unknown encoder {name!r}",
            field="encoder",
            code="unknown_encoder",
            hint=nearest(name, ENCODERS),
        )


def open_encoder(tokenizer: Tokenizer, name: EncoderName = "auto") -> Encoder:
    """Return the encoder `name` for `tokenizer`; "auto" is the fastest that is installed and passes
    the check.

    Raises UsageError if the named encoder is unknown, not installed or unsuitable for this kind of
    tokenizer, RunError if its ids differ from the reference's.
    """
    check_encoder(name)
    reference = _Reference(tokenizer)
    if name == "tokenizers":
        return reference
    for candidate in FASTEST_FIRST if name == "auto" else (name,):
        try:
            encoder = _OPENERS[candidate](tokenizer, reference)
        except ImportError:
            if name != "auto":
                raise UsageError(
                    f"{name} is not installed",
                    field="encoder",
                    code="not_installed",
                    hint=install_hint(name),
                ) from None
            continue
        except UnsuitableError as error:
            if name != "auto":
                raise UsageError(
                    f"{name} cannot encode for this tokenizer: {error}",
                    field="encoder",
                    code="encoder_unsuitable",
                    hint="use tokenizers",
                ) from None
            continue
        if _agree(encoder, tokenizer):
            return encoder
        if name != "auto":
            raise RunError(
                f"{name} gives other ids than tokenizers do",
                field="encoder",
                code="encoder_differs",
                hint="use tokenizers, or another version of it",
            )
    return reference


class UnsuitableError(Exception):
    """The backend cannot encode for this tokenizer."""


def _agree(encoder: Encoder, tokenizer: Tokenizer) -> bool:
    expected = _flat(tokenizer.encode_few(list(PROBES)))
    return all(map(np.array_equal, encoder.encode(PROBES), expected))


def _flat(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of some texts, and the number of ids of each, as `Encoder.encode` does."""
    counts = np.array([len(row) for row in rows], np.int64)
    return np.fromiter(chain.from_iterable(rows), np.uint32, int(counts.sum())), counts


def knows_more(text: str) -> bool:
    """Return whether a Unicode 17 table would split `text` differently from older ones."""
    if text.isascii():
        return False
    data = text.encode()
    if not any(lead in data for lead in _LEADS):
        return False
    view = np.frombuffer(data, np.uint8)
    return any(
        _has_newer(view, np.flatnonzero(view[start : start + SCANNED] >= _LEADS[0]) + start)
        for start in range(0, len(view), SCANNED)
    )


def _has_newer(view: np.ndarray, at: np.ndarray) -> bool:
    """Return whether a character of UNICODE_17 is at one of the positions, each of which begins a
    character of three bytes or four.
    """
    at = at[_BEGINS[view[at].astype(np.uint16) << 8 | view[at + 1]]]
    if not len(at):
        return False
    points = np.bitwise_and(view[at], 0x0F, dtype=np.int32)
    for number in (1, 2):
        points = points << 6 | view[at + number] & 0x3F
    longer = view[at] >= 0xF0
    points[longer] = points[longer] << 6 | view[at[longer] + 3] & 0x3F
    return bool(_NEWER.take(points, mode="clip").any())


class _Reference:
    name = "tokenizers"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and counts, as `Encoder.encode` does."""
        return _flat(self._tokenizer.encode_batch(list(texts)))


def _joined(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of some texts, and the number of ids of each, as `Encoder.encode` does."""
    counts = np.array([len(row) for row in rows], np.int64)
    if len(rows) == 1:  # of any length, and not copied
        return rows[0], counts
    return np.concatenate([np.empty(0, np.uint32), *rows]), counts


class _Tiktoken:
    name = "tiktoken"

    def __init__(self, tokenizer: Tokenizer, reference: Encoder) -> None:
        import tiktoken

        model = json.loads(_byte_level(tokenizer))["model"]
        alphabet = byte_alphabet()
        ranks = {
            bytes(alphabet[character] for character in token): number
            for token, number in model["vocab"].items()
            if number != tokenizer.eot_id and alphabet.keys() >= set(token)
        }
        merges = (
            merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]
        )
        learnt = [model["vocab"]["".join(merge)] for merge in merges]
        if learnt != sorted(learnt):
            raise UnsuitableError(
                "its ids are not in the order of its merges, by which tiktoken chooses"
            )
        self._encoding = tiktoken.Encoding(
            "gpt", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and counts, as `Encoder.encode` does."""
        return _joined(
            [self._encoding.encode_to_numpy(text, disallowed_special=()) for text in texts]
        )


class _Gigatoken:
    name = "gigatoken"

    def __init__(self, tokenizer: Tokenizer, reference: Encoder) -> None:
        import gigatoken

        self._load, self._json = gigatoken.Tokenizer.from_json, _byte_level(tokenizer)
        self._reference = reference
        self._backend = self._load(self._json)
        self._seen = self._characters = self._texts = 0
        self._has_batches = False

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and counts, as `Encoder.encode` does."""
        # of all at once, because a short text is looked through in the time of a longer one
        if knows_more("".join(texts)):
            return self._mixed(texts, [knows_more(text) for text in texts])
        if self._seen > RENEW_BYTES:
            self._backend, self._seen = self._load(self._json), 0
        size = sum(map(len, texts))
        self._seen += size
        self._characters += size
        self._texts += len(texts)
        if self._texts <= FIRST_TEXTS and self._characters <= FIRST_CHARACTERS:
            return self._singly(texts)
        if not self._has_batches:
            if not all(map(np.array_equal, self._together(PROBES), self._singly(PROBES))):
                raise RunError(
                    "gigatoken gives other ids for a batch than for its texts",
                    field="encoder",
                    code="encoder_differs",
                    hint="use tokenizers, or another version of it",
                )
            self._has_batches = True
        return self._together(texts)

    def _singly(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _joined([self._backend.encode(text) for text in texts])

    def _together(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = self._backend.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(rows.offsets.data)
        return np.asarray(rows.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)

    def _mixed(self, texts: Sequence[str], newer: list[bool]) -> tuple[np.ndarray, np.ndarray]:
        rows = [
            (self._reference if other else self).encode([text])
            for text, other in zip(texts, newer, strict=True)
        ]
        return np.concatenate([ids for ids, _ in rows]), np.concatenate(
            [counts for _, counts in rows]
        )


_OPENERS: dict[str, Callable[[Tokenizer, Encoder], Encoder]] = {
    "tiktoken": _Tiktoken,
    "gigatoken": _Gigatoken,
}


def _byte_level(tokenizer: Tokenizer) -> str:
    """Return a tokenizer.json of the merges alone: special tokens would be looked for in text.

    Raises UnsuitableError if it is not GPT-2's kind.
    """
    if tokenizer.has_words:
        raise UnsuitableError("it recognises added words in text")
    if type(tokenizer) is not Tokenizer or not tokenizer.divides:
        raise UnsuitableError("it is not a byte-level BPE")
    return tokenizer.merges_json()
