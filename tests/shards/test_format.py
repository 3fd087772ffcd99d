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
from gptcli.files import sha256
from gptcli.shards import format as format_module
from gptcli.shards.folder import verify_shards
from gptcli.shards.format import (
    document_lengths,
    index_path,
    open_shard,
    open_tokens,
    token_dtype,
    write_shard,
)
from gptcli.shards.manifest import RESUME_RECORD, manifest_for, planned_manifest, read_manifest
from gptcli.shards.order import open_order, open_split
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

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


EOT = 256
TRAIN, VAL = [EOT, 1, 2, EOT, 3], [EOT, 7]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a tokenizer of 257 entries only."""
    Tokenizer([*byte_alphabet(), END_OF_TEXT], []).save(tmp_path / "tokenizer.json")
    return tmp_path


def llm_c(path: Path, tokens: list[int]) -> None:
    path.write_bytes(
        struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253)
        + struct.pack(f"<{len(tokens)}H", *tokens)
    )


def megatron(path: Path, documents: list[list[int]], code: int = 8) -> None:
    """Write files as Megatron's preprocess_data.py does, with end-of-texts only as given."""
    kind = {8: "H", 4: "i", 5: "q"}[code]
    size = struct.calcsize(kind)
    tokens = [*chain(*documents)]
    path.write_bytes(struct.pack(f"<{len(tokens)}{kind}", *tokens))
    lengths = [len(document) for document in documents]
    pointers = [size * sum(lengths[:row]) for row in range(len(lengths))]
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1)
    index += (
        struct.pack(f"<{len(lengths)}i{len(lengths)}q", *lengths, *pointers) if lengths else b""
    )
    path.with_suffix(".idx").write_bytes(
        index + struct.pack(f"<{len(lengths) + 1}q", *range(len(lengths) + 1))
    )


def written(folder: Path, kind: str) -> None:
    if kind == "llm.c":
        llm_c(folder / "fineweb_train_000001.bin", TRAIN[:3])
        llm_c(folder / "fineweb_train_000002.bin", TRAIN[3:])
        llm_c(folder / "fineweb_val_000000.bin", VAL)
        llm_c(folder / "fineweb_test_000000.bin", [9] * 9)
    elif kind == "nanogpt":
        for name, tokens in (("train", TRAIN), ("val", VAL)):
            np.array(tokens, np.uint16).tofile(folder / f"{name}.bin")
    else:
        code = 8 if kind == "megatron" else 4
        megatron(folder / "wiki_text_document.bin", [TRAIN[:3], TRAIN[3:]], code)
        megatron(folder / "wiki-valid_text_document.bin", [VAL], code)


@pytest.mark.parametrize("kind", ["llm.c", "nanogpt", "megatron", "megatron-int32"])
def test_tokens_are_read_unchanged(folder: Path, kind: str) -> None:
    written(folder, kind)
    manifest = read_manifest(folder)
    assert (manifest.vocab_size, manifest.eot_id) == (257, 256)
    assert (manifest.tokens("train"), manifest.tokens("val"), manifest.shares()) == (
        5,
        2,
        {"inputs": 1.0},
    )
    assert [
        sum(shard.documents for shard in manifest.shards_of(split)) for split in ("train", "val")
    ] == [
        2,
        1,
    ]
    assert all(shard.sha256 == sha256(folder / shard.file) for shard in manifest.shards)
    assert open_split(folder, "train")[0:9].tolist() == TRAIN
    assert open_split(folder, "val")[0:9].tolist() == VAL
    inputs, targets = open_order(folder, "train", 2, seed=0).batch(0, 2)
    assert sorted(map(tuple, np.concatenate([inputs, targets[:, -1:]], 1).tolist())) == [
        (2, EOT, 3),
        (EOT, 1, 2),
    ]


def test_a_plan_counts_the_files_of_other_programs(folder: Path) -> None:
    """By their sizes, without reading them; not those of a build that is not finished."""
    assert planned_manifest(folder) is None
    written(folder, "llm.c")
    plan, whole = planned_manifest(folder), read_manifest(folder)
    assert plan is not None
    assert (plan.vocab_size, plan.tokens("train"), plan.tokens("val")) == (257, 5, 2)
    assert plan.tokenizer_sha256 == whole.tokenizer_sha256
    assert {shard.sha256 for shard in plan.shards} == {""}
    (folder / "resume.json").write_text("{}")
    assert planned_manifest(folder) is None


