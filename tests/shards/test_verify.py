"""An intact folder passes, and any single fault is reported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from gptcli.errors import InputError
from gptcli.events import Events
from gptcli.shards.format import write_shard
from gptcli.shards.manifest import Manifest, Shard, Source, write_manifest
from gptcli.shards.verify import verify_shards
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

EOT = 256


def make(
    folder: Path, documents: dict[str, list[list[int]]], lengths: dict[str, list[int]] | None = None
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


GOOD = {"train": [[1, 2, 3], [], [7]], "val": [[5, 6]]}


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
    documents: dict[str, list[list[int]]],
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
