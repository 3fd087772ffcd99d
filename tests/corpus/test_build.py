"""Documents to shards: what comes out, and that it comes out the same whatever happens on the
way.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import random
import stat
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from gptcli import files
from gptcli.corpus import build as building
from gptcli.corpus import config
from gptcli.corpus.build import begin, finish
from gptcli.corpus.config import Build
from gptcli.corpus.coordinator import WORK
from gptcli.corpus.recipe import Source
from gptcli.errors import InputError, UsageError
from gptcli.events import Events
from gptcli.files import sha256
from gptcli.shards.format import document_lengths, open_shard
from gptcli.shards.loader import open_split
from gptcli.shards.manifest import Manifest, read_manifest
from gptcli.tokenizer.tokenizer import Tokenizer, byte_alphabet, load_tokenizer

SPLITS = ("train", "val")


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a corpus of a few kilobytes has several units."""
    monkeypatch.setattr(config, "UNIT_CHARACTERS", (2000, 4000))


def texts(count: int = 120) -> list[str]:
    chance = random.Random(1)
    return [f"document {number} " + "word " * chance.randrange(40) for number in range(count)]


@pytest.fixture
def build(tmp_path: Path, byte_tokenizer: Tokenizer) -> Build:
    """Two inputs: 120 documents of text and a blank one, then 40 that repeat the first."""
    lines = texts()
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in [*lines, " "])
    )
    (tmp_path / "b.txt").write_text("\n".join(lines[:1] * 40))
    inputs = [str(tmp_path / name) for name in ("a.jsonl", "b.txt")]
    return Build(
        sources=[Source(inputs=inputs, documents="line")],
        tokenizer=byte_tokenizer,
        val_fraction=0.2,
        shard_tokens=3000,
    )


def with_source(build: Build, **changes: object) -> Build:
    """The same build, but for something about its one source."""
    return dataclasses.replace(build, sources=[dataclasses.replace(build.sources[0], **changes)])


def run(build: Build, out: Path, workers: int = 1, **how: bool) -> Manifest:
    assert begin(build, out, resume=how.get("resume", False), force=how.get("force", False))
    return finish(build, out, workers=workers)


def contents(folder: Path) -> dict[str, str]:
    """Every file and its SHA-256."""
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def documents(folder: Path, tokenizer: Tokenizer, split: str) -> list[str]:
    """The texts of a split, in order, by way of the shards' own document borders; each must begin
    with an end-of-text.
    """
    found = []
    for shard in read_manifest(folder).of(split):
        tokens, start = open_shard(folder / shard.file), 0
        for length in document_lengths(folder / shard.file).tolist():
            assert tokens[start] == tokenizer.eot_id
            found.append(tokenizer.decode(tokens[start + 1 : start + length].tolist()))
            start += length
    return found


def test_every_document_comes_out_once_on_the_side_of_its_hash(
    build: Build, tmp_path: Path
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


def test_the_folder(build: Build, tmp_path: Path) -> None:
    manifest = run(build, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    shards = [shard.file for shard in manifest.shards]
    assert len(manifest.of("train")) > 2
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


def test_documents_are_shuffled_globally_and_by_seed(build: Build, tmp_path: Path) -> None:
    run(build, tmp_path / "0")
    run(dataclasses.replace(build, seed=1), tmp_path / "1")
    expected = texts() + texts()[:1] * 40
    orders = [documents(tmp_path / name, build.tokenizer, "train") for name in ("0", "1")]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])  # the split does not depend on the seed
    for order in orders:
        places = [expected.index(text) for text in order if text != expected[0]]
        ups = sum(after > before for before, after in pairwise(places))
        # neighbours in the shards were no neighbours in the input
        assert 0.35 < ups / len(places) < 0.65


