"""The endless training order, a pure function of (seed, position): any part of it, on any layout,
without state to save.

An epoch visits every window of `n_ctx` tokens once, in an order of its own. The permutation is a
Feistel network over the smallest power of two that holds the windows; an index that lands outside
is sent through again until it lands inside (cycle walking), which keeps the map one to one. Memory
is O(1) at any corpus size.

Several sources are mixed by weight, each in an order and with epochs of its own: every BLOCK
positions hold as many windows of each source as its share says, shuffled. Which window of its
source a position reads is therefore known without counting through all before.

What this file computes is part of the promise of exact resume: changing one value of it changes
every training run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gptcli.errors import InputError
from gptcli.shards.loader import TokenStream, open_split
from gptcli.shards.manifest import read_manifest

ROUNDS = 8  # a 64-byte digest is just the keys of eight rounds
BLOCK = 4096  # positions in which a mixture has its weights exactly: shares are met to a 4,096th


def permuted(index: np.ndarray, n: int, seed: int, epoch: int = 0) -> np.ndarray:
    """Where a pseudo-random permutation of range(n) sends each of `index`: int64, the same
    shape.
    """
    keys = np.frombuffer(
        hashlib.blake2b(f"{seed} {epoch}".encode(), person=b"gpt train order").digest(), "<u8"
    )
    bits = (n - 1).bit_length()
    result = np.array(index, np.uint64)
    outside = np.ones(result.shape, bool)
    while outside.any():
        result[outside] = _feistel(result[outside], bits, keys)
        outside = result >= n
    return result.astype(np.int64)


def _feistel(x: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of range(2**bits): the halves of `x` (uint64) take turns to be changed by a
    hash of the other.
    """
    low = bits // 2
    shift, low_mask, high_mask = (
        np.uint64(low),
        np.uint64(2**low - 1),
        np.uint64(2 ** (bits - low) - 1),
    )
    left, right = x >> shift, x & low_mask
    for number, key in enumerate(keys):
        if number % 2:
            right ^= mix64(left + key) & low_mask
        else:
            left ^= mix64(right + key) & high_mask
    return left << shift | right


def mix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the input moves every
    bit of the output.
    """
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


class Windows:
    """The windows of a stream in training order. Window w reads n_ctx tokens from w * n_ctx on, and
    predicts each one's successor.
    """

    def __init__(self, stream: TokenStream, n_ctx: int, seed: int) -> None:
        """Raises InputError where the stream does not fill one window."""
        self.stream, self.n_ctx, self.seed = stream, n_ctx, seed
        self.windows = (len(stream) - 1) // n_ctx
        """In an epoch."""
        if self.windows < 1:
            raise InputError(
                f"the data has {len(stream):,} tokens, too few for a context of {n_ctx:,}",
                hint=f"use more text or a smaller {{option:n_ctx}}, below {len(stream):,}",
            )

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (count, n_ctx) int64 at positions first to first + count of the order;
        epochs follow one another.
        """
        tokens = self.rows(np.arange(first, first + count))
        return tokens[:, :-1], tokens[:, 1:]

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """The windows at any positions of the order, each with the token after it: (count, n_ctx +
        1) int64.
        """
        epochs = positions // self.windows
        tokens = np.empty((len(positions), self.n_ctx + 1), np.int64)
        for epoch in np.unique(epochs):
            rows = np.flatnonzero(epochs == epoch)
            order = permuted(positions[rows] % self.windows, self.windows, self.seed, int(epoch))
            for row, start in zip(rows, order * self.n_ctx, strict=True):
                tokens[row] = self.stream[start : start + self.n_ctx + 1]
        return tokens


class Mixture:
    """The windows of several sources in training order."""

    def __init__(self, sources: Sequence[Windows], shares: Sequence[float], seed: int) -> None:
        """`shares` of the sources add up to 1."""
        self.sources, self.n_ctx, self.seed = sources, sources[0].n_ctx, seed
        self.windows = sum(source.windows for source in sources)
        """Of all sources once."""
        self.slots = apportioned(shares, BLOCK)
        """Of a block: each source's."""

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (count, n_ctx) int64 at positions first to first + count of the
        order.
        """
        positions = np.arange(first, first + count)
        tokens = np.empty((count, self.n_ctx + 1), np.int64)
        for block in np.unique(positions // BLOCK):
            rows = np.flatnonzero(positions // BLOCK == block)
            owners, nth = self._block(int(block), positions[rows] % BLOCK)
            for number, source in enumerate(self.sources):
                mine = owners == number
                tokens[rows[mine]] = source.rows(int(block) * self.slots[number] + nth[mine])
        return tokens[:, :-1], tokens[:, 1:]

    def _block(self, block: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of some places in a block: each one's source, and how many places before it in the block
        are that source's.
        """
        shuffled = permuted(np.arange(BLOCK), BLOCK, self.seed, block)
        # the first slots are the first source's, and so on
        owners = np.searchsorted(np.cumsum(self.slots), shuffled, side="right")
        before = np.empty(BLOCK, np.int64)
        for number, slots in enumerate(self.slots):
            before[owners == number] = np.arange(slots)
        return owners[places], before[places]


def apportioned(shares: Sequence[float], places: int) -> list[int]:
    """`places` divided by largest remainders, one at least to each: whole numbers that add up to
    it.
    """
    exact = [share * places for share in shares]
    whole = [max(1, int(value)) for value in exact]
    by_need = sorted(range(len(exact)), key=lambda number: whole[number] - exact[number])
    for turn in range(places - sum(whole)):
        whole[by_need[turn % len(whole)]] += 1
    while sum(whole) > places:  # where those under one place took more than was left
        whole[whole.index(max(whole))] -= 1
    return whole


def open_order(
    folder: Path, split: str, n_ctx: int, seed: int, *, verify: bool = True
) -> Windows | Mixture:
    """The training order of a shard folder's split: its one source's, or the mixture that its
    manifest's weights ask for.

    `verify` as in `open_split`. Raises InputError where a source does not fill one window.
    """
    shares = read_manifest(folder).shares(split)
    if len(shares) < 2:
        return _windows(folder, split, None, n_ctx, seed, verify=verify)
    sources = [
        _windows(folder, split, name, n_ctx, _derived(seed, name), verify=verify) for name in shares
    ]
    return Mixture(sources, list(shares.values()), _derived(seed, ""))


def _windows(
    folder: Path, split: str, source: str | None, n_ctx: int, seed: int, *, verify: bool
) -> Windows:
    stream = open_split(folder, split, source=source, verify=verify)
    try:
        return Windows(stream, n_ctx, seed)
    except InputError as error:
        what = error.what if source is None else f"source {source!r}: {error.what}"
        raise InputError(what, where=folder, hint=error.hint) from None


def _derived(seed: int, name: str) -> int:
    """A seed for each source, and for the mixing, whose name is empty."""
    return int.from_bytes(
        hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8, person=b"gpt mixture").digest(),
        "little",
    )
