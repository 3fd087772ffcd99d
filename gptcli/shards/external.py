"""Token files of other programs: llm.c, modded-nanogpt, Megatron and nanoGPT.

A folder of them has no manifest, so every byte of the files is read to make one
(`gptcli.shards.manifest.manifest_for`). The folder needs the `tokenizer.json` that the tokens were
made with. A file is validation if one of the words of its name is "val", "valid" or "validation",
is ignored if one is "test", and is training otherwise.
"""

from __future__ import annotations

import hashlib
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.errors import InputError
from gptcli.shards.format import index_path, open_shard
from gptcli.tokenizer.tokenizer import Tokenizer, load_tokenizer

NANOGPT_FILES = ("train.bin", "val.bin")  # recognized by name: they have no header
BLOCK_TOKENS = 1 << 24  # read at a time
_MAGICS = (20240520, 20240801)  # of the files that `open_shard` reads
_INDEX_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document borders
# Megatron writes int32, and no token is negative.
_MEGATRON_DTYPES: dict[int, np.dtype[Any]] = {8: np.dtype("<u2"), 4: np.dtype("<u4")}


@dataclass(frozen=True, slots=True)
class ExternalFile:
    """Facts about one token file."""

    file: str
    """Name inside the folder."""
    split: str
    """Split, "train" or "val"."""
    tokens: int
    """Number of tokens."""
    documents: int
    """Number of end-of-text tokens."""
    sha256: str
    """SHA-256 of the file, hex."""


@dataclass(frozen=True, slots=True)
class ExternalFolder:
    """Facts about a folder of token files."""

    tokenizer: Tokenizer
    """Tokenizer in the folder."""
    eot_id: int
    """Token of its <|endoftext|>."""
    files: list[ExternalFile]
    """Token files, train before val, each in the order of their names."""


def read_external_folder(folder: Path) -> ExternalFolder | None:
    """Read all token files of a folder; None if it has no `.bin` to train or validate on.

    Raises InputError if a file is damaged or of another kind, if the tokenizer is missing, or if a
    token is outside its vocabulary.
    """
    paths = {
        path: split for path in sorted(folder.glob("*.bin")) if (split := _split_of(path)) != "test"
    }
    if not paths:
        return None
    if not (folder / "tokenizer.json").exists():
        raise InputError(
            "the tokenizer that the token files were made with is missing",
            where=folder,
            hint=f"copy its tokenizer.json to the folder of {next(iter(paths)).name}; "
            "the data of llm.c and nanoGPT use GPT-2's",
        )
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    if tokenizer.eot_id is None:
        raise InputError("has no <|endoftext|>", where=folder / "tokenizer.json")
    eot_id = tokenizer.eot_id

    def read(path: Path) -> ExternalFile:
        stat = path.stat()
        facts = _read_facts(path, stat.st_size, stat.st_mtime_ns, eot_id)
        tokens, documents, largest, digest = facts
        if largest >= tokenizer.vocab_size:
            raise InputError(
                f"contains the token {largest}, outside the vocabulary of {tokenizer.vocab_size}",
                where=path,
                hint="replace the folder's tokenizer.json by the one that the file was made with",
            )
        return ExternalFile(path.name, paths[path], tokens, documents, digest)

    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        files = sorted(pool.map(read, paths), key=lambda file: file.split)
    return ExternalFolder(tokenizer, eot_id, files)


def _split_of(path: Path) -> str:
    words = set(re.split("[^a-z]+", path.stem.lower()))
    if "test" in words:
        return "test"
    return "val" if words & {"val", "valid", "validation"} else "train"


@lru_cache(maxsize=1 << 16)
def _read_facts(path: Path, size: int, modified: int, eot_id: int) -> tuple[int, int, int, str]:
    """Return the number of tokens and of end-of-texts, the largest token, and the SHA-256.

    `size` and `modified` are keys of the cache: a file is read again only after it has changed.
    """
    tokens = open_tokens(path)
    documents = largest = 0
    for start in range(0, len(tokens), BLOCK_TOKENS):
        block = tokens[start : start + BLOCK_TOKENS]
        documents += int(np.count_nonzero(block == eot_id))
        largest = max(largest, int(block.max()))
    with open(path, "rb") as file:
        return len(tokens), documents, largest, hashlib.file_digest(file, "sha256").hexdigest()


def open_tokens(path: Path) -> np.ndarray:
    """Return the tokens of a file of any of these kinds: read-only memory map, (tokens,).

    The data type is uint16 or uint32. Raises InputError if the file is of no such kind or damaged.
    """
    with open(path, "rb") as file:
        magic = int.from_bytes(file.read(4), "little")
    if magic in _MAGICS:
        return open_shard(path)
    if index_path(path).exists():
        return _open_megatron(path)
    if path.name not in NANOGPT_FILES:
        raise InputError(
            "not a token file: it has neither the header of llm.c nor the .idx of Megatron",
            where=path,
            hint=f"nanoGPT's files are called {' and '.join(NANOGPT_FILES)}",
        )
    if path.stat().st_size % 2:
        raise InputError("its size is odd, but a token of nanoGPT is two bytes", where=path)
    return _map_file(path, np.dtype("<u2"))


def _open_megatron(path: Path) -> np.ndarray:
    """Return the bare tokens of Megatron, which its index has to cover from end to end."""
    index = index_path(path)
    data = index.read_bytes()
    if len(data) < _INDEX_HEADER.size or data[:9] != b"MMIDIDX\0\0":
        raise InputError("not a Megatron index", where=index)
    _, version, code, count, borders = _INDEX_HEADER.unpack_from(data)
    dtype = _MEGATRON_DTYPES.get(code)
    if version != 1 or dtype is None:
        raise InputError(
            f"version {version} with tokens of type {code}: "
            "only version 1 with uint16 (8) or int32 (4) can be read",
            where=index,
        )
    if len(data) != _INDEX_HEADER.size + 12 * count + 8 * borders:
        raise InputError("its length does not match its counts", where=index)
    lengths = np.frombuffer(data, "<i4", count, _INDEX_HEADER.size).astype(np.int64)
    pointers = np.frombuffer(data, "<i8", count, _INDEX_HEADER.size + 4 * count)
    if not np.array_equal(pointers, dtype.itemsize * (np.cumsum(lengths) - lengths)):
        raise InputError("its sequences are not contiguous", where=index)
    size, tokens = path.stat().st_size, int(lengths.sum())
    if size != dtype.itemsize * tokens:
        raise InputError(f"has {size} bytes, but its index counts {tokens} tokens", where=path)
    return _map_file(path, dtype)


def _map_file(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """Return a memory map of a whole file. An empty file cannot be mapped."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
