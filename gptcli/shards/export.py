"""The tokens of a shard folder for other programs. Megatron and llm.c read the shards as they are;
nanoGPT wants one bare file a split, and Megatron takes a source under one name where its shards are
joined."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from gptcli.errors import UsageError
from gptcli.files import atomic_write
from gptcli.shards.format import document_lengths, index_head, index_path, open_shard, token_dtype
from gptcli.shards.manifest import DEFAULT_SOURCE, SPLITS, read_manifest

CHUNK = 1 << 24  # tokens copied, or documents numbered, together


def export_nanogpt(folder: Path) -> list[Path]:
    """Write train.bin and val.bin beside the shards: their tokens end to end as uint16, without a
    header.

    Raises UsageError where the vocabulary does not fit into uint16.
    """
    manifest = read_manifest(folder)
    if token_dtype(manifest.vocab_size).itemsize != 2:
        raise UsageError(
            f"nanoGPT reads uint16, and a vocabulary of {manifest.vocab_size} does not fit",
            field="format",
            code="vocabulary_too_large",
        )
    written = []
    for split in SPLITS:
        with atomic_write(folder / f"{split}.bin") as file:
            _copy_tokens(file, [folder / shard.file for shard in manifest.of(split)])
        written.append(folder / f"{split}.bin")
    return written


def export_megatron(folder: Path) -> list[Path]:
    """Write Megatron's pair of bare tokens and index for each split and source beside the shards:
    train-webtext2.bin and .idx, or train.bin and .idx without a recipe. A sequence is a document;
    what is empty is left out, because Megatron cannot map it.
    """
    manifest = read_manifest(folder)
    dtype = token_dtype(manifest.vocab_size)
    written = []
    for split in SPLITS:
        for source in manifest.shares(split):
            shards = manifest.of(split, source)
            paths = [folder / shard.file for shard in shards]
            path = folder / (
                f"{split}.bin" if source == DEFAULT_SOURCE else f"{split}-{source}.bin"
            )
            with atomic_write(path) as file:
                _copy_tokens(file, paths)
            count = sum(shard.documents for shard in shards)
            with atomic_write(index_path(path)) as file:
                file.write(index_head(dtype, count))
                for shard in paths:
                    file.write(document_lengths(shard).data)
                start = 0  # of the shard, in the joined file
                for shard in paths:
                    lengths = document_lengths(shard).astype("<i8")
                    file.write((start + dtype.itemsize * (np.cumsum(lengths) - lengths)).data)
                    start += dtype.itemsize * int(lengths.sum())
                for first in range(0, count + 1, CHUNK):
                    file.write(np.arange(first, min(first + CHUNK, count + 1), dtype="<i8").data)
            written += [path, index_path(path)]
    return written


def _copy_tokens(file: IO[bytes], shards: list[Path]) -> None:
    for shard in shards:
        tokens = open_shard(shard)
        for start in range(0, len(tokens), CHUNK):
            file.write(tokens[start : start + CHUNK].data)


EXPORTS = {"nanogpt": export_nanogpt, "megatron": export_megatron}
FORMATS = ("shards", *EXPORTS)
