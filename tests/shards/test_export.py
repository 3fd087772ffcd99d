"""Exports have the tokens of the shards, as other programs read them."""

from __future__ import annotations

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

from gptcli.errors import UsageError
from gptcli.shards import export
from gptcli.shards.export import export_megatron, export_nanogpt
from gptcli.shards.format import token_dtype, write_shard
from gptcli.shards.manifest import Manifest, Shard, Source, write_manifest


def make(folder: Path, vocab_size: int) -> dict[str, list[int]]:
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
    facts: dict[str, Any] = {
        "tokenizer_sha256": "",
        "vocab_size": vocab_size,
        "eot_id": 256,
        "seed": 0,
        "val_fraction": 0.0,
        "split_rule": "",
    }
    write_manifest(folder, Manifest(**facts, shards=shards, sources=[source]))
    return {"train": [256, 1, 2, 256, 256, 9], "val": []}


def test_nanogpt_reads_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "BLOCK_ITEMS", 3)
    expected = make(tmp_path, 257)
    export_nanogpt(tmp_path)
    # as nanoGPT's train.py reads
    assert (
        np.memmap(tmp_path / "train.bin", dtype=np.uint16, mode="r").tolist() == expected["train"]
    )
    assert (tmp_path / "val.bin").read_bytes() == b""


def test_nanogpt_refuses_a_large_vocabulary(tmp_path: Path) -> None:
    make(tmp_path, 70_000)
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
        split, source, _ = name.split("-")
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
    facts: dict[str, Any] = {
        "tokenizer_sha256": "",
        "vocab_size": vocab_size,
        "eot_id": 256,
        "seed": 0,
        "val_fraction": 0.0,
        "split_rule": "",
    }
    write_manifest(folder, Manifest(**facts, shards=shards, sources=sources))
    return {
        "train-web": made["train-web-000000"] + made["train-web-000001"],
        "train-books": made["train-books-000000"],
        "val-web": made["val-web-000000"],
    }


@pytest.mark.parametrize(("vocab_size", "kind", "code"), [(257, "H", 8), (70_000, "I", 4)])
def test_megatron_gets_two_files_for_each_source(
    tmp_path: Path, vocab_size: int, kind: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "BLOCK_ITEMS", 2)
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
    expected = make(tmp_path, 257)
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
    expected = make(tmp_path, 257)["train"]
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
