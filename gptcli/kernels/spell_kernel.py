"""Spelling of token ids in decimal by `spell.c`, 2 ns an id where numpy takes 13 to 23."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import numpy as np

from gptcli.kernels.build import library

Speller = Callable[[np.ndarray, np.ndarray, int, int], memoryview]
"""Function (ids, stops, at, before) that returns the bytes of `spell_ids`, valid until the next call.

`ids` (n,) uint32 is part of a batch, from its id `at` on, `stops` (documents,) int64 the numbers
behind the documents that end in it, and `before` that of the document before them.
"""


def spell_ids(vocab_size: int) -> Speller | None:
    """Return a function that spells the ids of a vocabulary of at most 10 million; None if the
    kernel cannot be built here.
    """
    built = library("spell") if sys.byteorder == "little" else None
    if built is None:
        return None
    spell = built.spell_ids
    pointer, number = ctypes.c_void_p, ctypes.c_long
    spell.argtypes = [pointer, number, pointer, number, ctypes.c_int64, ctypes.c_int64]
    spell.argtypes += [pointer, pointer]
    spell.restype = number
    digits = np.arange(vocab_size).astype("S7")
    rows = np.strings.add(digits, b" ").astype("S8").view(np.uint64)
    out = np.empty(0, np.uint8)

    def spelled(ids: np.ndarray, stops: np.ndarray, at: int, before: int) -> memoryview:
        """Return the ids in decimal. Raises IndexError if one is outside the vocabulary."""
        nonlocal out
        if len(ids) and int(ids.max()) >= vocab_size:
            raise IndexError(f"the id {int(ids.max())} is outside a vocabulary of {vocab_size}")
        if len(out) < (size := 8 * len(ids) + len(stops) + 8):
            out = np.empty(size, np.uint8)
        ids, stops = np.ascontiguousarray(ids, np.uint32), np.ascontiguousarray(stops, np.int64)
        written = spell(
            *(ids.ctypes.data, len(ids), stops.ctypes.data, len(stops), at, before),
            *(rows.ctypes.data, out.ctypes.data),
        )
        return out.data[:written]

    return spelled
