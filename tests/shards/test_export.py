"""What other programs read is what the shards hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gptcli.errors import UsageError
from gptcli.shards import export
from gptcli.shards.export import export_nanogpt
from gptcli.shards.format import token_dtype, write_shard
from gptcli.shards.manifest import Manifest, Shard, Source, write_manifest


def make(folder: Path, vocab_size: int) -> dict[str, list[int]]:
    """Two training shards and an empty validation split; the tokens of each split."""
    shards = []
    for number, tokens in enumerate(([256, 1, 2, 256], [256, 9])):
        name = f"train-{number:06d}.bin"
        digest = write_shard(folder / name, np.array([len(tokens)]), [np.array(tokens)], token_dtype(vocab_size))
        shards.append(Shard(file=name, split="train", tokens=len(tokens), documents=1, sha256=digest))
    source = Source(name="inputs", documents_in=2, documents_kept=2, dropped={}, text_bytes=9, tokens=6)
    facts = {"tokenizer_sha256": "", "vocab_size": vocab_size, "eot_id": 256, "seed": 0, "val_fraction": 0.0, "split_rule": ""}
    write_manifest(folder, Manifest(**facts, shards=shards, sources=[source]))
    return {"train": [256, 1, 2, 256, 256, 9], "val": []}


def test_nanogpt_reads_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "CHUNK", 3)
    expected = make(tmp_path, 257)
    export_nanogpt(tmp_path)
    assert np.memmap(tmp_path / "train.bin", dtype=np.uint16, mode="r").tolist() == expected["train"]  # as nanoGPT's train.py reads
    assert (tmp_path / "val.bin").read_bytes() == b""


def test_a_large_vocabulary_is_refused(tmp_path: Path) -> None:
    make(tmp_path, 70_000)
    with pytest.raises(UsageError, match="a vocabulary of 70000 does not fit"):
        export_nanogpt(tmp_path)
    assert not (tmp_path / "train.bin").exists()
