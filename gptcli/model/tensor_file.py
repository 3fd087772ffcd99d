"""safetensors files, one or several: written one tensor at a time, and read as one set of weights.

Format: the length of the header as 8 little-endian bytes, the header as JSON, padded to a multiple
of 8 bytes, and the data of the tensors. `write_tensors` computes the checksum in the same pass.

Weights are in model.safetensors, in the files that its index names, or in a checkpoint folder,
independent of the layout that wrote it: `index.json` lists the type, size and pieces of each
tensor, and the file of each piece.

    {"wte.weight": {"dtype": "F32", "size": [V, C], "pieces": [{"file": "model.safetensors",
    "offset": [0, 0], "size": [V, C]}]}}

Names in a checkpoint are those of the plain model; names of optimizer state contain a slash. Only
files inside the folder are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from gptcli.errors import InputError
from gptcli.files import read_json
from gptcli.model.hub import PICKLED_WEIGHTS
from gptcli.model.source import (
    INDEX,
    MODEL,
    RUN_TOML,
    WEIGHTS,
    WEIGHTS_INDEX,
    no_weights_error,
    step_folders,
)

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
OPTIMIZER = "optimizer"
AVERAGE = "/ema"
"""Ending of the name of a weight's moving average, which is the weight of the trained model."""
FINETUNED = "gpt."
"""Prefix of the language model's names in a fine-tuning, which also has a classifier."""
FILE = re.compile(rf"(?:{MODEL}|{OPTIMIZER})[0-9a-z-]*\.safetensors")
"""Pattern of file names, which excludes paths outside the folder."""


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
    size, again = path.stat().st_size, _how_to_replace(path)
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


def _how_to_replace(path: Path) -> str:
    """Return a hint for a damaged file: that of a run with checkpoints can be written again."""
    run = path.parent
    if path.name == WEIGHTS and (run / RUN_TOML).is_file() and (steps := step_folders(run)):
        return (
            f"gpt train --resume --out {shlex.quote(str(run))} writes it again, and {{option:checkpoint}} "
            f"{max(steps)} reads the run's newest checkpoint instead"
        )
    return "download or copy it again"


def damage_of(path: Path) -> InputError | None:
    """Return the error for a safetensors file that cannot be opened, None for one that can."""
    try:
        with open_tensors(path):
            return None
    except SafetensorError as error:
        return unreadable_error(path, error)


def read_folder_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of model.safetensors, of the files that its index names, or of
    pytorch_model.bin.

    Raises InputError if there are none, one is damaged, or two files have a tensor of one name.
    """
    index = folder / WEIGHTS_INDEX
    files = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        if not index.is_file():
            if (folder / PICKLED_WEIGHTS).is_file():
                return _pickled_tensors(folder / PICKLED_WEIGHTS)
            raise no_weights_error(folder)
        files = _indexed_files(index)
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        found = read_file_tensors(folder, file)
        if twice := sorted(found.keys() & tensors.keys()):
            raise InputError(
                f"tensor {twice[0]} is also in another file of the index",
                where=folder / file,
                hint="download or copy them again",
            )
        tensors |= found
    return tensors


def _pickled_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of transformers' older files. Raises InputError if there is more in it."""
    from gptcli.model.external import read_pickle

    stored = read_pickle(path)
    if not isinstance(stored, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in stored.items()
    ):
        raise InputError("does not consist of named tensors", where=path)
    return dict(stored)


def _indexed_files(index: Path) -> list[str]:
    """Return the files that an index of weights names.

    Raises InputError if they are not files of its folder.
    """
    table = read_json(index)
    named = table.get("weight_map") if isinstance(table, dict) else None
    files = (
        set(named.values())
        if isinstance(named, dict) and all(isinstance(file, str) for file in named.values())
        else set()
    )
    if not files or any(Path(file).name != file for file in files):
        raise InputError("the index does not name files of this folder", where=index)
    return sorted(files)


