"""Order of the windows that training reads: an endless, pure function of (seed, position).

The shards of a split, or of one of its sources, are joined into one stream of tokens, and checked
before the first token is used. Any part of the order of its windows can be computed on any process,
without state to save.

An epoch visits every window of `n_ctx` tokens once, in an order of its own. The permutation is a
Feistel network over the smallest range of a power of two with room for all windows; an index that
is mapped outside the windows is mapped again until it is inside (cycle walking), which keeps the
map one to one. Memory is O(1) for a corpus of any size.

Several sources are mixed by weight, each in an order and with epochs of its own: every block of
MIXTURE_BLOCK positions has as many windows of each source as its share says, shuffled. So the
window of any position is known without counting through those before it. The shares may change at
given positions; each source goes on where it was.

Exact resume depends on this module: changing one value that it computes changes every training run.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gptcli.errors import InputError
from gptcli.files import sha256
from gptcli.numbers import counted
from gptcli.shards.format import TokenDtype, open_shard, open_tokens, token_dtype
from gptcli.shards.manifest import MANIFEST, Shard, Split, Stage, read_manifest

MIXTURE_BLOCK = 4096  # positions with exactly the shares of a mixture, rounded to 1/4096


class Tokens(Protocol):
    """Tokens of one shard: an array, or a file that is mapped when it is read."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of a token."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, tokens: slice, /) -> np.ndarray: ...


