"""A configuration is checked before anything is read, and a changed one is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gptcli.corpus import config
from gptcli.corpus.config import CHUNK_CHARACTERS, BuildConfig, check_unchanged
from gptcli.corpus.input_search import find_inputs
from gptcli.corpus.recipe import Comparison, DedupConfig, SourceConfig
from gptcli.errors import InputError, UsageError
from gptcli.tokenizer.tokenizer import Tokenizer, byte_alphabet


@pytest.fixture
def build(tmp_path: Path, byte_tokenizer: Tokenizer) -> BuildConfig:
    (tmp_path / "a.txt").write_text("text " * 20)
    return BuildConfig(
        sources=[SourceConfig(inputs=[str(tmp_path / "a.txt")])], tokenizer=byte_tokenizer
    )


def test_invalid_values_are_errors(build: BuildConfig) -> None:
    with pytest.raises(InputError, match=r"tokenizer: the tokenizer has no <\|endoftext\|>"):
        dataclasses.replace(build, tokenizer=Tokenizer([*byte_alphabet()], []))
    for value in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match="val_fraction"):
            dataclasses.replace(build, val_fraction=value)
    for tokens in (0, -5, 2**31):
        with pytest.raises(UsageError, match="shard_tokens"):
            dataclasses.replace(build, shard_tokens=tokens)
    with pytest.raises(UsageError, match=r"documents: unknown kind of document 'lines'\n.*line"):
        dataclasses.replace(build.sources[0], documents="lines")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"unknown extractor 'trafilatur'\n.*trafilatura"):
        dataclasses.replace(build.sources[0], extractor="trafilatur")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"encoder: unknown encoder 'gigatokens'\n.*gigatoken"):
        dataclasses.replace(build, encoder="gigatokens")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no evaluation files are given"):
        dataclasses.replace(
            build, sources=[dataclasses.replace(build.sources[0], decontaminate=True)]
        )
    with pytest.raises(UsageError, match="workers"):
        build.worker_count(0)


def test_small_inputs_are_read_by_fewer_workers_unless_asked(
    build: BuildConfig, tmp_path: Path
) -> None:
    def workers(*names: str, size: int, **stages: Any) -> int:
        for name in names:
            with open(tmp_path / name, "wb") as file:
                file.truncate(size)  # a sparse file takes no space
        inputs = [str(tmp_path / name) for name in names]
        source = dataclasses.replace(build.sources[0], inputs=inputs, **stages)
        return dataclasses.replace(build, sources=[source]).default_workers(8)

    assert workers("one.jsonl.zst", size=50_000_000) == 1
    assert workers("one.jsonl.zst", size=500_000_000) == 8
    assert workers("one.jsonl", size=10_000_000) == 1
    assert workers("one.jsonl", size=80_000_000) == 2
    assert workers("one.jsonl", size=500_000_000) == 8
    assert workers("one.jsonl", size=10_000_000, dedup=DedupConfig()) == 8
    assert workers("one.warc", size=10_000_000) == 8
    assert workers("one.jsonl.zst", "two.jsonl.zst", size=30_000_000) == 8


def test_compared_sources_share_one_dedup_method(build: BuildConfig) -> None:
    one, two = (dataclasses.replace(build.sources[0], name=name) for name in ("one", "two"))
    by = dataclasses.replace(one, dedup=DedupConfig(method="paper", against=["two"]))
    assert (
        dataclasses.replace(build, sources=[by, two]).comparisons()
        == [Comparison("paper", False)] * 2
    )
    with pytest.raises(UsageError, match="two would be compared by two methods"):
        dataclasses.replace(build, sources=[by, dataclasses.replace(two, dedup=DedupConfig())])


def test_chunk_size_and_worker_count_depend_on_input_size(
    build: BuildConfig, tmp_path: Path
) -> None:
    assert (build.chunk_characters(), build.worker_count(8)) == (CHUNK_CHARACTERS[0], 1)
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(1024 * 6_000_000)  # a sparse file takes no space
    assert (build.chunk_characters(), build.worker_count(8)) == (6_000_000, 8)
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(1 << 40)
    assert build.chunk_characters() == CHUNK_CHARACTERS[1]
    stdin = dataclasses.replace(build, sources=[SourceConfig(inputs=["-"])])
    assert (stdin.input_bytes(), stdin.chunk_characters(), stdin.worker_count(8)) == (
        None,
        CHUNK_CHARACTERS[0],
        1,
    )


def test_the_record_of_another_build_is_refused(build: BuildConfig, tmp_path: Path) -> None:
    check_unchanged(build.resume_record(), build.resume_record(), tmp_path)
    other = dataclasses.replace(build, seed=3, val_fraction=0.5)
    with pytest.raises(
        UsageError, match=r"val_fraction was 0.001, now 0.5; seed was 0, now 3\n.*force"
    ):
        check_unchanged(build.resume_record(), other.resume_record(), tmp_path)
    named = dataclasses.replace(
        build, sources=[dataclasses.replace(build.sources[0], name="web", weight=2.0)]
    )
    assert named.resume_record()["web.weight"] == 2.0
    with pytest.raises(UsageError, match="is inside the output folder"):
        build.check_inputs_outside(tmp_path)
    for name in ("a.jsonl", "deep/a.jsonl"):
        inside = dataclasses.replace(build, text_out=tmp_path / "out" / name)
        with pytest.raises(UsageError, match="inside the folder of the shards"):
            inside.check_inputs_outside(tmp_path / "out")
    dataclasses.replace(build, text_out=tmp_path / "a.jsonl").check_inputs_outside(tmp_path / "out")


def test_what_is_left_out_and_texts_to_be_cut_are_told(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "b.md", "c.jsonl"):
        (tmp_path / name).write_text("words " * 20)
    monkeypatch.setattr(config, "MAX_DOCUMENT_BYTES", 100)
    found = find_inputs([str(tmp_path)])
    whole = BuildConfig(sources=[SourceConfig(inputs=found)], tokenizer=byte_tokenizer)
    left_out, cut = whole.notices()
    assert left_out.startswith("left out of the inputs: 1 .md (")
    assert cut.startswith(f"{tmp_path / 'a.txt'}: a text of more than ")
    lines = SourceConfig(inputs=[str(tmp_path / "a.txt")], documents="line")
    assert BuildConfig(sources=[lines], tokenizer=byte_tokenizer).notices() == []
