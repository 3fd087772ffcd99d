"""safetensors files are written as the library writes them, and broken ones are told apart."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from gptcli.errors import InputError
from gptcli.model.tensor_file import (
    BLOCK_BYTES,
    DTYPES,
    open_tensors,
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
