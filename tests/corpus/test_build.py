"""Documents become shards with the same bytes whatever happens on the way, in one run or in the jobs of
a job array.
"""

from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import json
import os
import random
import stat
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gptcli.corpus import build as building
from gptcli.corpus import config
from gptcli.corpus.build import (
    JobSlice,
    begin_build,
    begin_slice,
    finish_build,
    finish_slice,
    missing_slices,
    parse_job_slice,
)
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.coordinator import WORK_FOLDER
from gptcli.corpus.recipe import DedupConfig, SourceConfig
from gptcli.errors import InputError, UsageError
from gptcli.events import Events
from gptcli.files import sha256
from gptcli.shards.format import document_lengths, open_shard
from gptcli.shards.manifest import SPLITS, Manifest, Split, read_manifest
from gptcli.shards.order import open_split
from gptcli.tokenizer.encoders import EncoderName
from gptcli.tokenizer.load import load_tokenizer
from gptcli.tokenizer.tokenizer import Tokenizer, byte_alphabet


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks so small that a corpus of a few kilobytes has several."""
    monkeypatch.setattr(config, "CHUNK_CHARACTERS", (2000, 4000))


def texts(count: int = 120) -> list[str]:
    chance = random.Random(1)
    return [f"document {number} " + "word " * chance.randrange(40) for number in range(count)]


@pytest.fixture
def build(tmp_path: Path, byte_tokenizer: Tokenizer) -> BuildConfig:
    """Return a build of two inputs: 120 documents and a blank one, then 40 copies of the first."""
    lines = texts()
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in [*lines, " "])
    )
    (tmp_path / "b.txt").write_text("\n".join(lines[:1] * 40))
    inputs = [str(tmp_path / name) for name in ("a.jsonl", "b.txt")]
    return BuildConfig(
        sources=[SourceConfig(inputs=inputs, documents="line")],
        tokenizer=byte_tokenizer,
        val_fraction=0.2,
        shard_tokens=3000,
    )


def with_source(build: BuildConfig, **changes: Any) -> BuildConfig:
    """Return the build with `changes` to its one source."""
    return dataclasses.replace(build, sources=[dataclasses.replace(build.sources[0], **changes)])


def run(build: BuildConfig, out: Path, workers: int = 1, **how: bool) -> Manifest:
    assert begin_build(build, out, resume=how.get("resume", False), force=how.get("force", False))
    return finish_build(build, out, workers=workers)


def contents(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file."""
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def documents(folder: Path, tokenizer: Tokenizer, split: Split) -> list[str]:
    """Return the texts of a split, in order. Each document must begin with an end-of-text."""
    found = []
    for shard in read_manifest(folder).shards_of(split):
        tokens, start = open_shard(folder / shard.file), 0
        for length in document_lengths(folder / shard.file).tolist():
            assert tokens[start] == tokenizer.eot_id
            found.append(tokenizer.decode(tokens[start + 1 : start + length].tolist()))
            start += length
    return found


def test_every_document_is_written_once_to_the_split_of_its_hash(
    build: BuildConfig, tmp_path: Path
) -> None:
    manifest = run(build, tmp_path / "out")
    expected = texts() + texts()[:1] * 40
    sides = {split: documents(tmp_path / "out", build.tokenizer, split) for split in SPLITS}
    assert Counter(sides["train"] + sides["val"]) == Counter(expected)
    for text in expected:
        value = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        assert text in sides["val" if value < 0.2 * 2**64 else "train"]
    assert not set(sides["train"]) & set(sides["val"])
    assert 10 < len(sides["val"]) < 40
    source = manifest.sources[0]
    assert (source.documents_in, source.documents_kept, source.dropped) == (161, 160, {"blank": 1})
    assert source.text_bytes == sum(len(text.encode()) for text in expected)
    assert (
        source.tokens
        == manifest.tokens("train") + manifest.tokens("val")
        == source.text_bytes + 160
    )


