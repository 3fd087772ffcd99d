"""Weights in a checkpoint folder, independent of the layout that wrote it.

`index.json` lists the type, size and pieces of each tensor, and the file of each piece:

    {"wte.weight": {"dtype": "F32", "size": [V, C], "pieces": [{"file": "model.safetensors",
    "offset": [0, 0], "size": [V, C]}]}}

Names are those of the plain model. Names of optimizer state contain a slash.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from gptcli.errors import InputError
from gptcli.files import read_json
from gptcli.model.source import INDEX, MODEL
from gptcli.model.tensor_file import DTYPES, open_tensors

OPTIMIZER = "optimizer"
AVERAGE = "/ema"
"""Ending of the name of a weight's moving average, which is the weight of the trained model."""
FINETUNED = "gpt."
"""Prefix of the language model's names in a fine-tuning, which also has a classifier."""
FILE = re.compile(rf"(?:{MODEL}|{OPTIMIZER})[0-9a-z-]*\.safetensors")
"""Pattern of file names, which excludes paths outside the folder."""


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
        """Return a tensor, assembled from its pieces.

        Raises InputError if the files do not match the index, OSError if they are missing.
        """
        saved = self.tensors[name]
        tensor = torch.empty(saved.size, dtype=saved.dtype)
        try:
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
