"""Verification of a shard folder against its manifest, byte for byte and document for document."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gptcli.errors import InputError
from gptcli.events import SILENT, Events
from gptcli.files import sha256
from gptcli.shards.format import document_lengths, index_path, open_shard, token_dtype
from gptcli.shards.manifest import MANIFEST, Manifest, Shard, read_manifest
from gptcli.tokenizer.tokenizer import load_tokenizer

BLOCK_TOKENS = 1 << 24  # checked at a time


def verify_shards(folder: Path, *, events: Events = SILENT) -> Manifest:
    """Check every shard of `folder` and return the manifest.

    The SHA-256 of each shard has to be the manifest's, its header and index have to agree with it,
    each document has to begin with an end-of-text and contain no other, and no token may be outside
    the vocabulary. Raises InputError that names the first file with a fault, and the fault.
    """
    if not (folder / MANIFEST).exists():
        raise InputError(
            f"not a shard folder: it has no {MANIFEST} to verify shards against", where=folder
        )
    manifest = read_manifest(folder)
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
                f"{source.name}: its shards do not have {source.tokens} tokens in total",
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
            f"has {len(tokens)} tokens in {len(lengths)} documents, "
            f"not {shard.tokens} in {shard.documents}",
            where=path,
        )
    if sha256(path) != shard.sha256:
        raise InputError(
            "altered: its SHA-256 is not the manifest's",
            where=path,
            hint="copy the shard again, or build the shards again",
        )
    if int(lengths.sum(dtype=np.int64)) != len(tokens):
        raise InputError(
            "its documents are not as long as the shard in total", where=index_path(path)
        )
    ends_of_text, largest = [], 0
    for start in range(0, len(tokens), BLOCK_TOKENS):
        block = tokens[start : start + BLOCK_TOKENS]
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