def read_file_tensors(folder: Path, file: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, each memory-mapped separately.

    Each mapping can be released on its own, so that a conversion has one tensor in memory at a
    time. Raises InputError if the file is missing or damaged.
    """
    try:
        with open_tensors(folder / file) as whole:
            names = list(whole.keys())
        tensors = {}
        for name in names:
            with open_tensors(folder / file) as alone:
                tensors[name] = alone.get_tensor(name)
        return tensors
    except FileNotFoundError:
        raise InputError(
            f"{file}, which the index names, is missing",
            where=folder,
            hint="download or copy it again",
        ) from None
    except (SafetensorError, ValueError) as error:
        raise unreadable_error(folder / file, error) from None


@dataclass(frozen=True, slots=True)
class Piece:
    """Slice of a tensor that is stored in one file."""

    file: str
    """Name of the file in the checkpoint folder."""
    offset: list[int]
    """Index of the first element along each dimension."""
    size: list[int]
    """Elements along each dimension."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Tensor of a checkpoint, as its index describes it."""

    dtype: torch.dtype
    """Type of the elements."""
    size: list[int]
    """Shape of the whole tensor."""
    pieces: list[Piece]
    """Pieces that make up the tensor."""


def read_index(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint by name, from its index.

    Raises InputError if the index is broken, names files outside the folder, or describes tensors
    larger than the files, so that no memory is allocated for data that does not exist.
    """
    dtypes = {name: dtype for dtype, name in DTYPES.items()}
    path = folder / INDEX
    table = read_json(path)
    try:
        tensors = {
            name: StoredTensor(dtypes[row["dtype"]], _whole_numbers(row["size"]), _pieces(row))
            for name, row in table.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError("not the index of a checkpoint", where=path) from None
    claimed = sum(saved.dtype.itemsize * math.prod(saved.size) for saved in tensors.values())
    files = {piece.file for saved in tensors.values() for piece in saved.pieces}
    held = sum((folder / file).stat().st_size for file in files)
    if claimed > held:
        raise InputError(
            f"the index describes {claimed:,} bytes of tensors, and the files have {held:,}",
            where=path,
        )
    return tensors


class CheckpointStateDict(Mapping[str, torch.Tensor]):
    """Weights of a checkpoint by name, each loaded and assembled on access.

    They are the moving averages of the weights if the run keeps them. For the checkpoint of a
    fine-tuning, the weights of the language model only.
    """

    def __init__(self, folder: Path) -> None:
        """Read the index. Raises InputError if it is broken, OSError if files are missing."""
        self.folder = folder
        index = read_index(folder)
        weights = {name: saved for name, saved in index.items() if "/" not in name}
        self.stored = {
            name: averaged if (averaged := f"{name}{AVERAGE}") in index else name
            for name in weights
        }
        weights = {name: index[stored] for name, stored in self.stored.items()}
        self.prefix = FINETUNED if any(name.startswith(FINETUNED) for name in weights) else ""
        self.tensors = {
            name.removeprefix(self.prefix): saved
            for name, saved in weights.items()
            if name.startswith(self.prefix)
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a tensor, assembled from its pieces; one of a single piece is mapped from its file,
        and takes no memory besides the pages that are read.

        Raises InputError if the files do not match the index, OSError if they are missing.
        """
        saved = self.tensors[name]
        try:
            if [piece.size for piece in saved.pieces] == [saved.size]:
                with open_tensors(self.folder / saved.pieces[0].file) as stored:
                    whole: torch.Tensor = stored.get_tensor(self.stored[self.prefix + name])
                if list(whole.shape) == saved.size and whole.dtype == saved.dtype:
                    return whole
            tensor = torch.empty(saved.size, dtype=saved.dtype)
            for piece in saved.pieces:
                where = tuple(
                    slice(at, at + length)
                    for at, length in zip(piece.offset, piece.size, strict=True)
                )
                with open_tensors(self.folder / piece.file) as stored:
                    tensor[where] = stored.get_tensor(self.stored[self.prefix + name])
        except (SafetensorError, RuntimeError) as error:
            raise InputError(f"{name} does not match {INDEX}: {error}", where=self.folder) from None
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def _pieces(row: Any) -> list[Piece]:
    """Return the pieces of a tensor.

    Raises ValueError if a file name is not allowed, or a piece exceeds its tensor.
    """
    size, pieces = row["size"], []
    for part in row["pieces"]:
        piece = Piece(part["file"], _whole_numbers(part["offset"]), _whole_numbers(part["size"]))
        beyond = any(
            at + some > most for at, some, most in zip(piece.offset, piece.size, size, strict=True)
        )
        if not FILE.fullmatch(piece.file) or beyond:
            raise ValueError(piece.file)
        pieces.append(piece)
    return pieces


def _whole_numbers(value: Any) -> list[int]:
    """Return `value`, a list of integers. Raises ValueError if it is anything else."""
    if not isinstance(value, list) or not all(
        type(number) is int and 0 <= number < 1 << 48 for number in value
    ):
        raise ValueError(value)
    return value


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
