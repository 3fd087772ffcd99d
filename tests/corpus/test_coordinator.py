"""Input splits are the same for the same number of readers, and workers get the build's
configuration.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest

from gptcli.corpus import build as building
from gptcli.corpus import config, coordinator, input_splits, worker_tasks
from gptcli.corpus.build import begin_build, finish_build
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.coordinator import WORK_FOLDER, all_input_splits, make_context
from gptcli.corpus.documents import Document
from gptcli.corpus.formats import scan
from gptcli.corpus.inputs import open_input
from gptcli.corpus.recipe import Comparison, DedupConfig, SourceConfig
from gptcli.shards.order import open_split
from gptcli.tokenizer.tokenizer import Tokenizer
from tests.corpus.test_damage import InProcess, whole


@pytest.fixture
def build(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> BuildConfig:
    """Return a build of two sources: JSON lines, and compressed JSON lines."""
    monkeypatch.setattr(config, "CHUNK_CHARACTERS", (100, 100))
    (tmp_path / "a.jsonl").write_text('{"text": "some text"}\n' * 50)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(bytes(range(256)) * 20, 0))
    named = {"plain": "a.jsonl", "packed": "b.jsonl.gz"}
    sources = [
        SourceConfig(name=name, inputs=[str(tmp_path / file)]) for name, file in named.items()
    ]
    return BuildConfig(
        sources=[sources[0], dataclasses.replace(sources[1], dedup=DedupConfig())],
        tokenizer=byte_tokenizer,
    )


def test_the_worker_context_has_the_configuration_of_the_build(
    build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(build, tmp_path)
    assert (tmp_path / WORK_FOLDER).is_dir()
    assert (context.chunk_characters, context.comparisons, context.encoder_name) == (
        100,
        [None, Comparison("lsh", False)],
        "tokenizers",
    )
    assert [context.needs_text_chunks(source) for source in (0, 1)] == [False, True]
    monkeypatch.setattr(coordinator, "MIN_FAST_ENCODER_BYTES", 10)
    assert make_context(build, tmp_path).encoder_name == "auto"
    assert (
        make_context(dataclasses.replace(build, encoder="tiktoken"), tmp_path).encoder_name
        == "tiktoken"
    )


def test_lines_are_split_by_bytes_and_jobs_share_compressed_files_in_stripes(
    build: BuildConfig, tmp_path: Path
) -> None:
    context = make_context(build, tmp_path)
    for readers, stripes in ((1, 1), (3, 3), (50, 8)):
        splits = list(all_input_splits(context, readers))
        assert [split.name for split in splits] == [
            split.name for split in all_input_splits(context, readers)
        ]
        ranges = [split.part for split in splits if split.source == 0]
        assert [part.start for part in ranges] == list(range(0, 50 * 22, 100))
        assert [split.part.stripe for split in splits if split.source == 1] == list(range(stripes))


@pytest.mark.parametrize("copies", [1, 11])
def test_copies_of_a_page_do_not_make_its_test_item_ordinary(
    tmp_path: Path, byte_tokenizer: Tokenizer, copies: int
) -> None:
    """N-grams of more than 10 documents are kept, but duplicates are one document."""
    item = "seven wizards watched the brown fox jump over a lazy dog in the evening light today"
    chance = random.Random(3)
    filler = [" ".join(str(chance.random()) for _ in range(60)) for _ in range(2)]
    page = f"{filler[0]} {item} {filler[1]}"
    lines = [page] * copies + [f"{number} other words" for number in range(5)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in lines))
    (tmp_path / "items.json").write_text(json.dumps([{"question": item}]))
    source = SourceConfig(
        inputs=[str(tmp_path / "a.jsonl")], dedup=DedupConfig(), decontaminate=True
    )
    build = BuildConfig(
        sources=[source],
        tokenizer=byte_tokenizer,
        evaluation=(str(tmp_path / "items.json"),),
        val_fraction=0,
    )
    begin_build(build, tmp_path / "out", resume=False, force=False)
    (made,) = finish_build(build, tmp_path / "out").sources
    assert made.dropped == ({"duplicate": copies - 1} if copies > 1 else {})
    assert made.cut == 1
    stream = open_split(tmp_path / "out", "train")
    assert "lazy dog" not in byte_tokenizer.decode(stream[0 : len(stream)].tolist())


@pytest.mark.parametrize(
    "name", ["a.csv", "a.json.gz", "a.wet", "a.tar.zst", "a.jsonl.gz", "a.txt.zst"]
)
def test_a_large_file_is_read_once_and_handed_out(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever the workers, and after a stop in the middle; a document that is bad stops it."""
    monkeypatch.setattr(config, "CHUNK_CHARACTERS", (300, 300))
    monkeypatch.setattr(building, "open_pool", lambda _, count, state: InProcess(count, state))
    chance = random.Random(2)
    documents = [f"{number} {chance.randbytes(60).hex()}" for number in range(60)]
    path = tmp_path / name
    path.write_bytes(whole(name, documents, random.Random(1)))
    reads: list[str] = []

    def counted_scan(path: str, *others: Any) -> Iterator[Document]:
        reads.append(path)
        return scan(path, *others)

    def counted_open(path: str) -> AbstractContextManager[BufferedReader]:
        reads.append(path)
        return open_input(path)

    monkeypatch.setattr(input_splits, "scan", counted_scan)
    monkeypatch.setattr(coordinator, "open_input", counted_open)
    build = BuildConfig(
        sources=[SourceConfig(inputs=[str(path)], documents="line")],
        tokenizer=byte_tokenizer,
        val_fraction=0.0,
    )

    def shards(out: Path, workers: int, *, resume: bool = False) -> list[str]:
        InProcess.readers = workers
        reads.clear()
        begin_build(build, out, resume=resume, force=False)
        manifest = finish_build(build, out, workers=workers)
        assert len(reads) == 1
        assert manifest.sources[0].documents_kept == 60
        return [shard.sha256 for shard in manifest.shards]

    (tmp_path / "plan").mkdir()
    (split,) = all_input_splits(make_context(build, tmp_path / "plan"), 1, 3)
    assert split.part.is_handed_out
    expected = shards(tmp_path / "one", 1)
    assert shards(tmp_path / "three", 3) == expected
    make_chunk, made = worker_tasks.make_chunk, []

    def stopping(*given: Any) -> Path:
        made.append(given)
        if len(made) == 5:
            raise KeyboardInterrupt
        return make_chunk(*given)

    for workers in (3, 1):
        made.clear()
        again = tmp_path / f"again{workers}"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            for module in (coordinator, worker_tasks):
                patch.setattr(module, "make_chunk", stopping)
            shards(again, 3)
        assert shards(again, workers, resume=True) == expected


