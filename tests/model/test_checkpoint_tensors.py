"""Weights of a checkpoint are assembled from pieces, and broken indexes are rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gptcli.errors import InputError
from gptcli.model.checkpoint_tensors import CheckpointStateDict, Piece, read_index

WEIGHT = torch.arange(24, dtype=torch.float32).view(6, 4)
BIAS = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)


def piece(file: str, offset: list[int], size: list[int]) -> dict[str, Any]:
    return {"file": f"{file}.safetensors", "offset": offset, "size": size}


def index() -> dict[str, Any]:
    """Return the index of a checkpoint of two processes, uneven in rows, and a quarter of columns."""
    return {
        "weight": {
            "dtype": "F32",
            "size": [6, 4],
            "pieces": [
                piece("model", [0, 0], [4, 4]),
                piece("model-1", [4, 0], [2, 1]),
                piece("model-2", [4, 1], [2, 3]),
            ],
        },
        "bias": {"dtype": "BF16", "size": [2], "pieces": [piece("model", [0], [2])]},
        "weight/exp_avg": {
            "dtype": "F32",
            "size": [6, 4],
            "pieces": [piece("optimizer", [0, 0], [6, 4])],
        },
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"weight": WEIGHT[:4].clone(), "bias": BIAS}, tmp_path / "model.safetensors")
    save_file({"weight": WEIGHT[4:, :1].clone()}, tmp_path / "model-1.safetensors")
    save_file({"weight": WEIGHT[4:, 1:].clone()}, tmp_path / "model-2.safetensors")
    save_file({"weight/exp_avg": -WEIGHT}, tmp_path / "optimizer.safetensors")
    (tmp_path / "index.json").write_text(json.dumps(index()))
    return tmp_path


def test_tensors_are_assembled_from_their_pieces(folder: Path) -> None:
    state = CheckpointStateDict(folder)
    assert list(state) == ["weight", "bias"]
    assert len(state) == 2
    assert torch.equal(state["weight"], WEIGHT)
    assert torch.equal(state["bias"], BIAS)
    assert state["bias"].dtype == torch.bfloat16


def test_index_describes_the_optimizer_too(folder: Path) -> None:
    tensors = read_index(folder)
    assert tensors["weight/exp_avg"].pieces == [Piece("optimizer.safetensors", [0, 0], [6, 4])]
    assert (tensors["bias"].dtype, tensors["weight"].size) == (torch.bfloat16, [6, 4])


def test_fine_tuned_checkpoint_gives_its_language_model(tmp_path: Path) -> None:
    tensors = {"gpt.weight": WEIGHT, "classifier.weight": WEIGHT + 1}
    save_file(tensors, tmp_path / "model.safetensors")
    rows = {
        name: {"dtype": "F32", "size": [6, 4], "pieces": [piece("model", [0, 0], [6, 4])]}
        for name in tensors
    }
    (tmp_path / "index.json").write_text(json.dumps(rows))
    state = CheckpointStateDict(tmp_path)
    assert list(state) == ["weight"]
    assert torch.equal(state["weight"], WEIGHT)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("dtype",), "F8"),
        (("size",), "6"),
        (("size",), [6.0, 4]),
        (("size",), [True, 4]),
        (("size",), [-6, -4]),
        (("pieces",), 3),
        (("pieces", 0, "offset"), [3, 0]),  # beyond the tensor
        (("pieces", 0, "offset"), [0]),
        (("pieces", 0, "file"), "../model.safetensors"),
        (("pieces", 0, "file"), "/model.safetensors"),
        (("pieces", 0, "file"), "model.bin"),
    ],
)
def test_malformed_index_is_rejected(folder: Path, path: tuple[Any, ...], value: object) -> None:
    table = index()
    row: Any = table["weight"]
    for key in path[:-1]:
        row = row[key]
    row[path[-1]] = value
    (folder / "index.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match="not the index of a checkpoint"):
        CheckpointStateDict(folder)


def test_index_that_claims_more_bytes_than_its_files_have_is_rejected(folder: Path) -> None:
    table = index()
    table["weight"]["size"] = [1 << 40, 4]
    (folder / "index.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match="17,592,186,044,516 bytes of tensors, and the files have"):
        read_index(folder)


def test_file_that_does_not_match_the_index_is_rejected(folder: Path) -> None:
    save_file({"weight": WEIGHT[4:].clone()}, folder / "model-1.safetensors")
    with pytest.raises(InputError, match=r"weight does not match index\.json"):
        CheckpointStateDict(folder)["weight"]
    save_file({"other": WEIGHT}, folder / "model-1.safetensors")
    with pytest.raises(InputError, match=r"weight does not match index\.json"):
        CheckpointStateDict(folder)["weight"]
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        read_index(folder)
