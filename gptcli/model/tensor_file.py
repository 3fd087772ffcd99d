"""safetensors files, written tensor by tensor: no second copy of a model in memory, and its checksum in the same pass.

The format: the header's length as 8 little-endian bytes, the header as JSON filled up to whole words, the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Protocol

import torch

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64", torch.int32: "I32"}
BLOCK = 1 << 19  # bytes hashed and written at a time: a core's cache holds them, and of larger writes a kernel can make much work


class Writable(Protocol):
    def write(self, data: memoryview, /) -> object: ...


def write_tensors(
    file: Writable, like: Mapping[str, torch.Tensor], tensors: Iterable[torch.Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write `tensors`, one after the other as they come, under the names, with the types and shapes, of `like`, which may be on the meta
    device; returns the SHA-256 of all of it."""
    header, end = {}, 0
    for name, tensor in like.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt", **(metadata or {})}, **header}).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    for data in chain(map(memoryview, (len(text).to_bytes(8, "little"), text)), map(_bytes, tensors)):
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
