"""Exports have the tokens of the shards, as other programs read them; verification names the first
fault of a folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import struct
import subprocess
import sys
import types
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptcli.errors import InputError, UsageError
from gptcli.events import Events
from gptcli.shards import folder as folder_module
from gptcli.shards.folder import export_megatron, export_nanogpt, verify_shards
from gptcli.shards.format import token_dtype, write_shard
from gptcli.shards.manifest import Manifest, Shard, Source, Split, write_manifest
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

FACTS: dict[str, Any] = {
    "tokenizer_sha256": "",
    "eot_id": 256,
    "seed": 0,
    "val_fraction": 0.0,
    "split_rule": "",
}


def make_two_shards(folder: Path, vocab_size: int) -> dict[str, list[int]]:
    """Write two training shards and an empty validation split; return the tokens of each split."""
    shards = []
    for number, tokens in enumerate(([256, 1, 2, 256], [256, 9])):
        name = f"train-{number:06d}.bin"
        digest = write_shard(
            folder / name, np.array([len(tokens)]), [np.array(tokens)], token_dtype(vocab_size)
        )
        shards.append(
            Shard(file=name, split="train", tokens=len(tokens), documents=1, sha256=digest)
        )
    source = Source(
        name="inputs", documents_in=2, documents_kept=2, dropped={}, text_bytes=9, tokens=6
    )
    write_manifest(
        folder, Manifest(**FACTS, vocab_size=vocab_size, shards=shards, sources=[source])
    )
    return {"train": [256, 1, 2, 256, 256, 9], "val": []}


def test_nanogpt_reads_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "BLOCK_ITEMS", 3)
    expected = make_two_shards(tmp_path, 257)
    export_nanogpt(tmp_path)
    # as nanoGPT's train.py reads
    assert (
        np.memmap(tmp_path / "train.bin", dtype=np.uint16, mode="r").tolist() == expected["train"]
    )
    assert (tmp_path / "val.bin").read_bytes() == b""


def test_nanogpt_refuses_a_large_vocabulary(tmp_path: Path) -> None:
    make_two_shards(tmp_path, 70_000)
    with pytest.raises(UsageError, match="a vocabulary of 70000 does not fit"):
        export_nanogpt(tmp_path)
    assert not (tmp_path / "train.bin").exists()


def make_mixture(folder: Path, vocab_size: int) -> dict[str, list[list[int]]]:
    """Write two shards of one source, one of another and one for validation.

    Returns the documents of each file that Megatron should get.
    """
    shards = []
    made: dict[str, list[list[int]]] = {
        "train-web-000000": [[256, 1], [256]],
        "train-web-000001": [[256, 2, 3]],
        "train-books-000000": [[256, 7, 8, 9]],
        "val-web-000000": [[256, 5], [256, 6]],
    }
    for name, documents in made.items():
        start, source, _ = name.split("-")
        split: Split = "val" if start == "val" else "train"
        lengths = np.array([len(document) for document in documents])
        digest = write_shard(
            folder / f"{name}.bin",
            lengths,
            [np.array([*chain(*documents)])],
            token_dtype(vocab_size),
        )
        count = {"tokens": int(lengths.sum()), "documents": len(documents)}
        shards.append(Shard(file=f"{name}.bin", split=split, sha256=digest, source=source, **count))
    sources = [
        Source(name=name, documents_in=5, documents_kept=5, dropped={}, text_bytes=9, tokens=9)
        for name in ("web", "books")
    ]
    write_manifest(folder, Manifest(**FACTS, vocab_size=vocab_size, shards=shards, sources=sources))
    return {
        "train-web": made["train-web-000000"] + made["train-web-000001"],
        "train-books": made["train-books-000000"],
        "val-web": made["val-web-000000"],
    }


@pytest.mark.parametrize(("vocab_size", "kind", "code"), [(257, "H", 8), (70_000, "I", 4)])
def test_megatron_gets_two_files_for_each_source(
    tmp_path: Path, vocab_size: int, kind: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "BLOCK_ITEMS", 2)
    expected = make_mixture(tmp_path, vocab_size)
    assert {path.name for path in export_megatron(tmp_path)} == {
        f"{name}.{end}" for name in expected for end in ("bin", "idx")
    }
    assert (tmp_path / "train-web.bin").read_bytes() == struct.pack(
        f"<6{kind}", 256, 1, 256, 256, 2, 3
    )
    size = struct.calcsize(kind)
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, 3, 4)
    sequences = struct.pack("<3i", 2, 1, 3) + struct.pack("<3q", 0, 2 * size, 3 * size)
    assert (tmp_path / "train-web.idx").read_bytes() == head + sequences + struct.pack(
        "<4q", 0, 1, 2, 3
    )


def test_megatron_files_without_a_recipe_are_named_by_split(tmp_path: Path) -> None:
    expected = make_two_shards(tmp_path, 257)
    # validation is empty
    assert [path.name for path in export_megatron(tmp_path)] == ["train.bin", "train.idx"]
    assert np.fromfile(tmp_path / "train.bin", np.uint16).tolist() == expected["train"]


@pytest.fixture
def indexed_dataset(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the reader of Megatron-LM, from a clone.

    Its packages import modules that need GPUs, so they are replaced by empty ones.
    """
    if "MEGATRON" not in os.environ:
        pytest.skip("set MEGATRON to a clone of Megatron-LM")
    for name in ("megatron", "megatron.core", "megatron.core.datasets", "megatron.core.utils"):
        module = types.ModuleType(name)
        module.__path__ = [str(Path(os.environ["MEGATRON"], *name.split(".")))]
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["megatron.core.utils"].log_single_rank = lambda *_, **__: None  # type: ignore[attr-defined]
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    return IndexedDataset


