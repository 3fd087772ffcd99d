"""The weights in a checkpoint folder, whatever layout wrote it.

`index.json` says for each tensor its type and size, and in which files of the folder its pieces
are:

    {"wte.weight": {"dtype": "F32", "size": [V, C], "pieces": [{"file": "model.safetensors",
    "offset": [0, 0], "size": [V, C]}]}}

Names are the plain model's; optimizer state has a slash in its name.
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
# begins the names of the language model in a fine-tuning, which has a classifier too
FINETUNED = "gpt."
# no such name leads out of the folder
FILE = re.compile(rf"(?:{MODEL}|{OPTIMIZER})[0-9a-z-]*\.safetensors")


@dataclass(frozen=True, slots=True)
class Piece:
    file: str
    offset: list[int]
    size: list[int]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    dtype: torch.dtype
    size: list[int]
    pieces: list[Piece]


def read_index(folder: Path) -> dict[str, StoredTensor]:
    """Read what a checkpoint holds, by name. Raises InputError if its index is broken, leads out of
    the folder, or describes tensors that its files are too small for, so that no memory is
    allocated for what a file only claims."""
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
            f"speaks of {claimed:,} bytes of tensors, and {held:,} are here", where=path
        )
    return tensors


class CheckpointStateDict(Mapping[str, torch.Tensor]):
    """The weights of a checkpoint, each tensor assembled in this process when it is asked for; of a
    fine-tuning those of its language model alone."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError if its index is broken, OSError if files are missing."""
        self.folder = folder
        weights = {name: saved for name, saved in read_index(folder).items() if "/" not in name}
        self.prefix = FINETUNED if any(name.startswith(FINETUNED) for name in weights) else ""
        self.tensors = {
            name.removeprefix(self.prefix): saved
            for name, saved in weights.items()
            if name.startswith(self.prefix)
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        """Raises InputError if the files do not hold what the index says, OSError if they are
        gone.
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
                    tensor[where] = stored.get_tensor(self.prefix + name)
        except (SafetensorError, RuntimeError) as error:
            raise InputError(f"{name} is not as {INDEX} says: {error}", where=self.folder) from None
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def _pieces(row: Any) -> list[Piece]:
    """Raises ValueError if a piece is in a file of another kind of name, or reaches beyond its
    tensor.
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
    """Raises ValueError if it is not a list of them."""
    if not isinstance(value, list) or not all(
        type(number) is int and 0 <= number < 1 << 48 for number in value
    ):
        raise ValueError(value)
    return value