@pytest.mark.parametrize("workers", [2, 4])
def test_the_bytes_do_not_depend_on_the_workers(build: Build, tmp_path: Path, workers: int) -> None:
    run(build, tmp_path / "one")
    run(build, tmp_path / "many", workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


@pytest.mark.parametrize("encoder", ["tiktoken", "gigatoken"])
def test_the_bytes_do_not_depend_on_the_encoder(build: Build, tmp_path: Path, encoder: str) -> None:
    pytest.importorskip(encoder)
    run(build, tmp_path / "auto")
    run(dataclasses.replace(build, encoder=encoder), tmp_path / encoder)
    assert contents(tmp_path / "auto") == contents(tmp_path / encoder)


def test_the_bytes_do_not_depend_on_the_units(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(build, tmp_path / "small")
    monkeypatch.setattr(config, "UNIT_CHARACTERS", (10**6, 10**6))
    run(build, tmp_path / "large")
    assert contents(tmp_path / "small") == contents(tmp_path / "large")


def test_units_of_another_size_are_not_taken_for_ours(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(build, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(building, "_check_splits", lambda *_: (_ for _ in ()).throw(StoppedError()))
        run(build, tmp_path / "out")
    monkeypatch.setattr(config, "UNIT_CHARACTERS", (3000, 3000))
    run(build, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_document_longer_than_a_shard_has_its_own(build: Build, tmp_path: Path) -> None:
    build = dataclasses.replace(build, shard_tokens=20)
    shards = run(build, tmp_path / "out").shards
    assert all(shard.documents == 1 for shard in shards if shard.tokens > 20)
    assert any(shard.tokens > 20 for shard in shards)


class StoppedError(Exception):
    """Stands for whatever ends a build that is not the input's fault."""


@pytest.mark.parametrize(
    "kind", [StoppedError(), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_stopped_before_any_write_and_resumed(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: BaseException
) -> None:
    """At each file in turn: nothing half-written, and a resume ends in the bytes of a build that
    was left alone.
    """
    fsync, synced = os.fsync, 0

    def counted(handle: int) -> None:
        nonlocal synced
        if stat.S_ISREG(os.fstat(handle).st_mode):
            synced += 1
            if synced == stop:
                raise kind
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", counted)
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


def test_what_is_whole_is_not_made_again(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(build, tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(building, "write_manifest", lambda *_: (_ for _ in ()).throw(StoppedError()))
        run(build, out)
    (out / "train-000001.bin").unlink()
    run(build, out, resume=True)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_build_is_left_alone(build: Build, tmp_path: Path) -> None:
    run(build, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert not begin(build, tmp_path / "out", resume=True, force=False)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_a_finished_build_with_a_damaged_shard_is_not_called_finished(
    build: Build, tmp_path: Path
) -> None:
    run(build, tmp_path / "out")
    (tmp_path / "out/val-000000.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"val-000000.bin: truncated"):
        begin(build, tmp_path / "out", resume=True, force=False)


@pytest.mark.parametrize("finished", [True, False])
def test_a_resume_of_something_else_is_refused(
    build: Build, tmp_path: Path, finished: bool
) -> None:
    out = tmp_path / "out"
    assert begin(build, out, resume=False, force=False)
    if finished:
        finish(build, out)

    def refusal(other: Build) -> str:
        with pytest.raises(UsageError) as caught:
            begin(other, out, resume=True, force=False)
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


def test_folders_that_are_not_ours(build: Build, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lies inside the output folder"):
        begin(build, tmp_path, resume=False, force=True)
    assert (tmp_path / "a.jsonl").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").touch()
    with pytest.raises(UsageError, match=r"not empty\n.*resume.*force"):
        begin(build, tmp_path / "out", resume=False, force=False)
    with pytest.raises(UsageError, match="there is no build to resume"):
        begin(build, tmp_path / "out", resume=True, force=False)
    assert (tmp_path / "out/precious").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_input_empties_the_folder(build: Build, tmp_path: Path, workers: int) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "good"}\n{"text": \n')
    build = with_source(build, inputs=[*build.inputs, str(tmp_path / "c.jsonl")])
    with pytest.raises(InputError, match=r"c.jsonl:2: not valid JSON"):
        run(build, tmp_path / "out", workers)
    assert not (tmp_path / "out").exists()


def test_a_broken_input_does_not_take_what_an_earlier_attempt_made(
    build: Build, tmp_path: Path
) -> None:
    """Of three files the last is broken; the first attempt was stopped before it came to that."""
    (tmp_path / "c.jsonl").write_text('{"text": \n')
    build = with_source(build, inputs=[*build.inputs, str(tmp_path / "c.jsonl")])
    out = tmp_path / "out"
    assert begin(build, out, resume=False, force=False)
    (out / WORK).mkdir()
    (out / WORK / "unit-whole").write_bytes(b"kept")
    assert begin(build, out, resume=True, force=False)
    with pytest.raises(InputError, match=r"c.jsonl:1: not valid JSON"):
        finish(build, out)
    assert (out / WORK / "unit-whole").read_bytes() == b"kept"


def test_what_leaves_nothing_is_told_by_reason(build: Build, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": 1}\n{"text": ""}\n{"body": "b"}\n')
    alone = with_source(build, inputs=[str(tmp_path / "c.jsonl")], on_error="skip")
    with pytest.raises(InputError, match=r"no text in the inputs \(blank: 1, no text field: 2\)"):
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


def test_an_empty_side(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("\n".join(texts(100)))
    build = Build(
        sources=[Source(inputs=[str(tmp_path / "a.txt")])],
        tokenizer=byte_tokenizer,
        val_fraction=1e-9,
    )
    for kind, advice in (
        ("file", "{option:documents} paragraph"),
        ("line", "raise it: at 0.1 about 10 of them"),
    ):
        heard = Heard()
        one = with_source(build, documents=kind)
        begin(one, tmp_path / kind, resume=False, force=False)
        assert finish(one, tmp_path / kind, events=heard).of("val") == []
        assert len(heard.warnings) == 1
        assert "the validation split is empty" in heard.warnings[0]
        assert advice in heard.warnings[0]
    with pytest.raises(InputError, match="the val split is empty"):
        open_split(tmp_path / "line", "val")
    heard = Heard()
    none = dataclasses.replace(build, val_fraction=0.0)
    begin(none, tmp_path / "none", resume=False, force=False)
    finish(none, tmp_path / "none", events=heard)
    assert heard.warnings == []
    with pytest.raises(InputError, match="all 1 documents fell to validation"):
        run(dataclasses.replace(build, val_fraction=1 - 1e-12), tmp_path / "val")
    (tmp_path / "a.txt").write_text(" \n \n")
    with pytest.raises(InputError, match="there is no text in the inputs"):
        run(build, tmp_path / "blank")


def test_a_source_that_is_left_without_documents_is_told(
    tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "b.txt").write_text("")
    sources = [
        Source(name=name, inputs=[str(tmp_path / f"{name}.txt")], weight=weight)
        for name, weight in (("a", 1), ("b", 22))
    ]
    build, heard = Build(sources=sources, tokenizer=byte_tokenizer, val_fraction=0.0), Heard()
    begin(build, tmp_path / "out", resume=False, force=False)
    manifest = finish(build, tmp_path / "out", events=heard)
    assert heard.warnings == [
        "nothing of b is left to train on: its weight of 22 falls to the other sources"
    ]
    assert manifest.shares() == {"a": 1.0}
    assert manifest.sources[1].dropped == {"empty file": 1}


def test_progress_counts_everything_also_after_a_resume(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    begin(build, tmp_path / "out", resume=False, force=False)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(building, "write_report", lambda *_: (_ for _ in ()).throw(StoppedError()))
        finish(build, tmp_path / "out")
    manifest = finish(build, tmp_path / "out", events=heard)
    assert heard.tasks["tokenize"] == pytest.approx(manifest.sources[0].text_bytes / 1e6)


def test_a_large_vocabulary_is_written_in_uint32(build: Build, tmp_path: Path) -> None:
    tokens = [*byte_alphabet(), *(f"a{number}" for number in range(65_536 - 257)), "<|endoftext|>"]
    manifest = run(dataclasses.replace(build, tokenizer=Tokenizer(tokens, [])), tmp_path / "out")
    stream = open_split(tmp_path / "out", "train")
    assert (manifest.vocab_size, stream.dtype, int(stream[0:1][0])) == (65_536, "uint32", 65_535)


def test_the_report_shows_what_is_in_the_shards(build: Build, tmp_path: Path) -> None:
    manifest = run(build, tmp_path / "out")
    report = (tmp_path / "out/report.md").read_text()
    first = documents(tmp_path / "out", build.tokenizer, "val")[0]
    assert "| read | 161 |\n| dropped: blank | 1 |\n| kept | 160 |" in report
    assert f"| train | {len(manifest.of('train'))} |" in report
    assert f"## val, document 1\n\n    {first[:60].rstrip()}" in report
    assert build.inputs[0] in report
