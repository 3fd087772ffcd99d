"""safetensors files are written as the library writes them, and broken ones are told apart."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from gptcli.errors import InputError
from gptcli.model.tensor_file import (
    BLOCK_BYTES,
    DTYPES,
    CheckpointStateDict,
    Piece,
    open_tensors,
    read_index,
    unreadable_error,
    write_tensors,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_safetensors_reads_what_is_written(dtype: torch.dtype) -> None:
    tensors = {
        "matrix": torch.arange(12).view(3, 4).to(dtype).T,  # not contiguous
        "empty": torch.empty(0, 5, dtype=dtype),
        "scalar": torch.tensor(3, dtype=dtype),
        "blocks": torch.arange(BLOCK_BYTES // 2 + 7).to(dtype),
    }
    file = io.BytesIO()
    like = {name: tensor.to("meta") for name, tensor in tensors.items()}
    digest = write_tensors(file, like, tensors.values())
    found = load(file.getvalue())
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor), name
    assert digest == hashlib.sha256(file.getvalue()).hexdigest()


@pytest.mark.parametrize("length", range(9))
def test_data_begins_at_a_multiple_of_8_bytes(length: int) -> None:
    file = io.BytesIO()
    tensors = {"w" * (length + 1): torch.ones(1)}
    write_tensors(file, tensors, tensors.values(), {"step": "7"})
    header_bytes = int.from_bytes(file.getvalue()[:8], "little")
    assert header_bytes % 8 == 0
    assert len(file.getvalue()) == 8 + header_bytes + 4


@pytest.mark.parametrize("name", [b"w.safetensors", "grüße".encode(), b"not-utf-8-\xff"])
def test_file_of_any_name_is_opened(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    with open(path, "wb") as file:
        write_tensors(file, {"w": torch.ones(2)}, [torch.ones(2)], {"step": "7"})
    with open_tensors(path) as stored:
        assert stored.metadata() == {"format": "pt", "step": "7"}
        assert torch.equal(stored.get_tensor("w"), torch.ones(2))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "cut short: it has 0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"PK\x03\x04 0123456789", "a pickle with another extension"),
        (b"\xff" * 80, "not a safetensors file"),
        (
            (1000).to_bytes(8, "little") + b"{" * 10,
            "cut short: it has 18 bytes, and its header alone 1,008",
        ),
        ((2).to_bytes(8, "little") + b"[]", "the header is damaged"),
    ],
)
def test_files_that_are_not_safetensors_are_reported(
    tmp_path: Path, data: bytes, what: str
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    assert what in unreadable_error(path, "?").what


def test_truncated_weights_are_reported_with_their_length(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(100), "b": torch.zeros(7, 3)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for size in range(8, len(whole)):
        path.write_bytes(whole[:size])
        error = unreadable_error(path, "?")
        assert isinstance(error, InputError)
        assert f"cut short: it has {size:,} bytes" in error.what
        assert f"{len(whole):,}" in error.what or "its header alone" in error.what
        assert error.hint == "download or copy it again"


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
