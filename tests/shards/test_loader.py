"""Tokens are read as they were written, across shards, and a damaged shard is found before it is used."""

from __future__ import annotations

import dataclasses
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import InputError
from gptcli.shards.format import token_dtype, write_shard
from gptcli.shards.loader import TokenStream, open_split
from gptcli.shards.manifest import Manifest, Shard, read_manifest, write_manifest

TRAIN = [[9, 1, 2, 9, 3], [9], [9, 4, 5]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of three train shards and no validation."""
    dtype = token_dtype(10)
    shards = []
    for number, tokens in enumerate(TRAIN):
        name = f"train-{number:06d}.bin"
        digest = write_shard(
            tmp_path / name, np.array([len(tokens)]), [np.array(tokens, dtype)], dtype
        )
        shards.append(
            Shard(file=name, split="train", tokens=len(tokens), documents=1, sha256=digest)
        )
    manifest = Manifest(
        tokenizer_sha256="", vocab_size=10, eot_id=9, seed=0, val_fraction=0.0, split_rule="", shards=shards, sources=[]
    )  # fmt: skip
    write_manifest(tmp_path, manifest)
    return tmp_path


def test_all_shards_are_one_sequence(folder: Path) -> None:
    stream = open_split(folder, "train")
    assert len(stream) == 9
    assert stream.dtype == np.uint16
    assert stream[0:9].tolist() == [*chain.from_iterable(TRAIN)]
    assert stream[4:7].tolist() == [3, 9, 9]


@given(st.lists(st.lists(st.integers(0, 9)), min_size=1, max_size=6), st.data())
def test_slices_equal_those_of_the_joined_list(
    arrays: list[list[int]], data: st.DataObject
) -> None:
    joined = [*chain.from_iterable(arrays)]
    border = st.none() | st.integers(-len(joined) - 2, len(joined) + 2)
    span = slice(data.draw(border), data.draw(border))
    assert (
        TokenStream([np.array(array, np.uint16) for array in arrays])[span].tolist() == joined[span]
    )


def test_a_slice_is_a_copy() -> None:
    stream = TokenStream([np.arange(4, dtype=np.uint16)])
    stream[0:4][:] = 7
    assert stream[0:4].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="a step of 1"):
        stream[0:4:2]


def test_an_altered_byte_is_an_error(folder: Path) -> None:
    path = folder / "train-000001.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="altered: its SHA-256") as caught:
        open_split(folder, "train")
    assert caught.value.where == str(path)
    assert len(open_split(folder, "train", verify=False)) == 9


def test_a_truncated_shard_is_found_without_reading_it(folder: Path) -> None:
    path = folder / "train-000002.bin"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="truncated by 3 bytes") as caught:
        open_split(folder, "train", verify=False)
    assert caught.value.where == str(path)


def test_a_shard_of_another_build_is_found_without_reading_it(folder: Path) -> None:
    (folder / "train-000002.bin").write_bytes((folder / "train-000001.bin").read_bytes())
    with pytest.raises(InputError, match="has 1 tokens, but the manifest says 3"):
        open_split(folder, "train", verify=False)


def test_tokens_of_another_data_type_are_refused(folder: Path) -> None:
    write_manifest(folder, dataclasses.replace(read_manifest(folder), vocab_size=70000))
    with pytest.raises(
        InputError, match="uint16 tokens, but the manifest's vocabulary needs uint32"
    ):
        open_split(folder, "train")


def test_a_missing_shard_and_an_empty_split_are_errors(folder: Path) -> None:
    with pytest.raises(InputError, match="the val split is empty"):
        open_split(folder, "val")
    (folder / "train-000000.bin").unlink()
    with pytest.raises(InputError, match=r"train-000000.bin: no such shard"):
        open_split(folder, "train")