def test_a_file_is_read_once_while_it_does_not_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(folder, "nanogpt")
    before = read_manifest(folder)
    with monkeypatch.context() as patch:
        patch.setattr(
            format_module, "open_tokens", lambda path: pytest.fail(f"{path} was read again")
        )
        assert read_manifest(folder) == before
    np.array([EOT, 8, 8], np.uint16).tofile(folder / "train.bin")
    assert read_manifest(folder).tokens("train") == 3


def test_the_validation_fraction_counts_documents(folder: Path) -> None:
    for train, share in (([1, 2], 1.0), ([EOT, 2], 0.5), ([EOT, EOT, EOT], 0.25)):
        llm_c(folder / "a_train.bin", train)
        llm_c(folder / "a_val.bin", [EOT, 7])
        assert read_manifest(folder).val_fraction == share
    llm_c(folder / "a_val.bin", [7])
    llm_c(folder / "a_train.bin", [7])
    assert read_manifest(folder).val_fraction == 0.0, "of no documents"


def test_other_folders_are_refused(tmp_path: Path, folder: Path) -> None:
    assert manifest_for(folder) is None
    with pytest.raises(InputError, match="not a shard folder"):
        read_manifest(folder)
    written(folder, "llm.c")
    (folder / RESUME_RECORD).write_text("{}")  # an unfinished build
    with pytest.raises(
        InputError, match=r"the build of these shards is not finished\n.*resume=True to finish"
    ):
        read_manifest(folder)
    (folder / RESUME_RECORD).unlink()
    with pytest.raises(InputError, match=r"has no manifest.json"):
        verify_shards(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        InputError,
        match=r"the tokenizer .* is missing\n.*tokenizer.json to the folder of fineweb_train_000001.bin",
    ):
        read_manifest(folder)


def test_tokens_outside_the_vocabulary_are_an_error(folder: Path) -> None:
    llm_c(folder / "train.bin", [EOT, 50256])
    with pytest.raises(
        InputError, match=r"train.bin contains the token 50256, outside the vocabulary of 257"
    ):
        read_manifest(folder)
    megatron(folder / "train.bin", [[EOT, -1]], 4)
    with pytest.raises(InputError, match="contains the token 4294967295"):
        read_manifest(folder)


def test_files_of_two_data_types_are_an_error(folder: Path) -> None:
    megatron(folder / "a.bin", [[EOT, 1]], 8)
    megatron(folder / "b.bin", [[EOT, 1]], 4)
    with pytest.raises(
        InputError, match=r"b.bin: its tokens have another data type than those of a.bin"
    ):
        open_split(folder, "train")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-2]),
            "has 8 bytes, but its index counts 5 tokens",
        ),
        (lambda path: path.with_suffix(".idx").unlink(), "not a token file"),
        (lambda path: path.with_suffix(".idx").write_bytes(b"MMIDIDX"), "not a Megatron index"),
        (
            lambda path: path.with_suffix(".idx").write_bytes(
                path.with_suffix(".idx").read_bytes()[:33]
            ),
            "not a Megatron index",
        ),
        (
            lambda path: path.with_suffix(".idx").write_bytes(
                b"?" + path.with_suffix(".idx").read_bytes()[1:]
            ),
            "not a Megatron index",
        ),
        (
            lambda path: path.with_suffix(".idx").write_bytes(
                path.with_suffix(".idx").read_bytes()[:-8]
            ),
            "its length does not match its counts",
        ),
        (
            lambda path: megatron(path, [TRAIN], 5),
            r"version 1 with tokens of type 5: only .* uint16 \(8\) or int32 \(4\)",
        ),
        (lambda path: path.rename(path.with_name("b.bin")), "not a token file"),
        (lambda path: shifted(path.with_suffix(".idx")), "are not contiguous"),
    ],
)
def test_damaged_megatron_files_are_errors(tmp_path: Path, break_it: object, message: str) -> None:
    megatron(tmp_path / "a.bin", [TRAIN[:3], TRAIN[3:]])
    break_it(tmp_path / "a.bin")  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        open_tokens(next(tmp_path.glob("*.bin")))


def shifted(index: Path) -> None:
    """Move the pointer of the second sequence by two bytes."""
    data = bytearray(index.read_bytes())
    data[34 + 8 + 8] += 2
    index.write_bytes(data)


def test_damaged_files_of_nanogpt_and_llm_c_are_errors(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(b"abc")
    with pytest.raises(InputError, match="its size is odd"):
        open_tokens(tmp_path / "train.bin")
    llm_c(tmp_path / "train.bin", TRAIN)
    (tmp_path / "train.bin").write_bytes((tmp_path / "train.bin").read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated by 1 byte"):
        open_tokens(tmp_path / "train.bin")
    (tmp_path / "val.bin").write_bytes(b"")
    assert open_tokens(tmp_path / "val.bin").tolist() == []
