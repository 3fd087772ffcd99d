"""All shards of one split, or of one source of it, as one sequence of tokens, checked before the
first token is used.
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
    """Token arrays end to end as one; they stay on disk where they are memory maps."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = arrays
        self.dtype = arrays[0].dtype
        # one past each array's last token
        self._ends = list(accumulate(len(array) for array in arrays))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, span: slice) -> np.ndarray:
        """A copy of the tokens in `span` (step 1), whatever shards they lie in; clipped at the ends
        as lists are.
        """
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise ValueError("a token stream is read in steps of 1")
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
    """The tokens of `split` ("train" or "val") of a shard folder, of one source or of all.

    Layout, size and count of each shard are always checked; `verify` also compares each one's
    SHA-256 with the manifest, reading every byte once. Raises InputError that names the file.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    shards = manifest.of(split, source)
    if not manifest.tokens(split, source):
        hint = (
            "build them with a larger {option:val_fraction} or finer {option:documents}; "
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
                f"its tokens are not as wide as those of {shards[0].file}",
                where=folder / other.file,
            )
    if verify:
        with ThreadPoolExecutor() as pool:  # hashing lets other threads run
            for shard, digest in zip(
                shards, pool.map(lambda shard: sha256(folder / shard.file), shards), strict=True
            ):
                if digest != shard.sha256:
                    raise InputError(
                        "altered: its SHA-256 is not the manifest's",
                        where=folder / shard.file,
                        hint="copy the shard again, or build the shards again with {option:force}",
                    )
    return TokenStream(arrays)


def _open(folder: Path, shard: Shard, dtype: TokenDtype) -> np.ndarray:
    tokens = open_shard(folder / shard.file)
    if len(tokens) != shard.tokens:
        raise InputError(
            f"holds {len(tokens)} tokens where the manifest has {shard.tokens}",
            where=folder / shard.file,
        )
    if tokens.dtype != dtype:
        raise InputError(
            f"holds {tokens.dtype} tokens, the manifest's vocabulary needs {dtype}",
            where=folder / shard.file,
        )
    return tokens