def test_the_folder_has_exactly_the_documented_files(build: BuildConfig, tmp_path: Path) -> None:
    manifest = run(build, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    shards = [shard.file for shard in manifest.shards]
    assert len(manifest.shards_of("train")) > 2
    assert shards == sorted(shards)
    assert names == {
        "manifest.json",
        "report.md",
        "resume.json",
        "tokenizer.json",
        *shards,
        *(name[:-3] + "idx" for name in shards),
    }
    assert manifest == read_manifest(tmp_path / "out")
    assert (manifest.vocab_size, manifest.eot_id, manifest.seed, manifest.val_fraction) == (
        257,
        256,
        0,
        0.2,
    )
    assert manifest.tokenizer_sha256 == load_tokenizer(tmp_path / "out").sha256
    assert all(shard.tokens <= 3000 for shard in manifest.shards)
    assert all(
        len(open_split(tmp_path / "out", split)) == manifest.tokens(split) for split in SPLITS
    )


def test_documents_are_shuffled_globally_and_by_seed(build: BuildConfig, tmp_path: Path) -> None:
    run(build, tmp_path / "0")
    run(dataclasses.replace(build, seed=1), tmp_path / "1")
    expected = texts() + texts()[:1] * 40
    orders = [documents(tmp_path / name, build.tokenizer, "train") for name in ("0", "1")]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])  # the split does not depend on the seed
    for order in orders:
        places = [expected.index(text) for text in order if text != expected[0]]
        ups = sum(after > before for before, after in pairwise(places))
        # Neighbors in the shards were not neighbors in the input.
        assert 0.35 < ups / len(places) < 0.65


