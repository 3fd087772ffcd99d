"""The byte layout equals bytes packed by hand, and is read as other programs read it."""

from __future__ import annotations

import hashlib
import struct
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import InputError
from gptcli.shards.format import document_lengths, index_path, open_shard, token_dtype, write_shard

U2, U4 = np.dtype("<u2"), np.dtype("<u4")


def write(path: Path, documents: list[list[int]], dtype: np.dtype) -> str:
    lengths = np.array([len(document) for document in documents], np.int64)
    return write_shard(path, lengths, [np.array(document, dtype) for document in documents], dtype)


@pytest.mark.parametrize(
    ("dtype", "code", "magic", "version", "tokens"),
    [(U2, "H", 20240520, 1, 50256), (U4, "I", 20240801, 7, 70000)],
)
def test_a_bin_has_the_documented_bytes(
    tmp_path: Path, dtype: np.dtype, code: str, magic: int, version: int, tokens: int
) -> None:
    digest = write(tmp_path / "a.bin", [[tokens, 1], [tokens, 2, 3]], dtype)
    data = (tmp_path / "a.bin").read_bytes()
    assert data == struct.pack("<256i", magic, version, 5, *[0] * 253) + struct.pack(
        f"<5{code}", tokens, 1, tokens, 2, 3
    )
    assert len(data) == 1024 + dtype.itemsize * 5
    assert digest == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(("dtype", "code"), [(U2, 8), (U4, 4)])
def test_an_idx_has_the_documented_bytes(tmp_path: Path, dtype: np.dtype, code: int) -> None:
    write(tmp_path / "a.bin", [[9, 1], [9, 2, 3]], dtype)
    head = b"MMIDIDX\0\0" + struct.pack("<Q", 1) + bytes([code]) + struct.pack("<QQ", 2, 3)
    pointers = struct.pack("<2q", 1024, 1024 + 2 * dtype.itemsize)
    assert (tmp_path / "a.idx").read_bytes() == head + struct.pack(
        "<2i", 2, 3
    ) + pointers + struct.pack("<3q", 0, 1, 2)


def test_shards_are_read_as_llm_c_and_nanogpt_read_them(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", [[9, 1], [9, 2, 3]], U2)
    # llm.c's dataloader: magic, version, count, then the size must agree
    header = np.fromfile(tmp_path / "a.bin", np.int32, 256)
    assert header[:3].tolist() == [20240520, 1, 5]
    assert (tmp_path / "a.bin").stat().st_size == 256 * 4 + header[2] * 2
    # nanoGPT's memmap, past the header
    assert np.memmap(tmp_path / "a.bin", np.uint16, "r")[512:].tolist() == [9, 1, 9, 2, 3]


def megatron_documents(path: Path) -> list[list[int]]:
    """Read a .bin through its .idx as Megatron-LM's IndexedDataset does: by dtype code, lengths,
    pointers and document borders.
    """
    with open(path.with_suffix(".idx"), "rb") as file:
        assert file.read(9) == b"MMIDIDX\x00\x00"
        assert struct.unpack("<Q", file.read(8)) == (1,)
        dtype = {4: np.int32, 8: np.uint16}[struct.unpack("<B", file.read(1))[0]]
        sequences, borders = struct.unpack("<QQ", file.read(16))
        lengths = np.frombuffer(file.read(4 * sequences), np.int32)
        pointers = np.frombuffer(file.read(8 * sequences), np.int64)
        documents = np.frombuffer(file.read(8 * borders), np.int64)
        assert file.read() == b""
    data = path.read_bytes()
    whole = [
        np.frombuffer(data, dtype, length, pointer).tolist()
        for length, pointer in zip(lengths, pointers, strict=True)
    ]
    return [
        [token for sequence in whole[start:stop] for token in sequence]
        for start, stop in pairwise(documents)
    ]


@given(
    st.lists(st.lists(st.integers(0, 65534), min_size=1, max_size=20), max_size=20),
    st.sampled_from([U2, U4]),
    st.data(),
)
def test_tokens_and_lengths_are_read_as_written(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    dtype: np.dtype,
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("shard") / "a.bin"
    flat = np.array([*chain.from_iterable(documents)], dtype)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(flat)), max_size=5)))
    write_shard(
        path,
        np.array([len(document) for document in documents], np.int64),
        np.split(flat, cuts),
        dtype,
    )
    tokens = open_shard(path)
    assert tokens.dtype == dtype
    assert tokens.tolist() == flat.tolist()
    assert document_lengths(path).tolist() == [len(document) for document in documents]
    assert megatron_documents(path) == documents


def test_the_data_type_changes_above_65535() -> None:
    assert [token_dtype(size) for size in (50257, 65535, 65536, 128256)] == [U2, U2, U4, U4]


def damaged(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def header(magic: int = 20240520, version: int = 1, count: int = 3) -> bytes:
    return struct.pack("<256i", magic, version, count, *[0] * 253)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header() + bytes(5), "truncated by 1 byte "),
        (header() + bytes(8), "2 bytes too long"),
        (header()[:100], "truncated: 100 bytes"),
        (b"", "truncated: 0 bytes"),
        (header(magic=7) + bytes(6), "not a shard: it begins with 7"),
        (header(version=2) + bytes(6), "shard version 2 is not 1"),
        (header(magic=20240801, version=1) + bytes(12), "shard version 1 is not 7"),
        (header(count=-1), "counts -1 tokens"),
    ],
)
def test_incomplete_shards_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = damaged(tmp_path / "a.bin", data)
    with pytest.raises(InputError, match=message) as caught:
        open_shard(path)
    assert caught.value.where == str(path)


def test_missing_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such shard"):
        open_shard(tmp_path / "a.bin")
    with pytest.raises(InputError, match="the shard's index is missing"):
        document_lengths(tmp_path / "a.bin")


@pytest.mark.parametrize("cut", [0, 10, 33, 40, -1])
def test_a_broken_index_is_refused(tmp_path: Path, cut: int) -> None:
    write(tmp_path / "a.bin", [[9, 1], [9, 2, 3]], U2)
    index = index_path(tmp_path / "a.bin")
    index.write_bytes(index.read_bytes()[:cut])
    with pytest.raises(InputError, match="the shard index is incomplete"):
        document_lengths(tmp_path / "a.bin")


def test_a_wrong_number_of_tokens_leaves_no_file_behind(tmp_path: Path) -> None:
    for tokens in (2, 4):
        with pytest.raises(ValueError, match=f"{tokens} tokens in the pieces, 3 in the lengths"):
            write_shard(tmp_path / "a.bin", np.array([3]), [np.zeros(tokens, U2)], U2)
    with pytest.raises(ValueError, match="at most 2147483647"):
        write_shard(tmp_path / "a.bin", np.array([2**31]), [], U2)
    assert list(tmp_path.iterdir()) == []
