"""Token files: the byte layout of a shard, and the files of other programs.

A shard has tokens as llm.c reads them (`.bin`) and document borders as Megatron reads them
(`.idx`).

`.bin`: 256 little-endian int32 (magic, version, token count, zeros), then the tokens, and nothing
else. Vocabularies of up to 65,535 entries are uint16 with magic 20240520 and version 1 (llm.c's
GPT-2 data), larger ones uint32 with magic 20240801 and version 7 (its Llama 3 data).

`.idx`: each document is one sequence. `MMIDIDX\\0\\0`, u64 version 1, u8 dtype code, u64 sequences,
u64 sequences + 1, then int32 lengths in tokens, int64 byte pointers into the `.bin` (the first is
1024, past the header) and int64 document borders (0, 1, ..., sequences).

The files of llm.c, modded-nanogpt, Megatron and nanoGPT can be read as well. A folder of them has
no manifest, so every byte of the files is read to make one (`gptcli.shards.manifest.manifest_for`).
The folder needs the `tokenizer.json` that the tokens were made with. A file is validation if one of
the words of its name is "val", "valid" or "validation", is left out if one is "test" and none is
"train", and is training otherwise.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from gptcli.errors import InputError
from gptcli.files import atomic_write
from gptcli.numbers import counted
from gptcli.tokenizer.load import load_tokenizer
from gptcli.tokenizer.tokenizer import Tokenizer

HEADER_BYTES = 1024
MAX_TOKENS = 2**31 - 1  # the header has an int32 for the count
TokenDtype: TypeAlias = "np.dtype[np.uint16] | np.dtype[np.uint32]"
# Data type of the tokens: (magic, version, Megatron's dtype code).
_LAYOUTS: dict[TokenDtype, tuple[int, int, int]] = {
    np.dtype("<u2"): (20240520, 1, 8),
    np.dtype("<u4"): (20240801, 7, 4),
}
_INDEX_MAGIC = b"MMIDIDX\0\0"
_INDEX_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document borders
# Megatron writes int32, and no token is negative.
_MEGATRON_DTYPES: dict[int, np.dtype[Any]] = {8: np.dtype("<u2"), 4: np.dtype("<u4")}
NANOGPT_FILES = ("train.bin", "val.bin")  # recognized by name: they have no header
BLOCK_TOKENS = 1 << 24  # of another program's file, read at a time


def token_dtype(vocab_size: int) -> TokenDtype:
    """Return the data type of a token on disk: uint16 for up to 65,535 entries, else uint32."""
    return np.dtype("<u2") if vocab_size <= 65535 else np.dtype("<u4")


def write_shard(
    path: Path, lengths: np.ndarray, pieces: Iterable[np.ndarray], dtype: TokenDtype
) -> str:
    """Write `path` (`.bin`) and its `.idx`, each atomically; return the hex SHA-256 of the `.bin`.

    `lengths` (documents,) are the tokens of each document, including its leading end-of-text.
    `pieces` are the tokens in order, divided anywhere, so that a shard need not fit into memory.
    Raises ValueError if the two disagree or if the shard is too large.
    """
    count = int(lengths.sum())
    if count > MAX_TOKENS:
        raise ValueError(f"a shard has at most {MAX_TOKENS} tokens, not {count}")
    magic, version, _ = _LAYOUTS[dtype]
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = magic, version, count
    digest = hashlib.sha256(header.tobytes())
    written = 0
    with atomic_write(path) as file:
        file.write(header.tobytes())
        for piece in pieces:
            data = np.ascontiguousarray(piece, dtype).data
            digest.update(data)
            file.write(data)
            written += len(piece)
        if written != count:
            raise ValueError(
                f"{path}: {counted(written, 'token')} in the pieces, {count} in the lengths"
            )
    pointers = HEADER_BYTES + dtype.itemsize * (np.cumsum(lengths, dtype=np.int64) - lengths)
    with atomic_write(index_path(path)) as file:
        file.write(index_header(dtype, len(lengths)))
        file.write(lengths.astype("<i4").tobytes())
        file.write(pointers.astype("<i8").tobytes())
        file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
    return digest.hexdigest()


def index_header(dtype: TokenDtype, documents: int) -> bytes:
    """Return the header of an `.idx`; lengths, pointers and borders of its documents follow it."""
    return _INDEX_HEADER.pack(_INDEX_MAGIC, 1, _LAYOUTS[dtype][2], documents, documents + 1)


def index_path(path: Path) -> Path:
    """Return the path of the `.idx` of a `.bin`."""
    return path.with_suffix(".idx")


def open_shard(path: Path) -> np.ndarray:
    """Return the tokens of a shard as a read-only memory map, (tokens,) uint16 or uint32.

    Raises InputError if the file is missing, incomplete or not a shard.
    """
    path = Path(path)
    try:
        file_size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
    except FileNotFoundError:
        raise InputError("no such shard", where=path, hint="build the shards again") from None
    if len(head) < HEADER_BYTES:
        raise InputError(
            f"truncated: {len(head)} bytes are less than a shard's header of {HEADER_BYTES}",
            where=path,
        )
    magic, version, count = struct.unpack_from("<3i", head)
    dtype = next((dtype for dtype, layout in _LAYOUTS.items() if layout[0] == magic), None)
    if dtype is None:
        raise InputError(
            f"not a shard: it begins with {magic}, not 20240520 or 20240801", where=path
        )
    if version != _LAYOUTS[dtype][1]:
        raise InputError(
            f"shard version {version} is not {_LAYOUTS[dtype][1]}, the one that can be read",
            where=path,
        )
    if count < 0:
        raise InputError(f"the header counts {counted(count, 'token')}", where=path)
    extra = file_size - HEADER_BYTES - count * dtype.itemsize
    if extra:
        size = f"{abs(extra)} byte{'s' * (abs(extra) != 1)}"
        what = f"truncated by {size}" if extra < 0 else f"{size} too long"
        raise InputError(
            f"{what} (the header counts {counted(count, 'token')})",
            where=path,
            hint="build the shards again",
        )
    if count == 0:
        return np.empty(0, dtype)  # an empty region cannot be mapped
    return np.memmap(path, dtype, "r", HEADER_BYTES, (count,))


def document_lengths(path: Path) -> np.ndarray:
    """Return the number of tokens of each document of a shard, (documents,) int32.

    `path` is the `.bin`; the lengths are read from its `.idx` and include the leading end-of-text.
    Raises InputError if the index is missing or incomplete.
    """
    path = index_path(Path(path))
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            "the shard's index is missing, which has the borders of its documents",
            where=path,
            hint="build the shards again: gpt build-shards writes it",
        ) from None
    count = _INDEX_HEADER.unpack_from(data)[3] if len(data) >= _INDEX_HEADER.size else 0
    if data[:9] != _INDEX_MAGIC or len(data) != _INDEX_HEADER.size + 20 * count + 8:
        raise InputError(
            "the shard index is incomplete or damaged", where=path, hint="build the shards again"
        )
    return np.frombuffer(data, "<i4", count, _INDEX_HEADER.size)


@dataclass(frozen=True, slots=True)
class ExternalFile:
    """Facts about one token file."""

    file: str
    """Name inside the folder."""
    split: Literal["train", "val"]
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


def read_external_folder(folder: Path, *, quick: bool = False) -> ExternalFolder | None:
    """Read all token files of a folder; None if it has no `.bin` to train or validate on.

    If `quick`, tokens are counted by the sizes of the files, and neither documents nor checksums.
    Raises InputError if a file is damaged or of another kind, if the tokenizer is missing, or if a
    token is outside its vocabulary.
    """
    found = sorted(folder.glob("*.bin"))
    paths = {path: split for path in found if (split := _split_of(path)) is not None}
    if not found:
        return None
    if not paths:
        names = ", ".join(path.name for path in found[:4])
        raise InputError(
            f'all its token files are left out, because "test" is in their names: {names}',
            where=folder,
            hint="name those to train on train_*.bin, and those to validate on val_*.bin",
        )
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
        if quick:
            return ExternalFile(path.name, paths[path], len(open_tokens(path)), 0, "")
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


def _split_of(path: Path) -> Literal["train", "val"] | None:
    """Return the split that a file's name tells; None for test data."""
    words = set(re.split("[^a-z]+", path.stem.lower()))
    if words & {"val", "valid", "validation"}:
        return "val"
    return None if "test" in words and "train" not in words else "train"


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
    if magic in {layout[0] for layout in _LAYOUTS.values()}:
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
        raise InputError(
            f"has {size} bytes, but its index counts {counted(tokens, 'token')}", where=path
        )
    return _map_file(path, dtype)


def _map_file(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """Return a memory map of a whole file. An empty file cannot be mapped."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