@pytest.mark.parametrize("workers", [2, 4])
def test_the_bytes_do_not_depend_on_the_workers(
    build: BuildConfig, tmp_path: Path, workers: int
) -> None:
    run(build, tmp_path / "one")
    run(build, tmp_path / "many", workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


@pytest.mark.parametrize("encoder", ["tiktoken", "gigatoken"])
def test_the_bytes_do_not_depend_on_the_encoder(
    build: BuildConfig, tmp_path: Path, encoder: EncoderName
) -> None:
    pytest.importorskip(encoder)
    run(build, tmp_path / "auto")
    run(dataclasses.replace(build, encoder=encoder), tmp_path / encoder)
    assert contents(tmp_path / "auto") == contents(tmp_path / encoder)


def test_the_bytes_do_not_depend_on_the_chunk_size(
    build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(build, tmp_path / "small")
    monkeypatch.setattr(config, "CHUNK_CHARACTERS", (10**6, 10**6))
    run(build, tmp_path / "large")
    assert contents(tmp_path / "small") == contents(tmp_path / "large")


def test_chunks_of_another_size_are_not_reused(
    build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(build, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(building, "_check_splits", lambda *_: (_ for _ in ()).throw(StoppedError()))
        run(build, tmp_path / "out")
    monkeypatch.setattr(config, "CHUNK_CHARACTERS", (3000, 3000))
    run(build, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_document_longer_than_a_shard_is_a_shard_by_itself(
    build: BuildConfig, tmp_path: Path
) -> None:
    build = dataclasses.replace(build, shard_tokens=20)
    shards = run(build, tmp_path / "out").shards
    assert all(shard.documents == 1 for shard in shards if shard.tokens > 20)
    assert any(shard.tokens > 20 for shard in shards)


class StoppedError(Exception):
    """Error that ends a build and is not the input's fault."""


@pytest.mark.parametrize(
    "kind", [StoppedError(), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_build_stopped_before_any_write_resumes_to_the_same_bytes(
    build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: BaseException
) -> None:
    """Stop at each file in turn: no file is half written, and a resume ends in the same bytes."""
    fsync, synced = os.fsync, 0

    def counted(handle: int) -> None:
        nonlocal synced
        if stat.S_ISREG(os.fstat(handle).st_mode):
            synced += 1
            if synced == stop:
                raise kind
        fsync(handle)

    monkeypatch.setattr(os, "fsync", counted)
    stop = -1
    run(build, tmp_path / "whole")
    expected, total = contents(tmp_path / "whole"), synced
    assert total > 30
    for stop in [1, *range(total, 1, -2)]:
        out, synced = tmp_path / f"stopped-{stop}", 0
        with pytest.raises(type(kind)):
            run(build, out)
        assert not (out / "manifest.json").exists()
        assert not list(out.rglob("*.partial"))
        run(build, out, resume=True)
        assert contents(out) == expected


def test_finished_work_is_not_made_again(
    build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise StoppedError

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(building, "write_report", stop)
        run(build, out)
    made = {
        path: path.stat().st_mtime_ns for path in [*out.glob("*.bin"), *(out / ".work").iterdir()]
    }
    assert len(made) > 10
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(building, "write_report", stop)
        run(build, out, resume=True)
    assert made == {path: path.stat().st_mtime_ns for path in made}


def test_a_lost_shard_is_made_again(
    build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(build, tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(building, "write_manifest", lambda *_: (_ for _ in ()).throw(StoppedError()))
        run(build, out)
    (out / "train-000001.bin").unlink()
    run(build, out, resume=True)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_build_is_left_alone(build: BuildConfig, tmp_path: Path) -> None:
    run(build, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert not begin_build(build, tmp_path / "out", resume=True, force=False)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_a_finished_build_with_a_damaged_shard_is_not_called_finished(
    build: BuildConfig, tmp_path: Path
) -> None:
    run(build, tmp_path / "out")
    (tmp_path / "out/val-000000.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"val-000000.bin: truncated"):
        begin_build(build, tmp_path / "out", resume=True, force=False)


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_build_cannot_be_resumed(
    build: BuildConfig, tmp_path: Path, finished: bool
) -> None:
    out = tmp_path / "out"
    assert begin_build(build, out, resume=False, force=False)
    if finished:
        finish_build(build, out)

    def refusal(other: BuildConfig) -> str:
        with pytest.raises(UsageError) as caught:
            begin_build(other, out, resume=True, force=False)
        assert "force" in str(caught.value)
        return str(caught.value)

    other = Tokenizer([*byte_alphabet(), "ab", "<|endoftext|>"], [("a", "b")])
    assert "seed was 0, now 5" in refusal(dataclasses.replace(build, seed=5))
    assert "val_fraction was 0.2, now 0.1" in refusal(dataclasses.replace(build, val_fraction=0.1))
    assert "shard_tokens was 3000, now 4" in refusal(dataclasses.replace(build, shard_tokens=4))
    assert "documents was line, now file" in refusal(with_source(build, documents="file"))
    assert "tokenizer was" in refusal(dataclasses.replace(build, tokenizer=other))
    assert "b.txt is no longer an input" in refusal(with_source(build, inputs=build.inputs[:1]))
    (tmp_path / "c.txt").write_text("more")
    assert "c.txt is a new input" in refusal(
        with_source(build, inputs=[*build.inputs, str(tmp_path / "c.txt")])
    )
    with open(tmp_path / "b.txt", "a") as file:
        file.write("\nmore")
    assert "b.txt has changed" in refusal(build)


def test_foreign_folders_are_refused(build: BuildConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is inside the output folder"):
        begin_build(build, tmp_path, resume=False, force=True)
    assert (tmp_path / "a.jsonl").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").touch()
    with pytest.raises(UsageError, match=r"not empty\n.*resume.*force"):
        begin_build(build, tmp_path / "out", resume=False, force=False)
    with pytest.raises(UsageError, match="there is no build to resume"):
        begin_build(build, tmp_path / "out", resume=True, force=False)
    assert (tmp_path / "out/precious").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_input_empties_the_folder(
    build: BuildConfig, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "good"}\n{"text": \n')
    build = with_source(build, inputs=[*build.inputs, str(tmp_path / "c.jsonl")])
    with pytest.raises(InputError, match=r"c.jsonl:2: not valid JSON"):
        run(build, tmp_path / "out", workers)
    assert not (tmp_path / "out").exists()


def test_a_broken_input_keeps_the_work_of_an_earlier_attempt(
    build: BuildConfig, tmp_path: Path
) -> None:
    """The last of three files is broken, and the first attempt was stopped before it was read."""
    (tmp_path / "c.jsonl").write_text('{"text": \n')
    build = with_source(build, inputs=[*build.inputs, str(tmp_path / "c.jsonl")])
    out = tmp_path / "out"
    assert begin_build(build, out, resume=False, force=False)
    (out / WORK_FOLDER).mkdir()
    (out / WORK_FOLDER / "unit-whole").write_bytes(b"kept")
    assert begin_build(build, out, resume=True, force=False)
    with pytest.raises(InputError, match=r"c.jsonl:1: not valid JSON"):
        finish_build(build, out)
    assert (out / WORK_FOLDER / "unit-whole").read_bytes() == b"kept"


def test_a_build_without_text_counts_the_reasons(build: BuildConfig, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": 1}\n{"text": ""}\n{"body": "b"}\n')
    alone = with_source(build, inputs=[str(tmp_path / "c.jsonl")], on_error="skip")
    with pytest.raises(
        InputError, match=r"no text in the inputs \(dropped: blank: 1, no text field: 2\)"
    ):
        run(alone, tmp_path / "out")


class Heard(Events):
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.tasks: dict[str, float] = {}

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def progress(
        self, task: str, done: float, total: float | None = None, unit: str = "", **facts: object
    ) -> None:
        self.tasks[task] = done


def test_an_empty_split_is_a_warning_or_an_error(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("\n".join(texts(100)))
    build = BuildConfig(
        sources=[SourceConfig(inputs=[str(tmp_path / "a.txt")])],
        tokenizer=byte_tokenizer,
        val_fraction=1e-9,
    )
    for kind, advice in (
        ("file", "documents paragraph"),
        ("line", "raise it: 0.1 would choose about 10 documents"),
    ):
        heard = Heard()
        one = with_source(build, documents=kind)
        begin_build(one, tmp_path / kind, resume=False, force=False)
        assert finish_build(one, tmp_path / kind, events=heard).shards_of("val") == []
        assert len(heard.warnings) == 1
        assert "the validation split is empty" in heard.warnings[0]
        assert advice in heard.warnings[0]
    with pytest.raises(InputError, match="the val split is empty"):
        open_split(tmp_path / "line", "val")
    few = dataclasses.replace(with_source(build, documents="line"), val_fraction=0.03)
    heard = Heard()
    begin_build(few, tmp_path / "few", resume=False, force=False)
    made = finish_build(few, tmp_path / "few", events=heard)
    documents = sum(shard.documents for shard in made.shards_of("val"))
    assert 0 < documents < 10
    assert (
        f"is small, and a loss on it says little: val_fraction 0.03 chose {documents} of 100"
        in (heard.warnings[0])
    )
    assert "raise it: 0.1 would choose about 10 documents" in heard.warnings[0]
    heard = Heard()
    none = dataclasses.replace(build, val_fraction=0.0)
    begin_build(none, tmp_path / "none", resume=False, force=False)
    finish_build(none, tmp_path / "none", events=heard)
    assert heard.warnings == []
    with pytest.raises(InputError, match="validation has all 1 document, and none is left"):
        run(dataclasses.replace(build, val_fraction=1 - 1e-12), tmp_path / "val")
    (tmp_path / "a.txt").write_text(" \n \n")
    with pytest.raises(InputError, match="there is no text in the inputs"):
        run(build, tmp_path / "blank")


@pytest.mark.parametrize("change", ["grows", "is gone"])
def test_an_input_that_changes_while_it_is_read_is_a_warning(
    tmp_path: Path, byte_tokenizer: Tokenizer, change: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(texts(30)))
    source = SourceConfig(inputs=[str(path)], documents="line")
    build = BuildConfig(sources=[source], tokenizer=byte_tokenizer, val_fraction=0.0)

    class Changing(Heard):
        def finish(self, task: str) -> None:
            if task == "tokenize" and change == "grows":
                path.write_text("\n".join(texts(40)))
            elif task == "tokenize":
                path.unlink()

    heard = Changing()
    begin_build(build, tmp_path / "out", resume=False, force=False)
    finish_build(build, tmp_path / "out", events=heard)
    assert len(heard.warnings) == 1
    assert heard.warnings[0].startswith(f"{path}: changed while the build read it")


def test_a_source_left_without_documents_is_a_warning(
    tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "b.txt").write_text("")
    sources = [
        SourceConfig(name=name, inputs=[str(tmp_path / f"{name}.txt")], weight=weight)
        for name, weight in (("a", 1), ("b", 22))
    ]
    build, heard = BuildConfig(sources=sources, tokenizer=byte_tokenizer, val_fraction=0.0), Heard()
    begin_build(build, tmp_path / "out", resume=False, force=False)
    manifest = finish_build(build, tmp_path / "out", events=heard)
    assert heard.warnings == [
        "b has no documents left to train on: its weight of 22 goes to the other sources"
    ]
    assert manifest.shares() == {"a": 1.0}
    assert manifest.sources[1].dropped == {"empty file": 1}


def test_a_source_that_is_read_too_often_is_a_warning(
    build: BuildConfig, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    (tmp_path / "small.txt").write_text("\n".join(texts(3)))
    small = SourceConfig(name="small", inputs=[str(tmp_path / "small.txt")], documents="line")
    for weight, warnings in ((0.1, 0), (9.0, 1)):
        sources = [build.sources[0], dataclasses.replace(small, weight=weight)]
        both = dataclasses.replace(build, sources=sources, val_fraction=0.0)
        heard = Heard()
        begin_build(both, tmp_path / "out", resume=False, force=True)
        finish_build(both, tmp_path / "out", events=heard)
        assert sum("of small would be read" in text for text in heard.warnings) == warnings


def test_progress_counts_all_documents_after_a_resume(
    build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    begin_build(build, tmp_path / "out", resume=False, force=False)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(building, "write_report", lambda *_: (_ for _ in ()).throw(StoppedError()))
        finish_build(build, tmp_path / "out")
    manifest = finish_build(build, tmp_path / "out", events=heard)
    assert heard.tasks["tokenize"] == pytest.approx(manifest.sources[0].text_bytes / 1e6)


def test_a_large_vocabulary_is_written_in_uint32(build: BuildConfig, tmp_path: Path) -> None:
    tokens = [*byte_alphabet(), *(f"a{number}" for number in range(65_536 - 257)), "<|endoftext|>"]
    manifest = run(dataclasses.replace(build, tokenizer=Tokenizer(tokens, [])), tmp_path / "out")
    stream = open_split(tmp_path / "out", "train")
    assert (manifest.vocab_size, stream.dtype.name, int(stream[0:1][0])) == (
        65_536,
        "uint32",
        65_535,
    )


def test_the_report_shows_what_is_in_the_shards(build: BuildConfig, tmp_path: Path) -> None:
    manifest = run(build, tmp_path / "out")
    report = (tmp_path / "out/report.md").read_text()
    first = documents(tmp_path / "out", build.tokenizer, "val")[0]
    assert (
        "| read | 161 | 100.0% | 161 | 100.0% |\n| dropped: blank | 1 | 0.6% | 160 | 99.4% |\n"
        "| kept | 160 | 99.4% | 160 | 99.4% |" in report
    )
    assert f"| train | {len(manifest.shards_of('train'))} |" in report
    assert f"## val, document 1\n\n    {first[:60].rstrip()}" in report
    assert build.inputs[0] in report


@pytest.fixture
def sliced_build(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> BuildConfig:
    """Return a build of two sources of many chunks.

    The lines of one can be split by bytes. The other is compressed and deduplicated.
    """
    monkeypatch.setattr(config, "CHUNK_CHARACTERS", (2000, 2000))
    chance = random.Random(1)
    lines = [
        f"document {number} " + " ".join(str(chance.random()) for _ in range(chance.randrange(30)))
        for number in range(120)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    again = "".join(json.dumps({"text": text}) + "\n" for text in [*lines[:80], *lines[20:60]])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(again.encode(), mtime=0))
    sources = [
        SourceConfig(name="plain", inputs=[str(tmp_path / "a.jsonl")]),
        SourceConfig(name="compared", inputs=[str(tmp_path / "b.jsonl.gz")], dedup=DedupConfig()),
    ]
    return BuildConfig(
        sources=sources, tokenizer=byte_tokenizer, val_fraction=0.2, shard_tokens=5000
    )


def resume_and_finish(sliced_build: BuildConfig, out: Path) -> Manifest:
    assert begin_build(sliced_build, out, resume=out.exists(), force=False)
    return finish_build(sliced_build, out)


def shard_contents(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file but the record, which has the number of slices."""
    return {path.name: sha256(path) for path in folder.iterdir() if path.name != "resume.json"}


@pytest.fixture
def expected(sliced_build: BuildConfig, tmp_path: Path) -> dict[str, str]:
    manifest = resume_and_finish(sliced_build, tmp_path / "one")
    assert len(manifest.shards) > 5
    assert manifest.sources[1].dropped["duplicate"] >= 40
    return shard_contents(tmp_path / "one")


@pytest.mark.parametrize("count", [1, 3, 5])
def test_slices_in_any_order_make_the_bytes_of_one_run(
    sliced_build: BuildConfig, tmp_path: Path, expected: dict[str, str], count: int
) -> None:
    out = tmp_path / "parts"
    for number in [*range(count, 0, -1), 1]:  # slice 1 again, which is done
        begin_slice(sliced_build, out, JobSlice(number, count))
        finish_slice(sliced_build, out, JobSlice(number, count))
    assert missing_slices(out, count) == []
    resume_and_finish(sliced_build, out)
    assert shard_contents(out) == expected
    assert not begin_build(sliced_build, out, resume=True, force=False)


def test_the_last_run_reads_no_documents(
    sliced_build: BuildConfig,
    tmp_path: Path,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "parts"
    read = 0
    for number in (1, 2):
        begin_slice(sliced_build, out, JobSlice(number, 2))
        read += finish_slice(sliced_build, out, JobSlice(number, 2)).read
    assert read == 240
    monkeypatch.setattr(
        "gptcli.corpus.worker_tasks.numbered_documents",
        lambda *_: pytest.fail("documents were read again"),
    )
    resume_and_finish(sliced_build, out)
    assert shard_contents(out) == expected


@pytest.mark.parametrize("stop", ["read_task", "write_json"])
def test_a_stopped_slice_continues(
    sliced_build: BuildConfig,
    tmp_path: Path,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    stop: str,
) -> None:
    out, job = tmp_path / "parts", JobSlice(1, 2)
    begin_slice(sliced_build, out, job)
    calls = 0
    original: Callable[..., object] = getattr(building, stop)

    def failing(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == (3 if stop == "read_task" else 1):
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(building, stop, failing)
        finish_slice(sliced_build, out, job)
    assert missing_slices(out, 2) == [1, 2]
    for number in (2, 1):
        begin_slice(sliced_build, out, JobSlice(number, 2))
        finish_slice(sliced_build, out, JobSlice(number, 2))
    resume_and_finish(sliced_build, out)
    assert shard_contents(out) == expected


def test_the_last_run_needs_all_slices(sliced_build: BuildConfig, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    for number in (1, 3):
        begin_slice(sliced_build, out, JobSlice(number, 4))
        finish_slice(sliced_build, out, JobSlice(number, 4))
    with pytest.raises(UsageError, match=r"of 4 parts 2, 4 are not done\n.*part 2/4"):
        begin_build(sliced_build, out, resume=True, force=False)
    with pytest.raises(UsageError, match="parts was 4, now 5"):
        begin_slice(sliced_build, out, JobSlice(2, 5))
    with pytest.raises(UsageError, match="not empty"):
        begin_build(sliced_build, out, resume=False, force=False)


def test_foreign_folders_and_standard_input_cannot_be_sliced(
    sliced_build: BuildConfig, tmp_path: Path
) -> None:
    begin_build(sliced_build, tmp_path / "whole", resume=False, force=False)
    with pytest.raises(UsageError, match="parts was None, now 2"):
        begin_slice(sliced_build, tmp_path / "whole", JobSlice(1, 2))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    with pytest.raises(UsageError, match="not empty"):
        begin_slice(sliced_build, tmp_path / "full", JobSlice(1, 2))
    with pytest.raises(UsageError, match="is inside the output folder"):
        begin_slice(sliced_build, tmp_path, JobSlice(1, 2))
    stdin = BuildConfig(sources=[SourceConfig(inputs=["-"])], tokenizer=sliced_build.tokenizer)
    with pytest.raises(UsageError, match="standard input cannot be read in parts"):
        begin_slice(stdin, tmp_path / "out", JobSlice(1, 2))


def test_a_broken_input_keeps_the_chunks_of_other_slices(
    sliced_build: BuildConfig, tmp_path: Path
) -> None:
    out = tmp_path / "parts"
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write("no json\n")
    begin_slice(sliced_build, out, JobSlice(1, 1))
    with pytest.raises(InputError, match="not valid JSON"):
        finish_slice(sliced_build, out, JobSlice(1, 1))
    assert list((out / WORK_FOLDER).glob("unit-*"))


def test_slices_are_parsed_from_their_names() -> None:
    assert [parse_job_slice(text) for text in ("1/1", "3/16")] == [JobSlice(1, 1), JobSlice(3, 16)]
    for text in ("0/4", "5/4", "3", "a/b", "-1/4", "1/4/2", ""):
        with pytest.raises(UsageError, match="is not a part"):
            parse_job_slice(text)
