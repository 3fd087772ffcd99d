"""safetensors files, written one tensor at a time, with their checksum in the same pass.

Format: the length of the header as 8 little-endian bytes, the header as JSON, padded to a multiple
of 8 bytes, and the data of the tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open

from gptcli.errors import InputError

DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
}
MAX_HEADER_BYTES = 100_000_000
"""Largest header that safetensors accepts."""
BLOCK_BYTES = 1 << 19
"""Bytes hashed and written at a time: they fit into a core's cache, and larger writes are slower on
some kernels."""


class Writable(Protocol):
    """File that bytes can be written to."""

    def write(self, data: memoryview, /) -> object:
        """Write all of `data`."""


def write_tensors(
    file: Writable,
    like: Mapping[str, torch.Tensor],
    tensors: Iterable[torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write `tensors` one by one and return the SHA-256 of the file.

    `like` contains the name, type and shape of each tensor in the same order; its tensors may be on
    the meta device.
    """
    header, end = {}, 0
    for name, tensor in like.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps({"__metadata__": {"format": "pt", **(metadata or {})}, **header}).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    for data in chain(
        map(memoryview, (len(text).to_bytes(8, "little"), text)), map(_bytes, tensors)
    ):
        for start in range(0, len(data), BLOCK_BYTES):
            block = data[start : start + BLOCK_BYTES]
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[safe_open]:
    """Open a safetensors file to read its tensors one by one.

    Raises SafetensorError if it is broken, FileNotFoundError if it is missing.
    """
    with contextlib.ExitStack() as stack:
        name = str(path)
        # safetensors only opens names in UTF-8
        if os.fsencode(name) != name.encode("utf-8", "replace"):
            name = f"/proc/self/fd/{stack.enter_context(open(path, 'rb')).fileno()}"
        yield stack.enter_context(safe_open(name, "pt"))


def unreadable_error(path: Path, reason: object) -> InputError:
    """Return the error for a file that safetensors rejects with `reason`.

    It tells truncated files, other kinds of files and damaged ones apart.
    """
    size, again = path.stat().st_size, "download or copy it again"
    with open(path, "rb") as file:
        head = file.read(64)
        length = int.from_bytes(head[:8], "little")
        if head.startswith(b"version https://git-lfs"):
            return InputError(
                "is a Git LFS pointer, not the weights themselves",
                where=path,
                hint="git lfs pull fetches them",
            )
        if head.lstrip().startswith(b"<"):
            return InputError(
                "is a web page, not weights; the download failed", where=path, hint=again
            )
        if head.startswith((b"PK\x03\x04", b"\x80\x02")):
            return InputError(
                "is a pickle with another extension; pickles are never loaded",
                where=path,
                hint="convert it to safetensors",
            )
        if size < 8:
            return InputError(
                f"the file is cut short: it has {size} bytes, less than a header",
                where=path,
                hint=again,
            )
        if length > MAX_HEADER_BYTES:
            return InputError(
                "not a safetensors file",
                where=path,
                hint="convert the weights to safetensors, the only supported format",
            )
        file.seek(8)
        text = file.read(length)
    if len(text) < length:
        return InputError(
            f"the file is cut short: it has {size:,} bytes, and its header alone {8 + length:,}",
            where=path,
            hint=again,
        )
    try:
        ends = [
            row["data_offsets"][1]
            for name, row in json.loads(text).items()
            if name != "__metadata__"
        ]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return InputError(
            "not a readable safetensors file: the header is damaged", where=path, hint=again
        )
    if size < whole:
        return InputError(
            f"the file is cut short: it has {size:,} bytes, and its header declares {whole:,}",
            where=path,
            hint=again,
        )
    return InputError(f"not a readable safetensors file: {reason}", where=path, hint=again)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
