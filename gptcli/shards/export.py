"""Exports of a shard folder's tokens for other programs.

llm.c and Megatron read the shards as they are. nanoGPT needs one bare file per split, and Megatron
can take a source under one name if its shards are joined.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from gptcli.errors import UsageError
from gptcli.files import atomic_write
from gptcli.shards.format import (
    document_lengths,
    index_header,
    index_path,
    open_shard,
    token_dtype,
)
from gptcli.shards.manifest import DEFAULT_SOURCE, SPLITS, read_manifest

BLOCK_ITEMS = 1 << 24  # tokens or documents written at a time


def export_nanogpt(folder: Path) -> list[Path]:
    """Write train.bin and val.bin next to the shards: bare uint16 tokens, without a header.

    Returns the files written. Raises UsageError if the vocabulary does not fit into uint16.
    """
    manifest = read_manifest(folder)
    if token_dtype(manifest.vocab_size).itemsize != 2:
        raise UsageError(
            f"nanoGPT reads uint16, and a vocabulary of {manifest.vocab_size} does not fit",
            where="--format",
        )
    written = []
    for split in SPLITS:
        with atomic_write(folder / f"{split}.bin") as file:
            _copy_tokens(file, [folder / shard.file for shard in manifest.shards_of(split)])
        written.append(folder / f"{split}.bin")
    return written


def export_megatron(folder: Path) -> list[Path]:
    """Write Megatron's .bin and .idx for each split and source next to the shards.

    They are called train-webtext2.bin and .idx, or train.bin and .idx without a recipe. A sequence
    is a document. Empty splits are skipped, because Megatron cannot map an empty file. Returns the
    files written.
    """
    manifest = read_manifest(folder)
    dtype = token_dtype(manifest.vocab_size)
    written = []
    for split in SPLITS:
        for source in manifest.shares(split):
            shards = manifest.shards_of(split, source)
            paths = [folder / shard.file for shard in shards]
            name = split if source == DEFAULT_SOURCE else f"{split}-{source}"
            path = folder / f"{name}.bin"
            with atomic_write(path) as file:
                _copy_tokens(file, paths)
            documents = sum(shard.documents for shard in shards)
            with atomic_write(index_path(path)) as file:
                file.write(index_header(dtype, documents))
                for shard in paths:
                    file.write(document_lengths(shard).data)
                start = 0  # byte offset of the shard in the joined file
                for shard in paths:
                    lengths = document_lengths(shard).astype("<i8")
                    file.write((start + dtype.itemsize * (np.cumsum(lengths) - lengths)).data)
                    start += dtype.itemsize * int(lengths.sum())
                for first in range(0, documents + 1, BLOCK_ITEMS):
                    last = min(first + BLOCK_ITEMS, documents + 1)
                    file.write(np.arange(first, last, dtype="<i8").data)
            written += [path, index_path(path)]
    return written


def _copy_tokens(file: IO[bytes], shards: list[Path]) -> None:
    for shard in shards:
        tokens = open_shard(shard)
        for start in range(0, len(tokens), BLOCK_ITEMS):
            file.write(tokens[start : start + BLOCK_ITEMS].data)


EXPORTERS = {"nanogpt": export_nanogpt, "megatron": export_megatron}
EXPORT_FORMATS = ("shards", *EXPORTERS)
