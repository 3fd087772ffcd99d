"""A manifest read is the manifest written, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import InputError
from gptcli.shards.manifest import Manifest, Shard, Source, read_manifest, write_manifest

MANIFEST = Manifest(
    tokenizer_sha256="ab" * 32,
    vocab_size=257,
    eot_id=256,
    seed=3,
    val_fraction=0.25,
    split_rule="by hash",
    shards=[
        Shard(file="train-000000.bin", split="train", tokens=10, documents=2, sha256="cd" * 32),
        Shard(file="train-000001.bin", split="train", tokens=5, documents=1, sha256="cd" * 32),
        Shard(file="val-000000.bin", split="val", tokens=7, documents=1, sha256="ef" * 32),
    ],
    sources=[Source(name="inputs", documents_in=5, documents_kept=4, dropped={"blank": 1}, text_bytes=18, tokens=22)],
)


def test_round_trip(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    assert (MANIFEST.tokens("train"), MANIFEST.tokens("val")) == (15, 7)
    assert [shard.file for shard in MANIFEST.of("val")] == ["val-000000.bin"]


def test_a_whole_number_may_stand_for_a_fraction(tmp_path: Path) -> None:
    write_manifest(tmp_path, dataclasses.replace(MANIFEST, val_fraction=0))
    assert read_manifest(tmp_path).val_fraction == 0


def refused(folder: Path, table: Any) -> str:
    (folder / "manifest.json").write_text(json.dumps(table))
    with pytest.raises(InputError) as caught:
        read_manifest(folder)
    assert caught.value.where == str(folder / "manifest.json")
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "manifest format 2 is not 1"),
        ({"format": None}, "manifest format None is not 1"),
        ({"colour": "red"}, "the manifest has unknown keys: colour"),
        ({"seed": "3"}, "the manifest: seed is not of type int"),
        ({"seed": True}, "the manifest: seed is not of type int"),
        ({"shards": {}}, "the manifest: shards is not of type list"),
        ({"shards": [3]}, r"shards[0] is not an object"),
        ({"sources": [{}]}, r"sources[0] lacks name, documents_in"),
        ({"eot_id": 257}, "end-of-text 257 is outside the vocabulary of 257"),
    ],
)
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refused(tmp_path, dataclasses.asdict(MANIFEST) | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "split 'test' is neither train nor val"),
        ({"tokens": -1}, "a negative count"),
        ({"tokens": 1.5}, r"shards[0]: tokens is not of type int"),
        ({"sha512": ""}, r"shards[0] has unknown keys: sha512"),
    ],
)
def test_what_is_not_a_shard_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    shard = dataclasses.asdict(MANIFEST.shards[0]) | changes
    assert message in refused(tmp_path, dataclasses.asdict(MANIFEST) | {"shards": [shard]})


@pytest.mark.parametrize(
    "name", ["../a.bin", "/etc/a.bin", "a/b.bin", "..", "", ".bin", "C:\\a.bin", "a\\b.bin", "a.bin\n", "a.npy", "a:b.bin"]
)
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    shard = dataclasses.asdict(MANIFEST.shards[0]) | {"file": name}
    assert "is not a plain name ending in .bin" in refused(tmp_path, dataclasses.asdict(MANIFEST) | {"shards": [shard]})


@pytest.mark.parametrize("table", [[], "text", 3, None])
def test_other_json_is_refused(tmp_path: Path, table: Any) -> None:
    assert "the manifest is not an object" in refused(tmp_path, table)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such shard folder"):
        read_manifest(tmp_path / "none")
    with pytest.raises(InputError, match=r"it has no manifest.json\n.*--resume finishes"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{\n "format": 1,\n')
    with pytest.raises(InputError, match=r"manifest.json:3: not valid JSON"):
        read_manifest(tmp_path)
