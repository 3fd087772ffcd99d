"""The documents of a build as text: exactly those of the shards, whatever the workers and the format."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import zstandard

from gptcli.corpus import build as building
from gptcli.corpus import config
from gptcli.corpus.build import begin_build, finish_build
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.recipe import CleanConfig, DedupConfig, SourceConfig
from gptcli.errors import UsageError
from gptcli.shards.manifest import Manifest
from gptcli.shards.order import open_split
from gptcli.tokenizer.tokenizer import Tokenizer
from tests.corpus.test_damage import InProcess

ITEM = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi"


@pytest.fixture
def build(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> BuildConfig:
    """Return a build of two sources: one is filtered, deduplicated and decontaminated."""
    monkeypatch.setattr(config, "CHUNK_CHARACTERS", (2000, 2000))
    monkeypatch.setattr(building, "open_pool", lambda _, count, state: InProcess(count, state))
    chance = Random(3)
    words = [f"{first}{second}" for first in "bcdfgh" for second in "aeiou"]
    texts = [" ".join(chance.choices(words, k=60)) for _ in range(60)]
    texts[5] = "few words"
    texts[20] = texts[3]
    texts[30] = (
        " ".join(chance.choices(words, k=250))
        + f" {ITEM} "
        + " ".join(chance.choices(words, k=250))
    )
    rows = [{"text": text, "url": f"http://a/{number}"} for number, text in enumerate(texts)]
    lines = [*map(json.dumps, rows), "broken", json.dumps({"text": " "})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.txt").write_text("\n".join(texts[40:50]))
    (tmp_path / "eval.txt").write_text(ITEM)
    sources = [
        SourceConfig(
            name="web",
            inputs=[str(tmp_path / "a.jsonl")],
            on_error="skip",
            clean=CleanConfig(min_words=10),
            filters=["gopher_repetition"],
            dedup=DedupConfig(),
            decontaminate=True,
        ),
        SourceConfig(name="books", inputs=[str(tmp_path / "b.txt")], documents="line"),
    ]
    return BuildConfig(
        sources=sources,
        tokenizer=byte_tokenizer,
        evaluation=(str(tmp_path / "eval.txt"),),
        val_fraction=0.0,
    )


def run(build: BuildConfig, out: Path, readers: int = 1) -> Manifest:
    InProcess.readers = readers
    begin_build(build, out, resume=False, force=False)
    return finish_build(build, out, workers=readers)


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        return [{**row, "scores": dict(row["scores"])} for row in table.to_pylist()]
    data = path.read_bytes()
    if path.suffix == ".zst":
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
            data = stream.read()
    return [json.loads(line) for line in data.splitlines()]


def shard_texts(folder: Path, tokenizer: Tokenizer) -> list[str]:
    tokens = open_split(folder, "train", verify=False)
    found: list[list[int]] = []
    for token in tokens[0 : len(tokens)].tolist():
        if token == tokenizer.eot_id:
            found.append([])
        else:
            found[-1].append(token)
    return [tokenizer.decode(ids) for ids in found]


def test_the_texts_are_those_of_the_shards(build: BuildConfig, tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl.zst"
    manifest = run(dataclasses.replace(build, text_out=path, text_dropped=True), tmp_path / "out")
    rows = rows_of(path)
    kept = [row["text"] for row in rows if row["kept"]]
    assert Counter(kept) == Counter(shard_texts(tmp_path / "out", build.tokenizer))
    for source in manifest.sources:
        mine = [row for row in rows if row["source"] == source.name]
        pieces = sum(", piece " in row["id"] for row in mine)
        assert len(mine) == source.documents_in + source.pieces
        assert pieces == 2 * source.pieces
        assert dict(Counter(row["reason"] for row in mine if not row["kept"])) == source.dropped
    assert {"duplicate", "too few words", "not valid JSON", "blank"} <= {
        row["reason"] for row in rows
    }
    assert manifest.sources[0].cut == 1
    web = [row for row in rows if row["source"] == "web"]
    assert [row["id"] for row in web[:2]] == [
        f"{tmp_path / 'a.jsonl'}, at {at}" for at in (0, len(json.dumps(first_line(web))) + 1)
    ]
    assert web[0]["url"] == "http://a/0"
    assert web[0]["scores"]["gopher_repetition: duplicate lines"] == 0
    assert web[5]["text"] == "few words"


def first_line(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return the first line of the input."""
    return {"text": rows[0]["text"], "url": rows[0]["url"]}


def test_the_bytes_do_not_depend_on_workers_or_interruptions(
    build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for readers in (1, 2, 4):
        files.append(tmp_path / f"{readers}.jsonl.zst")
        run(dataclasses.replace(build, text_out=files[-1]), tmp_path / f"out{readers}", readers)
    # Killed before the shards are written, and resumed.
    files.append(tmp_path / "again.jsonl.zst")
    resumed = dataclasses.replace(build, text_out=files[-1])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(building, "write_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(resumed, tmp_path / "again")
    assert not files[-1].exists()
    begin_build(resumed, tmp_path / "again", resume=True, force=False)
    finish_build(resumed, tmp_path / "again")
    assert len({file.read_bytes() for file in files}) == 1
    assert all(row["kept"] for row in rows_of(files[0]))
    with pytest.raises(UsageError, match="text_out was kept, now all"):
        other = dataclasses.replace(resumed, text_dropped=True)
        begin_build(other, tmp_path / "again", resume=True, force=False)


def test_every_format_has_the_same_rows(build: BuildConfig, tmp_path: Path) -> None:
    found = []
    for name in ("c.jsonl.zst", "c.jsonl", "c.parquet"):
        path = tmp_path / name
        run(dataclasses.replace(build, text_out=path, text_dropped=True), tmp_path / f"out-{name}")
        found.append(rows_of(path))
    for one, two, three in zip(*found, strict=True):
        assert one == two == three


def test_a_file_of_another_kind_is_refused(build: BuildConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in .jsonl.zst, .jsonl, .parquet"):
        dataclasses.replace(build, text_out=tmp_path / "a.csv")
    over = dataclasses.replace(build, text_out=tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match="is an input"):
        begin_build(over, tmp_path / "out", resume=False, force=True)
    with pytest.raises(UsageError, match="needs a file"):
        dataclasses.replace(build, text_dropped=True)
