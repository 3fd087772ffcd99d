"""A manifest is read as it was written, and invalid ones are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import InputError, UsageError
from gptcli.shards.manifest import (
    Manifest,
    Shard,
    Source,
    Stage,
    mixture_text,
    read_manifest,
    read_mixture,
    tokens_by_source,
    write_manifest,
)

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
    sources=[
        Source(
            name="inputs",
            documents_in=5,
            documents_kept=4,
            dropped={"blank": 1},
            text_bytes=18,
            tokens=22,
        )
    ],
)


def test_a_manifest_is_read_as_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    assert (MANIFEST.tokens("train"), MANIFEST.tokens("val")) == (15, 7)
    assert [shard.file for shard in MANIFEST.shards_of("val")] == ["val-000000.bin"]


def test_an_integer_is_a_valid_float(tmp_path: Path) -> None:
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
        ({"format": None}, "manifest format null is not 1"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"seed": "3"}, "seed: '3' is not a number"),
        ({"seed": True}, "seed: true is not a number"),
        ({"shards": {}}, "shards: a table is not a list"),
        ({"shards": [3]}, r"shards[0]: is not a table"),
        ({"sources": [{}]}, r"sources[0]: no 'name', 'documents_in'"),
        ({"eot_id": 257}, "end-of-text 257 is outside the vocabulary of 257"),
    ],
)
def test_invalid_manifests_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    assert message in refused(tmp_path, dataclasses.asdict(MANIFEST) | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "shards[0].split: 'test' is none of train, val"),
        ({"tokens": -1}, "a negative count"),
        ({"tokens": 1.5}, r"shards[0].tokens: 1.5 is not a whole number"),
        ({"sha512": ""}, r"shards[0]: unknown key 'sha512'"),
    ],
)
def test_invalid_shards_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    shard = dataclasses.asdict(MANIFEST.shards[0]) | changes
    assert message in refused(tmp_path, dataclasses.asdict(MANIFEST) | {"shards": [shard]})


@pytest.mark.parametrize(
    "name",
    [
        "../a.bin",
        "/etc/a.bin",
        "a/b.bin",
        "..",
        "",
        ".bin",
        "C:\\a.bin",
        "a\\b.bin",
        "a.bin\n",
        "a.npy",
        "a:b.bin",
    ],
)
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    shard = dataclasses.asdict(MANIFEST.shards[0]) | {"file": name}
    assert "is not a plain name ending in .bin" in refused(
        tmp_path, dataclasses.asdict(MANIFEST) | {"shards": [shard]}
    )


@pytest.mark.parametrize("count", [[0, 1], "1", None, 1.5, True])
def test_dropped_must_be_counts(tmp_path: Path, count: Any) -> None:
    source = dataclasses.asdict(MANIFEST.sources[0]) | {
        "dropped": {"quality": 1, "duplicate": count}
    }
    message = refused(tmp_path, dataclasses.asdict(MANIFEST) | {"sources": [source]})
    assert "sources[0].dropped" in message


@pytest.mark.parametrize("table", [[], "text", 3, None])
def test_json_of_another_type_is_refused(tmp_path: Path, table: Any) -> None:
    assert "is not a table" in refused(tmp_path, table)


def test_missing_and_broken_manifests_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such shard folder"):
        read_manifest(tmp_path / "none")
    with pytest.raises(InputError, match=r"it has no manifest.json\n.*continue it with resume"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{\n "format": 1,\n')
    with pytest.raises(InputError, match=r"manifest.json:3: not valid JSON"):
        read_manifest(tmp_path)


def test_shares_are_normalized_over_sources_with_tokens(tmp_path: Path) -> None:
    shards = [
        Shard(
            file="train-a-000000.bin",
            split="train",
            tokens=10,
            documents=2,
            sha256="cd" * 32,
            source="a",
        ),
        Shard(
            file="train-b-000000.bin",
            split="train",
            tokens=5,
            documents=1,
            sha256="cd" * 32,
            source="b",
        ),
        Shard(
            file="val-b-000000.bin",
            split="val",
            tokens=7,
            documents=1,
            sha256="ef" * 32,
            source="b",
        ),
    ]
    first = dataclasses.replace(MANIFEST.sources[0], name="a", weight=3.0, epochs=0.5)
    sources = [
        first,
        dataclasses.replace(first, name="b", weight=1.0),
        dataclasses.replace(first, name="nothing kept", weight=9.0),
    ]
    manifest = dataclasses.replace(MANIFEST, shards=shards, sources=sources)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert manifest.shares() == {"a": 0.75, "b": 0.25}
    assert manifest.shares("val") == {"b": 1.0}
    assert manifest.tokens("train", "a") == 10
    assert manifest.shards_of("val", "a") == []
    stages = manifest.stages("20: a=1,b=3; 60: a=0, b=2")
    assert stages == [
        Stage(0, {"a": 0.75, "b": 0.25}),
        Stage(20, {"a": 0.25, "b": 0.75}),
        Stage(60, {"a": 0.0, "b": 1.0}),
    ]
    assert [tokens_by_source(stages, tokens) for tokens in (8, 40, 100)] == [
        {"a": 6.0, "b": 2.0},
        {"a": 20.0, "b": 20.0},
        {"a": 25.0, "b": 75.0},
    ]
    assert manifest.stages("a=1,b=1") == [Stage(0, {"a": 0.5, "b": 0.5})]
    for text, words in {
        "a=1,c=1": "no source of the shards is named 'c'",
        "9: a=1": "the stage at 9 tokens has no weight of b",
    }.items():
        with pytest.raises(UsageError, match=words):
            manifest.stages(text)
    with pytest.raises(UsageError, match="one source"):
        MANIFEST.stages("inputs=1")


def test_a_mixture_is_read_and_has_one_form() -> None:
    stages = [(0, {"web": 3.0, "books": 0.5}), (500_000_000, {"web": 1.0, "books": 2.0})]
    assert read_mixture("web=3,books=.5; 500M: web=1, books=2;") == stages
    text = mixture_text(stages)
    assert text == "0: web=3,books=0.5; 500000000: web=1,books=2"
    assert read_mixture(text) == stages
    assert read_mixture(mixture_text([])) == []
    for wrong in ("web", "web=x", "web=1;0: web=2", "9:web=1;3:web=1", "a=1,a=2", "a=0", "x:a=1"):
        with pytest.raises(UsageError) as error:
            read_mixture(wrong)
        assert (error.value.field, error.value.code) == ("mixture", "not_a_mixture"), wrong


def test_a_manifest_older_than_recipes_is_read(tmp_path: Path) -> None:
    table = dataclasses.asdict(MANIFEST)
    for row in table["shards"]:
        del row["source"]
    for row in table["sources"]:
        del row["weight"], row["epochs"]
    (tmp_path / "manifest.json").write_text(json.dumps(table))
    assert read_manifest(tmp_path) == MANIFEST


def test_contradictory_sources_are_refused(tmp_path: Path) -> None:
    table = dataclasses.asdict(MANIFEST)
    table["shards"][1]["source"] = "books"
    assert "train-000001.bin: source 'books' is not one of 'inputs'" in refused(tmp_path, table)
    table = dataclasses.asdict(MANIFEST)
    assert "two sources have the same name" in refused(
        tmp_path, {**table, "sources": table["sources"] * 2}
    )
    for weight in (0.0, -1.0, float("inf")):
        table["sources"][0]["weight"] = weight
        assert "is not a positive number" in refused(tmp_path, table)


def test_end_of_text_may_be_the_first_or_last_token(tmp_path: Path) -> None:
    for eot_id in (0, 256):
        write_manifest(tmp_path, dataclasses.replace(MANIFEST, eot_id=eot_id))
        assert read_manifest(tmp_path).eot_id == eot_id
    assert "end-of-text -1 is outside" in refused(
        tmp_path, dataclasses.asdict(MANIFEST) | {"eot_id": -1}
    )


def test_other_folders_are_refused_with_a_hint(tmp_path: Path) -> None:
    for folder, file, hint in (
        ("above", "shards/manifest.json", "name one of the shard folders in it: "),
        ("begun", "resume.json", "{option:resume} to finish it"),
        ("run", "run.toml", "it is a run"),
        ("texts", "a.jsonl", "gpt build-shards "),
    ):
        (tmp_path / folder / file).parent.mkdir(parents=True)
        (tmp_path / folder / file).write_text("{}")
        with pytest.raises(InputError) as caught:
            read_manifest(tmp_path / folder)
        assert hint in str(caught.value.hint)
    for path, hint in (
        ("text", f"did you mean {tmp_path / 'texts'}"),
        ("texts/a.jsonl", "gpt build-shards "),
        ("begun/resume.json", "gpt build-shards"),
    ):
        with pytest.raises(InputError) as caught:
            read_manifest(tmp_path / path)
        assert hint in str(caught.value.hint)