@pytest.mark.parametrize(
    ("data", "reason"), [(b"\0" * 900, "damaged file"), (b"filedesc://a.arc 0\n" * 200, "not text")]
)
def test_a_large_compressed_file_without_lines_is_left_to_its_reader(
    tmp_path: Path,
    byte_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    reason: str,
) -> None:
    """Zeros, as of a disk that was full, or what no text begins with."""
    monkeypatch.setattr(config, "CHUNK_CHARACTERS", (100, 100))
    monkeypatch.setattr(building, "open_pool", lambda _, count, state: InProcess(count, state))
    path = tmp_path / "a.txt.gz"
    path.write_bytes(data if reason == "damaged file" else gzip.compress(data, 0))
    (tmp_path / "b.txt").write_text("kept")
    build = BuildConfig(
        sources=[
            SourceConfig(
                inputs=[str(path), str(tmp_path / "b.txt")], documents="line", on_error="skip"
            )
        ],
        tokenizer=byte_tokenizer,
        val_fraction=0.0,
    )
    for readers in (1, 4):
        InProcess.readers = readers
        out = tmp_path / str(readers)
        begin_build(build, out, resume=False, force=False)
        (made,) = finish_build(build, out, workers=readers).sources
        assert made.dropped == {reason: 1}
        assert made.documents_kept == 1
