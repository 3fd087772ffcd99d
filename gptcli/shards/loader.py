"""Tokens of a split, or of one of its sources: its shards joined into one stream.

The shards are checked before the first token is used.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import numpy as np

from gptcli.errors import InputError
from gptcli.files import sha256
from gptcli.shards.external import open_tokens
from gptcli.shards.format import TokenDtype, open_shard, token_dtype
from gptcli.shards.manifest import MANIFEST, Shard, read_manifest


class TokenStream:
    """Token arrays joined end to end; memory maps stay on disk."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
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
    folder: Path, split: str, *, source: str | None = None, verify: bool = True
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
            "build them with a larger --val-fraction or finer --documents; "
            "gpt eval --text FILE needs no shards"
        )
        raise InputError(f"the {split} split is empty", where=folder / MANIFEST, hint=hint)
    if (folder / MANIFEST).exists():
        dtype = token_dtype(manifest.vocab_size)
        arrays = [_open(folder, shard, dtype) for shard in shards]
    else:
        arrays = [open_tokens(folder / shard.file) for shard in shards]
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
        with ThreadPoolExecutor() as pool:  # hashing releases the GIL
            for shard, digest in zip(
                shards, pool.map(lambda shard: sha256(folder / shard.file), shards), strict=True
            ):
                if digest != shard.sha256:
                    raise InputError(
                        "altered: its SHA-256 is not the manifest's",
                        where=folder / shard.file,
                        hint="copy the shard again, or build the shards again with --force",
                    )
    return TokenStream(arrays)


def _open(folder: Path, shard: Shard, dtype: TokenDtype) -> np.ndarray:
    tokens = open_shard(folder / shard.file)
    if len(tokens) != shard.tokens:
        raise InputError(
            f"has {len(tokens)} tokens, but the manifest says {shard.tokens}",
            where=folder / shard.file,
        )
    if tokens.dtype != dtype:
        raise InputError(
            f"has {tokens.dtype} tokens, but the manifest's vocabulary needs {dtype}",
            where=folder / shard.file,
        )
    return tokens
