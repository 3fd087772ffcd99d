"""A finished shard folder: its verification, and exports of its tokens for other programs.

A folder is verified against its manifest, byte for byte and document for document. llm.c and
Megatron read the shards as they are. nanoGPT needs one bare file per split, and Megatron can take a
source under one name if its shards are joined.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from gptcli.errors import InputError, UsageError
from gptcli.events import SILENT, Events
from gptcli.files import atomic_write, sha256
from gptcli.numbers import counted
from gptcli.shards.format import (
    document_lengths,
    index_header,
    index_path,
    open_shard,
    token_dtype,
)
from gptcli.shards.manifest import DEFAULT_SOURCE, MANIFEST, SPLITS, Manifest, Shard, read_manifest
from gptcli.tokenizer.load import load_tokenizer

BLOCK_ITEMS = 1 << 24  # tokens or documents written at a time
VERIFIED_TOKENS = 1 << 24  # checked at a time


def export_nanogpt(folder: Path) -> list[Path]:
    """Write train.bin and val.bin next to the shards: bare uint16 tokens, without a header.

    Returns the files written. Raises UsageError if the vocabulary does not fit into uint16.
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


def verify_shards(folder: Path, *, events: Events = SILENT) -> Manifest:
    """Check every shard of `folder` and return the manifest.

    The SHA-256 of each shard has to be the manifest's, its header and index have to agree with it,
    each document has to begin with an end-of-text and contain no other, and no token may be outside
    the vocabulary. Raises InputError that names the first file with a fault, and the fault.
    """
    manifest = read_manifest(folder)
    if not (folder / MANIFEST).exists():
        raise InputError(
            f"has no {MANIFEST} to verify these token files of another program against",
            where=folder,
        )
    if load_tokenizer(folder / "tokenizer.json").sha256 != manifest.tokenizer_sha256:
        raise InputError("is not the tokenizer in the manifest", where=folder / "tokenizer.json")
    for number, shard in enumerate(manifest.shards):
        _verify(folder, shard, manifest)
        events.progress("verify", number + 1, len(manifest.shards), "shards")
    events.finish("verify")
    for source in manifest.sources:
        if source.documents_in != source.documents_kept + sum(source.dropped.values()):
            raise InputError(
                f"{source.name}: documents_in is not documents_kept plus those dropped",
                where=folder / MANIFEST,
            )
        shards = [shard for shard in manifest.shards if shard.source == source.name]
        if sum(shard.tokens for shard in shards) != source.tokens:
            raise InputError(
                f"{source.name}: its shards do not have {counted(source.tokens, 'token')} in total",
                where=folder / MANIFEST,
            )
        if sum(shard.documents for shard in shards) != source.documents_kept + source.pieces:
            raise InputError(
                f"{source.name}: its shards do not have as many documents as were kept",
                where=folder / MANIFEST,
            )
    return manifest


def _verify(folder: Path, shard: Shard, manifest: Manifest) -> None:
    path = folder / shard.file
    tokens, lengths = open_shard(path), document_lengths(path)
    if tokens.dtype != token_dtype(manifest.vocab_size):
        raise InputError(
            f"has {tokens.dtype} tokens, but the manifest's vocabulary needs "
            f"{token_dtype(manifest.vocab_size)}",
            where=path,
        )
    if len(tokens) != shard.tokens or len(lengths) != shard.documents:
        raise InputError(
            f"has {counted(len(tokens), 'token')} in {counted(len(lengths), 'document')}, "
            f"not {shard.tokens} in {shard.documents}",
            where=path,
        )
    if sha256(path) != shard.sha256:
        raise InputError(
            "altered: its SHA-256 differs from the manifest's",
            where=path,
            hint="copy the shard again, or build the shards again",
        )
    if int(lengths.sum(dtype=np.int64)) != len(tokens):
        raise InputError(
            "its documents are not as long as the shard in total", where=index_path(path)
        )
    ends_of_text, largest = [], 0
    for start in range(0, len(tokens), VERIFIED_TOKENS):
        block = tokens[start : start + VERIFIED_TOKENS]
        largest = max(largest, int(block.max()))
        ends_of_text.append(np.flatnonzero(block == manifest.eot_id) + start)
    if largest >= manifest.vocab_size:
        raise InputError(
            f"contains the token {largest}, outside the vocabulary of {manifest.vocab_size}",
            where=path,
        )
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    if not np.array_equal(np.concatenate([np.empty(0, np.int64), *ends_of_text]), starts):
        raise InputError(
            "its documents do not begin at the end-of-text tokens of the shard",
            where=index_path(path),
        )
