"""The parts of a job array and the run that ends them make the bytes of one run."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from gptcli.corpus import config, coordinator, parts
from gptcli.corpus.build import begin, finish
from gptcli.corpus.config import Build
from gptcli.corpus.parts import Part, begin_part, finish_part, missing_parts, parse_part
from gptcli.corpus.recipe import Dedup, Source
from gptcli.errors import InputError, UsageError
from gptcli.files import sha256
from gptcli.shards.manifest import Manifest
from gptcli.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def build(tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Two sources of many units: lines that can be cut by bytes, and a compressed file, read in
    stripes, whose duplicates go.
    """
    monkeypatch.setattr(config, "UNIT_CHARACTERS", (2000, 2000))
    chance = random.Random(1)
    lines = [
        f"document {number} " + " ".join(str(chance.random()) for _ in range(chance.randrange(30)))
        for number in range(120)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    again = "".join(json.dumps({"text": text}) + "\n" for text in [*lines[:80], *lines[20:60]])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(again.encode(), mtime=0))
    sources = [
        Source(name="plain", inputs=[str(tmp_path / "a.jsonl")]),
        Source(name="compared", inputs=[str(tmp_path / "b.jsonl.gz")], dedup=Dedup()),
    ]
    return Build(sources=sources, tokenizer=byte_tokenizer, val_fraction=0.2, shard_tokens=5000)


def ended(build: Build, out: Path) -> Manifest:
    assert begin(build, out, resume=out.exists(), force=False)
    return finish(build, out)


def contents(folder: Path) -> dict[str, str]:
    """Every file's SHA-256, but for the record, which says in how many parts a build was read."""
    return {path.name: sha256(path) for path in folder.iterdir() if path.name != "resume.json"}


@pytest.fixture
def expected(build: Build, tmp_path: Path) -> dict[str, str]:
    manifest = ended(build, tmp_path / "one")
    assert len(manifest.shards) > 5
    assert manifest.sources[1].dropped["duplicate"] >= 40
    return contents(tmp_path / "one")


@pytest.mark.parametrize("of", [1, 3, 5])
def test_parts_in_any_order_make_the_bytes_of_one_run(
    build: Build, tmp_path: Path, expected: dict[str, str], of: int
) -> None:
    out = tmp_path / "parts"
    for number in [*range(of, 0, -1), 1]:  # the first once more, which finds all of it there
        begin_part(build, out, Part(number, of))
        finish_part(build, out, Part(number, of))
    assert missing_parts(out, of) == []
    ended(build, out)
    assert contents(out) == expected
    assert not begin(build, out, resume=True, force=False)


def test_the_last_run_reads_nothing(
    build: Build, tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "parts"
    read = 0
    for number in (1, 2):
        begin_part(build, out, Part(number, 2))
        read += finish_part(build, out, Part(number, 2)).read
    assert read == 240
    monkeypatch.setattr(
        "gptcli.corpus.worker_tasks.documents_of",
        lambda *_: pytest.fail("documents are read again"),
    )
    ended(build, out)
    assert contents(out) == expected


@pytest.mark.parametrize("stop", ["read_one", "write_json"])
def test_a_part_that_was_stopped_goes_on(
    build: Build,
    tmp_path: Path,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    stop: str,
) -> None:
    out, part = tmp_path / "parts", Part(1, 2)
    begin_part(build, out, part)
    calls = 0
    original: Callable[..., object] = getattr(parts, stop)

    def failing(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == (3 if stop == "read_one" else 1):
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts, stop, failing)
        finish_part(build, out, part)
    assert missing_parts(out, 2) == [1, 2]
    for number in (2, 1):
        begin_part(build, out, Part(number, 2))
        finish_part(build, out, Part(number, 2))
    ended(build, out)
    assert contents(out) == expected


def test_the_last_run_waits_for_all_parts(build: Build, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    for number in (1, 3):
        begin_part(build, out, Part(number, 4))
        finish_part(build, out, Part(number, 4))
    with pytest.raises(UsageError, match=r"of 4 parts 2, 4 are not done\n.*part 2/4"):
        begin(build, out, resume=True, force=False)
    with pytest.raises(UsageError, match="parts was 4, now 5"):
        begin_part(build, out, Part(2, 5))
    with pytest.raises(UsageError, match="not empty"):
        begin(build, out, resume=False, force=False)


def test_folders_and_inputs_that_cannot_be_shared(build: Build, tmp_path: Path) -> None:
    begin(build, tmp_path / "whole", resume=False, force=False)
    with pytest.raises(UsageError, match="parts was None, now 2"):
        begin_part(build, tmp_path / "whole", Part(1, 2))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    with pytest.raises(UsageError, match="not empty"):
        begin_part(build, tmp_path / "full", Part(1, 2))
    with pytest.raises(UsageError, match="lies inside the output folder"):
        begin_part(build, tmp_path, Part(1, 2))
    stdin = Build(sources=[Source(inputs=["-"])], tokenizer=build.tokenizer)
    with pytest.raises(UsageError, match="standard input cannot be read in parts"):
        begin_part(stdin, tmp_path / "out", Part(1, 2))


def test_a_broken_input_leaves_the_other_parts_alone(build: Build, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write("no json\n")
    begin_part(build, out, Part(1, 1))
    with pytest.raises(InputError, match="not valid JSON"):
        finish_part(build, out, Part(1, 1))
    assert list((out / coordinator.WORK).glob("unit-*"))


def test_names_of_parts() -> None:
    assert [parse_part(text) for text in ("1/1", "3/16")] == [Part(1, 1), Part(3, 16)]
    for text in ("0/4", "5/4", "3", "a/b", "-1/4", "1/4/2", ""):
        with pytest.raises(UsageError, match="is no part"):
            parse_part(text)
