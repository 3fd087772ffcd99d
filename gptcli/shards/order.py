"""The endless training order, a pure function of (seed, position): any part of it, on any layout, without state to save.

An epoch visits every window of `n_ctx` tokens once, in an order of its own. The permutation is a Feistel network over the smallest power
of two that holds the windows; an index that lands outside is sent through again until it lands inside (cycle walking), which keeps
the map one to one. Memory is O(1) at any corpus size.

What this file computes is part of the promise of exact resume: changing one value of it changes every training run.
"""

from __future__ import annotations

import hashlib

import numpy as np

from gptcli.errors import InputError
from gptcli.shards.loader import TokenStream

ROUNDS = 8  # a 64-byte digest is just the keys of eight rounds


def permuted(index: np.ndarray, n: int, seed: int, epoch: int = 0) -> np.ndarray:
    """Where a pseudo-random permutation of range(n) sends each of `index`: int64, the same shape."""
    keys = np.frombuffer(hashlib.blake2b(f"{seed} {epoch}".encode(), person=b"gpt train order").digest(), "<u8")
    bits = (n - 1).bit_length()
    result = np.array(index, np.uint64)
    outside = np.ones(result.shape, bool)
    while outside.any():
        result[outside] = _feistel(result[outside], bits, keys)
        outside = result >= n
    return result.astype(np.int64)


def _feistel(x: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of range(2**bits): the halves of `x` (uint64) take turns to be changed by a hash of the other."""
    low = bits // 2
    shift, low_mask, high_mask = np.uint64(low), np.uint64(2**low - 1), np.uint64(2 ** (bits - low) - 1)
    left, right = x >> shift, x & low_mask
    for number, key in enumerate(keys):
        if number % 2:
            right ^= mix64(left + key) & low_mask
        else:
            left ^= mix64(right + key) & high_mask
    return left << shift | right


def mix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the input moves every bit of the output."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


class Windows:
    """The windows of a stream in training order. Window w reads n_ctx tokens from w * n_ctx on, and predicts each one's successor."""

    def __init__(self, stream: TokenStream, n_ctx: int, seed: int) -> None:
        """Raises InputError where the stream does not fill one window."""
        self.stream, self.n_ctx, self.seed = stream, n_ctx, seed
        self.windows = (len(stream) - 1) // n_ctx
        """In an epoch."""
        if self.windows < 1:
            raise InputError(
                f"{len(stream)} tokens do not fill one window of {n_ctx}", hint=f"use more text, or a context below {len(stream)} tokens"
            )

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (count, n_ctx) int64 at positions first to first + count of the order; epochs follow one another."""
        positions = np.arange(first, first + count)
        epochs = positions // self.windows
        tokens = np.empty((count, self.n_ctx + 1), np.int64)
        for epoch in np.unique(epochs):
            rows = np.flatnonzero(epochs == epoch)
            order = permuted(positions[rows] % self.windows, self.windows, self.seed, int(epoch))
            for row, start in zip(rows, order * self.n_ctx, strict=True):
                tokens[row] = self.stream[start : start + self.n_ctx + 1]
        return tokens[:, :-1], tokens[:, 1:]
