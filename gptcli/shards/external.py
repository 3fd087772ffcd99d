"""Token files that other programs made, as a shard folder: llm.c's and modded-nanogpt's, Megatron's
with their .idx, and nanoGPT's train.bin and val.bin.

Such a folder has no manifest, so one is made of the files, and every byte of them is read and
checked for that. It has to hold the `tokenizer.json` that the tokens were made with. A file whose
name has "val", "valid" or "validation" for one of its words is validation; one with "test" is left
out; the others are training.
"""

from __future__ import annotations

import hashlib
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.errors import InputError
from gptcli.shards.format import index_path, open_shard
from gptcli.shards.manifest import DEFAULT_SOURCE, Manifest, Shard, Source
from gptcli.tokenizer.tokenizer import load_tokenizer

BARE = ("train.bin", "val.bin")  # nanoGPT's names; its files say nothing about themselves
CHUNK = 1 << 24  # tokens looked at together
_MAGICS = (20240520, 20240801)  # of `open_shard`
_INDEX_HEAD = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document borders
# its int32 holds no negative token
_MEGATRON_DTYPES: dict[int, np.dtype[Any]] = {8: np.dtype("<u2"), 4: np.dtype("<u4")}


def describe(folder: Path) -> Manifest | None:
    """The manifest of a folder of other programs' token files; None where it holds no `.bin` to
    train or validate on.

    Raises InputError where a file is damaged or of none of these kinds, where the folder lacks the
    tokenizer, and on a token outside its vocabulary.
    """
    paths = {
        path: split for path in sorted(folder.glob("*.bin")) if (split := _split(path)) != "test"
    }
    if not paths:
        return None
    if not (folder / "tokenizer.json").exists():
        raise InputError(
            "the token files lack the tokenizer that they were made with",
            where=folder,
            hint=f"put its tokenizer.json beside {next(iter(paths)).name}; llm.c's and nanoGPT's own data are of GPT-2's",
        )
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    if tokenizer.eot_id is None:
        raise InputError("has no <|endoftext|>", where=folder / "tokenizer.json")
    eot_id = tokenizer.eot_id

    def shard(path: Path) -> Shard:
        stat = path.stat()
        tokens, documents, largest, digest = _facts(path, stat.st_size, stat.st_mtime_ns, eot_id)
        if largest >= tokenizer.vocab_size:
            raise InputError(
                f"holds the token {largest}, outside the vocabulary of {tokenizer.vocab_size}",
                where=path,
                hint="put the tokenizer.json beside it that it was made with",
            )
        return Shard(
            file=path.name, split=paths[path], tokens=tokens, documents=documents, sha256=digest
        )

    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        shards = sorted(pool.map(shard, paths), key=lambda shard: shard.split)  # train before val
    documents = sum(shard.documents for shard in shards)
    source = Source(
        name=DEFAULT_SOURCE,
        documents_in=documents,
        documents_kept=documents,
        dropped={},
        text_bytes=0,
        tokens=sum(shard.tokens for shard in shards),
    )
    return Manifest(
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        eot_id=eot_id,
        seed=0,
        val_fraction=sum(shard.documents for shard in shards if shard.split == "val")
        / max(1, documents),
        split_rule="by the names of the files",
        shards=shards,
        sources=[source],
    )


def _split(path: Path) -> str:
    words = set(re.split("[^a-z]+", path.stem.lower()))
    return (
        "test" if "test" in words else "val" if words & {"val", "valid", "validation"} else "train"
    )


@lru_cache(maxsize=1 << 16)
def _facts(path: Path, size: int, modified: int, eot_id: int) -> tuple[int, int, int, str]:
    """Tokens, end-of-texts, the largest token and the SHA-256 of a file, which is read once as long
    as it does not change.
    """
    tokens = open_tokens(path)
    documents = largest = 0
    for start in range(0, len(tokens), CHUNK):
        part = tokens[start : start + CHUNK]
        documents += int(np.count_nonzero(part == eot_id))
        largest = max(largest, int(part.max()))
    with open(path, "rb") as file:
        return len(tokens), documents, largest, hashlib.file_digest(file, "sha256").hexdigest()


def open_tokens(path: Path) -> np.ndarray:
    """The tokens of a file of any of these kinds, a read-only memory map: (tokens,) uint16 or
    uint32. Raises InputError.
    """
    with open(path, "rb") as file:
        magic = int.from_bytes(file.read(4), "little")
    if magic in _MAGICS:
        return open_shard(path)
    if index_path(path).exists():
        return _open_megatron(path)
    if path.name not in BARE:
        raise InputError(
            "not a token file: it does not begin as llm.c's do, and has no .idx as Megatron's have",
            where=path,
            hint=f"nanoGPT's are called {' and '.join(BARE)}",
        )
    if path.stat().st_size % 2:
        raise InputError("its size is odd, and a token of nanoGPT's is two bytes", where=path)
    return _mapped(path, np.dtype("<u2"))


def _open_megatron(path: Path) -> np.ndarray:
    """Megatron's bare tokens, which its index has to cover from end to end."""
    index = index_path(path)
    data = index.read_bytes()
    if len(data) < _INDEX_HEAD.size or data[:9] != b"MMIDIDX\0\0":
        raise InputError("not a Megatron index", where=index)
    _, version, code, count, borders = _INDEX_HEAD.unpack_from(data)
    dtype = _MEGATRON_DTYPES.get(code)
    if version != 1 or dtype is None:
        raise InputError(
            f"version {version} with tokens of kind {code}: only version 1 with uint16 (8) or int32 (4) is read",
            where=index,
        )
    if len(data) != _INDEX_HEAD.size + 12 * count + 8 * borders:
        raise InputError("is not as long as its counts say", where=index)
    lengths = np.frombuffer(data, "<i4", count, _INDEX_HEAD.size).astype(np.int64)
    pointers = np.frombuffer(data, "<i8", count, _INDEX_HEAD.size + 4 * count)
    if not np.array_equal(pointers, dtype.itemsize * (np.cumsum(lengths) - lengths)):
        raise InputError("its sequences do not lie end to end", where=index)
    if path.stat().st_size != dtype.itemsize * int(lengths.sum()):
        raise InputError(
            f"is {path.stat().st_size} bytes long where its index counts {int(lengths.sum())} tokens",
            where=path,
        )
    return _mapped(path, dtype)


def _mapped(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """All of a file; an empty one cannot be mapped."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
