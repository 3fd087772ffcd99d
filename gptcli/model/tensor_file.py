"""safetensors files, written tensor by tensor: no second copy of a model in memory, and its
checksum in the same pass.

The format: the header's length as 8 little-endian bytes, the header as JSON filled up to whole
words, the tensors' bytes.
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
MAX_HEADER = 100_000_000  # bytes, as safetensors itself limits it
# bytes hashed and written at a time: a core's cache holds them, and of larger writes a kernel can
# make much work
BLOCK = 1 << 19


class Writable(Protocol):
    def write(self, data: memoryview, /) -> object: ...


def write_tensors(
    file: Writable,
    like: Mapping[str, torch.Tensor],
    tensors: Iterable[torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write `tensors`, one after the other as they come, under the names, with the types and
    shapes, of `like`, which may be on the meta device; returns the SHA-256 of all of it."""
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
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[safe_open]:
    """A safetensors file, to read its tensors one by one. Raises SafetensorError if it is broken,
    FileNotFoundError if it is missing.
    """
    with contextlib.ExitStack() as stack:
        name = str(path)
        # safetensors takes names in UTF-8 alone
        if os.fsencode(name) != name.encode("utf-8", "replace"):
            name = f"/proc/self/fd/{stack.enter_context(open(path, 'rb')).fileno()}"
        yield stack.enter_context(safe_open(name, "pt"))


def unreadable_error(path: Path, reason: object) -> InputError:
    """The error for a file that safetensors refuses for `reason`: cut short, another kind of file,
    or damaged.
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
                "is a web page, not weights: the download went wrong", where=path, hint=again
            )
        if head.startswith((b"PK\x03\x04", b"\x80\x02")):
            return InputError(
                "is a pickle by another name, which is never read",
                where=path,
                hint="convert it to safetensors",
            )
        if size < 8:
            return InputError(
                f"the file is cut short: it holds {size} bytes, not even a header",
                where=path,
                hint=again,
            )
        if length > MAX_HEADER:
            return InputError(
                "not a safetensors file",
                where=path,
                hint="gpt reads weights in safetensors files alone",
            )
        file.seek(8)
        text = file.read(length)
    if len(text) < length:
        return InputError(
            f"the file is cut short: {size:,} bytes, and its header alone is {8 + length:,}",
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
            "not a readable safetensors file: its header is damaged", where=path, hint=again
        )
    if size < whole:
        return InputError(
            f"the file is cut short: {size:,} bytes, and its header says {whole:,}",
            where=path,
            hint=again,
        )
    return InputError(f"not a readable safetensors file: {reason}", where=path, hint=again)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
