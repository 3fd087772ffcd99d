"""What a build is asked for is checked before anything is read, and two builds are told apart by
their records.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gptcli.corpus.config import UNIT_CHARACTERS, Build, refuse_changes
from gptcli.corpus.recipe import Dedup, Source
from gptcli.errors import InputError, UsageError
from gptcli.tokenizer.tokenizer import Tokenizer, byte_alphabet


@pytest.fixture
def build(tmp_path: Path, byte_tokenizer: Tokenizer) -> Build:
    (tmp_path / "a.txt").write_text("text " * 20)
    return Build(sources=[Source(inputs=[str(tmp_path / "a.txt")])], tokenizer=byte_tokenizer)


def test_settings_that_cannot_be_met(build: Build) -> None:
    with pytest.raises(InputError, match=r"tokenizer: the tokenizer has no <\|endoftext\|>"):
        dataclasses.replace(build, tokenizer=Tokenizer([*byte_alphabet()], []))
    for value in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match="val_fraction"):
            dataclasses.replace(build, val_fraction=value)
    for tokens in (0, -5, 2**31):
        with pytest.raises(UsageError, match="shard_tokens"):
            dataclasses.replace(build, shard_tokens=tokens)
    with pytest.raises(UsageError, match=r"documents: unknown kind of document 'lines'\n.*line"):
        dataclasses.replace(build.sources[0], documents="lines")
    with pytest.raises(UsageError, match=r"unknown extractor 'trafilatur'\n.*trafilatura"):
        dataclasses.replace(build.sources[0], extractor="trafilatur")
    with pytest.raises(UsageError, match=r"encoder: unknown encoder 'gigatokens'\n.*gigatoken"):
        dataclasses.replace(build, encoder="gigatokens")
    with pytest.raises(UsageError, match="decontaminated, but against nothing"):
        dataclasses.replace(
            build, sources=[dataclasses.replace(build.sources[0], decontaminate=True)]
        )
    with pytest.raises(UsageError, match="workers"):
        build.workers(0)


def test_methods_of_sources_that_are_compared(build: Build) -> None:
    one, two = (dataclasses.replace(build.sources[0], name=name) for name in ("one", "two"))
    by = dataclasses.replace(one, dedup=Dedup(method="paper", against=["two"]))
    assert dataclasses.replace(build, sources=[by, two]).methods() == ["paper", "paper"]
    with pytest.raises(UsageError, match="two would be compared by two methods"):
        dataclasses.replace(build, sources=[by, dataclasses.replace(two, dedup=Dedup())])


def test_units_and_workers_follow_the_size(build: Build, tmp_path: Path) -> None:
    assert (build.unit_characters(), build.workers(8)) == (UNIT_CHARACTERS[0], 1)
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(1024 * 6_000_000)  # a hole: it takes no room
    assert (build.unit_characters(), build.workers(8)) == (6_000_000, 8)
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(1 << 40)
    assert build.unit_characters() == UNIT_CHARACTERS[1]
    stdin = dataclasses.replace(build, sources=[Source(inputs=["-"])])
    assert (stdin.input_bytes(), stdin.unit_characters(), stdin.workers(8)) == (
        None,
        UNIT_CHARACTERS[0],
        1,
    )


def test_records_of_other_builds_are_refused(build: Build, tmp_path: Path) -> None:
    refuse_changes(build.record(), build.record(), tmp_path)
    other = dataclasses.replace(build, seed=3, val_fraction=0.5)
    with pytest.raises(
        UsageError, match=r"val_fraction was 0.001, now 0.5; seed was 0, now 3\n.*force"
    ):
        refuse_changes(build.record(), other.record(), tmp_path)
    named = dataclasses.replace(
        build, sources=[dataclasses.replace(build.sources[0], name="web", weight=2.0)]
    )
    assert named.record()["web.weight"] == 2.0
    with pytest.raises(UsageError, match="lies inside the output folder"):
        build.refuse_inputs_in(tmp_path)
