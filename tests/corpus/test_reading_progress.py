"""Progress is in bytes of the inputs as they are stored, from one process or several."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from gptcli.corpus import config, reading_progress
from gptcli.corpus.build import begin_build, finish_build
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.documents import Document, FileRange
from gptcli.corpus.input_splits import InputSplit
from gptcli.corpus.inputs import open_input
from gptcli.corpus.reading_progress import ReadingProgress, reported
from gptcli.corpus.recipe import SourceConfig
from gptcli.events import Events
from gptcli.tokenizer.tokenizer import Tokenizer


class Listener(Events):
    """Listener to the progress of reading, with its facts."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, float | None, dict[str, object]]] = []

    def progress(
        self,
        task: str,
        done: float,
        total: float | None = None,
        unit: str = "",
        **facts: object,
    ) -> None:
        if task == "read":
            self.heard.append((done, total, facts))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv", "a.parquet", "a.wet"])
def test_progress_tells_how_much_of_an_input_is_read(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In bytes of the file as it is stored, while it is read and not only at its end."""
    monkeypatch.setattr(reading_progress, "INTERVAL_S", 0.0)
    monkeypatch.setattr(config, "CHUNK_CHARACTERS", (1 << 22, 1 << 22))
    lines = ["".join(random.choices("abcdef", k=800)) for _ in range(600)]
    path = tmp_path / name
    if name == "a.parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").table({"text": lines}), path)
    elif name == "a.csv":
        path.write_text("\n".join(["text", *lines]))
    elif name == "a.wet":
        head = "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 800\r\n\r\n"
        path.write_text("".join(f"{head}{line}\r\n\r\n" for line in lines), newline="")
    else:
        rows = [json.dumps({"text": line}) + "\n" for line in lines]
        path.write_bytes(gzip.compress("".join(rows).encode()))
    build = BuildConfig(
        sources=[SourceConfig(inputs=[str(path)])], tokenizer=byte_tokenizer, val_fraction=0.0
    )
    listener = Listener()
    begin_build(build, tmp_path / "out", resume=False, force=False)
    finish_build(build, tmp_path / "out", events=listener)
    heard = listener.heard
    size = path.stat().st_size / 1e6
    steps = [done for done, _, _ in heard]
    assert steps == sorted(steps)
    assert {total for _, total, _ in heard} == {size}
    assert steps[-1] == pytest.approx(size, rel=0.02)
    assert heard[-1][2]["documents"] == len(lines)
    assert len({(done, facts.get("documents", 0)) for done, _, facts in heard}) > 4


def test_the_splits_of_all_workers_are_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker reads a stripe of a file, and another one has read the other stripe."""
    monkeypatch.setattr(reading_progress, "INTERVAL_S", 0.0)
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(300_000))
    listener = Listener()
    progress = ReadingProgress(tmp_path, 300_000, listener)
    splits = [
        InputSplit(0, 0, (str(path),), FileRange(stripe=stripe, stripes=2, block=1))
        for stripe in range(2)
    ]
    handed = list(progress.hand_out(splits))
    assert handed == splits
    documents = [(number, Document("", "", number)) for number in range(10)]
    with reported(tmp_path, splits[0], documents) as passed, open_input(str(path)) as stream:
        stream.read()
        assert len(list(passed)) == 10
    progress.tick()
    assert listener.heard[-1] == (0.15, 0.3, {"documents": 5})
    progress.finish(splits[1].name)  # of an earlier attempt: no file, but its size is known
    assert listener.heard[-1][0] == pytest.approx(0.3)
    progress.finish(splits[0].name)
    assert listener.heard[-1] == (0.3, 0.3, {"documents": 5})
    assert not list((tmp_path / "reading").iterdir())
