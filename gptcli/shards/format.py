"""Byte layout of a shard: tokens as llm.c reads them (`.bin`), and document borders as Megatron
reads them (`.idx`).

`.bin`: 256 little-endian int32 (magic, version, token count, zeros), then the tokens, and nothing
else. Vocabularies of up to 65,535 entries are uint16 with magic 20240520 and version 1 (llm.c's
GPT-2 data), larger ones uint32 with magic 20240801 and version 7 (its Llama 3 data).

`.idx`: each document is one sequence. `MMIDIDX\\0\\0`, u64 version 1, u8 dtype code, u64 sequences,
u64 sequences + 1, then int32 lengths in tokens, int64 byte pointers into the `.bin` (the first is
1024, past the header) and int64 document borders (0, 1, ..., sequences).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np

from gptcli.errors import InputError
from gptcli.files import atomic_write

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
            raise ValueError(f"{path}: {written} tokens in the pieces, {count} in the lengths")
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
        raise InputError(f"the header counts {count} tokens", where=path)
    extra = file_size - HEADER_BYTES - count * dtype.itemsize
    if extra:
        size = f"{abs(extra)} byte{'s' * (abs(extra) != 1)}"
        what = f"truncated by {size}" if extra < 0 else f"{size} too long"
        raise InputError(
            f"{what} (the header counts {count} tokens)", where=path, hint="build the shards again"
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