@pytest.mark.parametrize("vocab_size", [257, 70_000])
@pytest.mark.parametrize("mmap", [True, False])
def test_the_reader_of_megatron_returns_the_same_documents(
    tmp_path: Path, indexed_dataset: Any, vocab_size: int, mmap: bool
) -> None:
    expected = make_mixture(tmp_path, vocab_size)
    export_megatron(tmp_path)
    # a shard as it is, too
    for name, documents in {**expected, "train-web-000000": expected["train-web"][:2]}.items():
        read = indexed_dataset(str(tmp_path / name), mmap=mmap)
        assert [read[number].tolist() for number in range(len(read))] == documents
        assert read.document_indices.tolist() == list(range(len(documents) + 1))
        assert read.sequence_lengths.tolist() == [len(document) for document in documents]


def test_the_loader_of_llm_c_reads_the_shards(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if "LLMC" not in os.environ or compiler is None:
        pytest.skip("set LLMC to a clone of llm.c, and have a C compiler")
    expected = make_two_shards(tmp_path, 257)["train"]
    (tmp_path / "read.c").write_text(
        """#include "llmc/dataloader.h"
        int main(int count, char **names) {
            DataLoader loader;
            dataloader_init(&loader, names[1], 1, 1, 0, 1, 0);  // B, T, rank, processes, shuffle
            printf("%d tokens:", (int) loader.num_tokens);
            for (int i = 0; i < 4; i++) { dataloader_next_batch(&loader); printf(" %d>%d", loader.inputs[0], loader.targets[0]); }
            dataloader_free(&loader);
        }"""
    )
    subprocess.run(
        [
            compiler,
            "-O2",
            "-I",
            os.environ["LLMC"],
            "-o",
            tmp_path / "read",
            tmp_path / "read.c",
            "-lm",
        ],
        check=True,
    )
    told = subprocess.run(
        [tmp_path / "read", str(tmp_path / "train-*.bin")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert told.splitlines()[-1] == f"{len(expected)} tokens: 256>1 1>2 2>256 256>9"


EOT = 256


def make(
    folder: Path,
    documents: dict[Split, list[list[int]]],
    lengths: dict[str, list[int]] | None = None,
) -> Manifest:
    """Write a shard folder with the documents (tokens after end-of-text) of each split.

    `lengths` overrides the lengths in the index.

    """
    tokenizer = Tokenizer([*byte_alphabet(), END_OF_TEXT], [])
    tokenizer.save(folder / "tokenizer.json")
    shards = []
    for split, rows in documents.items():
        tokens = np.array([token for row in rows for token in (EOT, *row)], np.uint16)
        said = np.array((lengths or {}).get(split, [len(row) + 1 for row in rows]))
        digest = write_shard(folder / f"{split}-000000.bin", said, [tokens], np.dtype("<u2"))
        shards.append(
            Shard(
                file=f"{split}-000000.bin",
                split=split,
                tokens=len(tokens),
                documents=len(rows),
                sha256=digest,
            )
        )
    count = sum(shard.documents for shard in shards)
    tokens_of_all = sum(shard.tokens for shard in shards)
    source = Source(
        name="inputs",
        documents_in=count,
        documents_kept=count,
        dropped={},
        text_bytes=9,
        tokens=tokens_of_all,
    )
    manifest = Manifest(
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=257,
        eot_id=EOT,
        seed=0,
        val_fraction=0.1,
        split_rule="",
        shards=shards,
        sources=[source],
    )
    write_manifest(folder, manifest)
    return manifest


GOOD: dict[Split, list[list[int]]] = {"train": [[1, 2, 3], [], [7]], "val": [[5, 6]]}


def fault(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        verify_shards(folder)
    return str(caught.value).replace(str(folder), "F")


class Heard(Events):
    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def progress(
        self, task: str, done: float, total: float | None = None, unit: str = "", **facts: object
    ) -> None:
        self.said.append((task, done, total))

    def finish(self, task: str) -> None:
        self.said.append((task,))


def test_an_intact_folder_passes(tmp_path: Path) -> None:
    manifest = make(tmp_path, GOOD)
    heard = Heard()
    assert verify_shards(tmp_path, events=heard) == manifest
    assert heard.said == [
        ("verify", number, len(manifest.shards)) for number in range(1, len(manifest.shards) + 1)
    ] + [("verify",)]


@pytest.mark.parametrize(
    ("documents", "lengths", "message"),
    [
        (
            {"train": [[1, 2, 3], [7]]},
            {"train": [3, 3]},
            "do not begin at the end-of-text tokens",
        ),
        ({"train": [[1, EOT, 3], [7]]}, None, "do not begin at the end-of-text tokens"),
        ({"train": [[1, 300]]}, None, "contains the token 300, outside the vocabulary of 257"),
        ({"train": [[1, 257]]}, None, "contains the token 257, outside the vocabulary of 257"),
    ],
)
def test_wrong_documents_are_errors(
    tmp_path: Path,
    documents: dict[Split, list[list[int]]],
    lengths: dict[str, list[int]] | None,
    message: str,
) -> None:
    make(tmp_path, documents, lengths)
    assert message in fault(tmp_path)


def test_altered_files_are_errors(tmp_path: Path) -> None:
    manifest = make(tmp_path, GOOD)
    data = (tmp_path / "train-000000.bin").read_bytes()
    (tmp_path / "train-000000.bin").write_bytes(data[:-2] + b"\x09\x00")
    assert fault(tmp_path).startswith("F/train-000000.bin: altered")
    (tmp_path / "train-000000.bin").write_bytes(data)
    write_manifest(
        tmp_path,
        dataclasses.replace(
            manifest, sources=[dataclasses.replace(manifest.sources[0], documents_in=9)]
        ),
    )
    assert "documents_in is not documents_kept plus those dropped" in fault(tmp_path)
    write_manifest(
        tmp_path,
        dataclasses.replace(manifest, sources=[dataclasses.replace(manifest.sources[0], tokens=9)]),
    )
    assert "its shards do not have 9 tokens" in fault(tmp_path)
    write_manifest(
        tmp_path,
        dataclasses.replace(manifest, sources=[dataclasses.replace(manifest.sources[0], pieces=1)]),
    )
    assert "its shards do not have as many documents" in fault(tmp_path)
    write_manifest(tmp_path, dataclasses.replace(manifest, tokenizer_sha256="ab"))
    assert "is not the tokenizer in the manifest" in fault(tmp_path)
    table = json.loads((tmp_path / "manifest.json").read_text()) | {
        "tokenizer_sha256": manifest.tokenizer_sha256
    }
    table["shards"][0]["tokens"] = 5
    (tmp_path / "manifest.json").write_text(json.dumps(table))
    assert "has 7 tokens in 3 documents, not 5 in 3" in fault(tmp_path)


def test_an_index_longer_than_its_shard_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, {"train": [[1, 2, 3], [7]]})
    index = bytearray((tmp_path / "train-000000.idx").read_bytes())
    assert index[34:42] == bytes([4, 0, 0, 0, 2, 0, 0, 0])
    index[38] = 3
    (tmp_path / "train-000000.idx").write_bytes(index)
    assert "its documents are not as long as the shard" in fault(tmp_path)


def test_documents_in_must_be_kept_plus_dropped(tmp_path: Path) -> None:
    manifest = make(tmp_path, GOOD)
    dropped = dataclasses.replace(
        manifest.sources[0], documents_in=9, dropped={"blank": 3, "quality": 2}
    )
    write_manifest(tmp_path, whole := dataclasses.replace(manifest, sources=[dropped]))
    assert verify_shards(tmp_path) == whole
