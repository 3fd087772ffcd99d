"""Token files of llm.c, Megatron and nanoGPT can be trained on unchanged; damaged and foreign files are
refused.
"""

from __future__ import annotations

import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from gptcli.errors import InputError
from gptcli.files import sha256
from gptcli.shards import external
from gptcli.shards.external import open_tokens
from gptcli.shards.loader import open_split
from gptcli.shards.manifest import RESUME_RECORD, manifest_for, read_manifest
from gptcli.shards.order import open_order
from gptcli.shards.verify import verify_shards
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

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


def test_a_file_is_read_once_while_it_does_not_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(folder, "nanogpt")
    before = read_manifest(folder)
    with monkeypatch.context() as patch:
        patch.setattr(external, "open_tokens", lambda path: pytest.fail(f"{path} was read again"))
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
        InputError, match=r"the build of these shards is not finished\n.*resume to finish"
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
        InputError, match=r"train.bin: contains the token 50256, outside the vocabulary of 257"
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
