"""Learning of byte-pair merges by `bpe.c`: ten times as fast as `tokenizers`, with its results."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from weakref import finalize

from gptcli.kernels.build import Library, library

Classes = Callable[[str], Sequence[int]]
"""Function that returns the class of each character of a text: 1 a letter, 2 a number, 3 white
space, 0 any other.
"""
CODE_POINTS = 0x110000
MERGES = 1 << 10  # learned in one call


class MergeLearner:
    """Counts the words of texts, divided by GPT-2's pattern, and learns merges from them."""

    def __init__(self, built: Library, classes: Classes, order: bytes, limit: int) -> None:
        self._count, self._merge = built.bpe_count, built.bpe_merge
        self._classes = classes
        self._known = set(map(chr, range(128)))
        table = (ctypes.c_uint8 * CODE_POINTS)()
        self._table = memoryview(table).cast("B")
        self._table[:128] = bytes(classes("".join(map(chr, range(128)))))
        self._learner = built.bpe_new(table, order, limit)
        if not self._learner:
            raise MemoryError("no memory to learn merges")
        finalize(self, built.bpe_free, self._learner).atexit = False

    def count(self, text: str) -> None:
        """Count the words of a text. Raises UnicodeEncodeError on a lone surrogate."""
        if not text.isascii() and (new := set(text) - self._known):
            characters = "".join(new)
            for character, kind in zip(characters, self._classes(characters), strict=True):
                self._table[ord(character)] = kind
            self._known |= new
        data = text.encode()
        if self._count(self._learner, data, len(data)):
            raise MemoryError("no memory to count words")

    def merges(self, min_frequency: int) -> Iterator[list[tuple[int, int]]]:
        """Yield the merges in lists, as pairs of ids; no text can be counted afterwards.

        A merge has the id after the last one, unless its bytes have an id already.
        """
        out = (ctypes.c_uint32 * (2 * MERGES))()
        number = MERGES
        while number == MERGES:
            number = self._merge(self._learner, MERGES, min_frequency, out)
            if number < 0:
                raise MemoryError("no memory to learn merges")
            yield list(zip(out[: 2 * number : 2], out[1 : 2 * number : 2], strict=True))


def merge_learner(classes: Classes, order: bytes, limit: int) -> MergeLearner | None:
    """Return a learner of at most `limit` tokens, the first of which are the 256 bytes in `order`;
    None if the kernel cannot be built here.
    """
    if (built := library("bpe")) is None:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    built.bpe_new.argtypes, built.bpe_new.restype = [pointer, ctypes.c_char_p, size], pointer
    built.bpe_free.argtypes, built.bpe_free.restype = [pointer], None
    built.bpe_count.argtypes = [pointer, ctypes.c_char_p, size]
    built.bpe_merge.argtypes = [pointer, ctypes.c_long, ctypes.c_int64, pointer]
    built.bpe_merge.restype = ctypes.c_long
    return MergeLearner(built, classes, order, limit)