def open_files() -> int:
    """Return how many shards may be open at a time: a quarter of the files that this process may
    open, at most 1,024. A memory map holds a descriptor.
    """
    try:
        import resource
    except ImportError:  # Windows
        return 128
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1024 if limit == resource.RLIM_INFINITY else max(4, min(1024, limit // 4))


@lru_cache(maxsize=open_files())
def _mapped(path: Path, dtype: np.dtype[Any], offset: int, count: int) -> np.ndarray:
    return np.memmap(path, dtype, "r", offset, (count,))


class TokenFile:
    """Tokens of a checked file, which is open only while it is among those read last."""

    def __init__(self, path: Path, mapped: np.memmap) -> None:
        """Describe the file of a memory map, which can then be closed."""
        self.path, self.dtype, self.offset, self.count = (
            path,
            mapped.dtype,
            mapped.offset,
            len(mapped),
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, tokens: slice) -> np.ndarray:
        """Return a slice of the tokens, as a view of the file."""
        return _mapped(self.path, self.dtype, self.offset, self.count)[tokens]


class TokenStream:
    """Token arrays and files joined end to end; files stay on disk."""

    def __init__(self, arrays: Sequence[Tokens]) -> None:
        self.arrays = arrays
        """Arrays (tokens,) of the shards, in order."""
        self.dtype = arrays[0].dtype
        """Data type of a token."""
        # Index after the last token of each array.
        self._ends = list(accumulate(len(array) for array in arrays))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, tokens: slice) -> np.ndarray:
        """Return a copy of a slice of the tokens, across shards; clipped at the ends like a list's.

        Raises ValueError if the step of the slice is not 1.
        """
        start, stop, step = tokens.indices(len(self))
        if step != 1:
            raise ValueError("a token stream can only be sliced with a step of 1")
        out = np.empty(max(0, stop - start), self.dtype)
        filled = 0
        number = bisect_right(self._ends, start)
        while filled < len(out):
            array = self.arrays[number]
            offset = start + filled - (self._ends[number] - len(array))
            piece = array[offset : offset + len(out) - filled]
            out[filled : filled + len(piece)] = piece
            filled += len(piece)
            number += 1
        return out


def open_split(
    folder: Path, split: Split, *, source: str | None = None, verify: bool = True
) -> TokenStream:
    """Return the tokens of `split` ("train" or "val") of a shard folder, of one source or of all.

    Header, size and token count of each shard are always checked; `verify` also reads every byte
    and compares the SHA-256 with the manifest's. Raises InputError that names the file.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    shards = manifest.shards_of(split, source)
    if not manifest.tokens(split, source):
        hint = (
            "build them with a larger {option:val_fraction}, or of more documents; "
            "gpt eval --text FILE needs no shards"
        )
        raise InputError(f"the {split} split is empty", where=folder / MANIFEST, hint=hint)
    if (folder / MANIFEST).exists():
        dtype = token_dtype(manifest.vocab_size)
        arrays = [closed(folder / shard.file, _open(folder, shard, dtype)) for shard in shards]
    else:
        arrays = [closed(path, open_tokens(path)) for path in (folder / one.file for one in shards)]
        if other := next(
            (
                shard
                for shard, array in zip(shards, arrays, strict=True)
                if array.dtype != arrays[0].dtype
            ),
            None,
        ):
            raise InputError(
                f"its tokens have another data type than those of {shards[0].file}",
                where=folder / other.file,
            )
    if verify:
        verify_bytes(folder, shards)
    return TokenStream(arrays)


def verify_bytes(folder: Path, shards: Sequence[Shard]) -> None:
    """Read every byte of some shards of a folder. Raises InputError that names an altered one."""
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        for shard, digest in zip(
            shards, pool.map(lambda shard: sha256(folder / shard.file), shards), strict=True
        ):
            if digest != shard.sha256:
                raise InputError(
                    "altered: its SHA-256 differs from the manifest's",
                    where=folder / shard.file,
                    hint="copy the shard again, or build the shards again with {option:force}",
                )


def closed(path: Path, tokens: np.ndarray) -> Tokens:
    """Return the tokens of a file without an open descriptor; those of an empty file as they are."""
    return TokenFile(path, tokens) if isinstance(tokens, np.memmap) else tokens


def _open(folder: Path, shard: Shard, dtype: TokenDtype) -> np.ndarray:
    tokens = open_shard(folder / shard.file)
    if len(tokens) != shard.tokens:
        raise InputError(
            f"has {counted(len(tokens), 'token')}, but the manifest says {shard.tokens}",
            where=folder / shard.file,
        )
    if tokens.dtype != dtype:
        raise InputError(
            f"has {tokens.dtype} tokens, but the manifest's vocabulary needs {dtype}",
            where=folder / shard.file,
        )
    return tokens


def feistel_permutation(index: np.ndarray, n: int, seed: int, epoch: int = 0) -> np.ndarray:
    """Map `index` by a pseudo-random permutation of range(n); int64, of the same shape."""
    keys = np.frombuffer(  # 64 bytes: the keys of eight rounds
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
    """Permute range(2**bits): each round changes one half of `x` by a hash of the other."""
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
    """Return the finalizer of SplitMix64 (Steele, Lea and Flood 2014), a bijection of uint64."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


class ShuffledWindows:
    """Windows of a token stream in training order, epoch after epoch.

    Window w has the n_ctx tokens from w * n_ctx on as inputs, and the token after each as targets.
    """

    def __init__(self, stream: TokenStream, n_ctx: int, seed: int) -> None:
        """Raise InputError if the stream is too short for one window."""
        self.stream, self.n_ctx, self.seed = stream, n_ctx, seed
        self.windows = (len(stream) - 1) // n_ctx
        """Number of windows in an epoch."""
        if self.windows < 1:
            raise InputError(
                f"the data has {counted(len(stream), 'token')}, too few for a context of {n_ctx:,}",
                hint=f"use more text or a smaller {{option:n_ctx}}, below {len(stream):,}",
            )

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets (count, n_ctx) int64 at positions first to first + count."""
        tokens = self.rows(np.arange(first, first + count))
        return tokens[:, :-1], tokens[:, 1:]

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Return the windows at `positions`, with the next token: (count, n_ctx + 1) int64."""
        epochs = positions // self.windows
        tokens = np.empty((len(positions), self.n_ctx + 1), np.int64)
        for epoch in np.unique(epochs):
            rows = np.flatnonzero(epochs == epoch)
            order = feistel_permutation(
                positions[rows] % self.windows, self.windows, self.seed, int(epoch)
            )
            for row, start in zip(rows, order * self.n_ctx, strict=True):
                tokens[row] = self.stream[start : start + self.n_ctx + 1]
        return tokens


@dataclass(frozen=True, slots=True)
class MixtureStage:
    """Positions of a mixture with the same shares."""

    start: int
    """First position."""
    slots: list[int]
    """Number of windows of each source in a block of MIXTURE_BLOCK positions."""
    block: int
    """Number of blocks that earlier stages have begun."""
    read: list[int]
    """Number of windows of each source that earlier stages have."""


class Mixture:
    """Windows of several sources, mixed by weight, in training order."""

    def __init__(
        self,
        sources: Sequence[ShuffledWindows],
        shares: Sequence[float],
        seed: int,
        *,
        later: Sequence[tuple[int, Sequence[float]]] = (),
        names: Sequence[str] = (),
    ) -> None:
        """Mix `sources` by `shares`, which add up to 1.

        `later` are other shares by the position from which on they apply, in order. `names` are
        those of the sources.
        """
        self.sources, self.n_ctx, self.seed = sources, sources[0].n_ctx, seed
        self.names = list(names)
        self.windows = sum(source.windows for source in sources)
        """Number of windows of all sources, each counted once."""
        self.stages = [MixtureStage(0, slots_of(shares), 0, [0] * len(sources))]
        for start, changed in later:
            last = self.stages[-1]
            blocks = last.block - (last.start - start) // MIXTURE_BLOCK  # rounded up
            self.stages.append(MixtureStage(start, slots_of(changed), blocks, self.counts(start)))

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets (count, n_ctx) int64 at positions first to first + count."""
        owners, windows = self._windows(first, count)
        tokens = np.empty((count, self.n_ctx + 1), np.int64)
        for number, source in enumerate(self.sources):
            mine = owners == number
            tokens[mine] = source.rows(windows[mine])
        return tokens[:, :-1], tokens[:, 1:]

    def owners(self, first: int, count: int) -> np.ndarray:
        """Return the number of the source of positions first to first + count, (count,) int64."""
        return self._windows(first, count)[0]

    def counts(self, position: int) -> list[int]:
        """Return the number of windows of each source before a position."""
        stage = next(stage for stage in reversed(self.stages) if stage.start <= position)
        block, rest = divmod(position - stage.start, MIXTURE_BLOCK)
        begun = np.bincount(
            self._block(stage, block)[0][:rest], minlength=len(self.sources)
        ).tolist()
        return [
            read + block * slots + more
            for read, slots, more in zip(stage.read, stage.slots, begun, strict=True)
        ]

    def _windows(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each position, and the number of its window in the source's order."""
        positions = np.arange(first, first + count)
        owners, windows = np.empty((2, count), np.int64)
        starts = [stage.start for stage in self.stages]
        of_stage = np.searchsorted(starts, positions, side="right") - 1
        places = positions - np.array(starts)[of_stage]
        for number, block in np.unique([of_stage, places // MIXTURE_BLOCK], axis=1).T.tolist():
            stage = self.stages[number]
            rows = np.flatnonzero((of_stage == number) & (places // MIXTURE_BLOCK == block))
            found, ranks = (
                part[places[rows] % MIXTURE_BLOCK] for part in self._block(stage, block)
            )
            before = np.array(stage.read) + block * np.array(stage.slots)
            owners[rows], windows[rows] = found, before[found] + ranks
        return owners, windows

    def _block(self, stage: MixtureStage, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each place of a stage's block, and its rank among the source's."""
        shuffled = feistel_permutation(
            np.arange(MIXTURE_BLOCK), MIXTURE_BLOCK, self.seed, stage.block + block
        )
        # Before the shuffle, the first slots belong to the first source, and so on.
        owners = np.searchsorted(np.cumsum(stage.slots), shuffled, side="right")
        ranks = np.empty(MIXTURE_BLOCK, np.int64)
        for number, slots in enumerate(stage.slots):
            ranks[owners == number] = np.arange(slots)
        return owners, ranks


def slots_of(shares: Sequence[float]) -> list[int]:
    """Divide the places of a block by shares; a source with the share 0 has none."""
    places = iter(largest_remainder([share for share in shares if share > 0], MIXTURE_BLOCK))
    return [next(places) if share > 0 else 0 for share in shares]


def largest_remainder(shares: Sequence[float], places: int) -> list[int]:
    """Divide `places` by shares with the largest remainder method, at least one place for each."""
    exact = [share * places for share in shares]
    whole = [max(1, int(value)) for value in exact]
    by_need = sorted(range(len(exact)), key=lambda number: whole[number] - exact[number])
    for turn in range(places - sum(whole)):
        whole[by_need[turn % len(whole)]] += 1
    while sum(whole) > places:  # shares of less than one place got more than was left
        whole[whole.index(max(whole))] -= 1
    return whole


def open_order(
    folder: Path, split: Split, n_ctx: int, seed: int, *, mixture: str = "", verify: bool = True
) -> ShuffledWindows | Mixture:
    """Open the training order of a split: that of its one source, or the manifest's mixture.

    `mixture` are other weights of the training sources, by tokens (`Manifest.stages`); a stage
    begins with the first window from there on. `verify` compares every shard's SHA-256, as in
    `open_split`. Raises InputError if a shard is damaged, or if a source is too short for one
    window; UsageError if the mixture does not fit the sources.
    """
    manifest = read_manifest(folder)
    stages = manifest.stages(mixture) if split == "train" else [Stage(0, manifest.shares(split))]
    shares = stages[0].shares
    if len(shares) < 2:
        return _open_windows(folder, split, None, n_ctx, seed, verify=verify)
    sources = [
        _open_windows(folder, split, name, n_ctx, _derive_seed(seed, name), verify=verify)
        for name in shares
    ]
    later = [(-(-stage.tokens // n_ctx), list(stage.shares.values())) for stage in stages[1:]]
    first = list(shares.values())
    return Mixture(sources, first, _derive_seed(seed, ""), later=later, names=list(shares))


def _open_windows(
    folder: Path, split: Split, source: str | None, n_ctx: int, seed: int, *, verify: bool
) -> ShuffledWindows:
    stream = open_split(folder, split, source=source, verify=verify)
    try:
        return ShuffledWindows(stream, n_ctx, seed)
    except InputError as error:
        what = error.what if source is None else f"source {source!r}: {error.what}"
        raise InputError(what, where=folder, hint=error.hint) from None


def _derive_seed(seed: int, name: str) -> int:
    """Return the seed of a source; the name "" is that of the mixture itself."""
    return int.from_bytes(
        hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8, person=b"gpt mixture").digest(),
        "little",
    )
