"""The estimate of a dry run, against the build it is about."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from gptcli.corpus.build import begin, finish
from gptcli.corpus.config import Build
from gptcli.corpus.estimate import estimate
from gptcli.corpus.recipe import Source
from gptcli.errors import InputError
from gptcli.tokenizer.tokenizer import Tokenizer, byte_alphabet

# Merges, so that bytes a token differ from 1.
TOKENIZER = Tokenizer([*byte_alphabet(), "ab", "abc", "<|endoftext|>"], [("a", "b"), ("ab", "c")])


@pytest.fixture
def build(tmp_path: Path) -> Build:
    chance = random.Random(0)
    for number in range(12):
        words = chance.choices(["abc", "ab", "dog", "a"], k=20_000)
        (tmp_path / f"{number:02d}.txt").write_text(" ".join(words) + "\n")
    return Build(
        sources=[Source(inputs=[str(path) for path in sorted(tmp_path.glob("*.txt"))])],
        tokenizer=TOKENIZER,
        shard_tokens=100_000,
        val_fraction=0,
    )


def test_it_is_close_to_what_the_build_makes(build: Build, tmp_path: Path) -> None:
    guess = estimate(build, workers=2)
    begin(build, tmp_path / "out", resume=False, force=False)
    manifest = finish(build, tmp_path / "out")
    tokens = manifest.tokens("train")
    assert guess.input_files == 12
    assert guess.input_bytes == manifest.sources[0].text_bytes
    assert guess.tokens == pytest.approx(tokens, rel=0.02)
    assert guess.bytes_per_token == pytest.approx(manifest.sources[0].text_bytes / tokens, rel=0.02)
    assert guess.shards in (len(manifest.shards) - 1, len(manifest.shards))
    assert guess.disk_bytes == pytest.approx(2 * tokens, rel=0.02)
    assert guess.memory_bytes == 2 * 2 * 100_000
    assert guess.seconds is not None
    assert guess.seconds > 0


def test_what_cannot_be_known_is_none(build: Build, tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"abc " * 1000))
    packed = estimate(
        Build(sources=[Source(inputs=[str(tmp_path / "a.txt.gz")])], tokenizer=TOKENIZER), 1
    )
    assert packed.bytes_per_token == pytest.approx(2, rel=0.01)
    assert packed.input_bytes == (tmp_path / "a.txt.gz").stat().st_size
    assert (
        packed.tokens
        is packed.shards
        is packed.disk_bytes
        is packed.memory_bytes
        is packed.seconds
        is None
    )
    nothing = estimate(Build(sources=[Source(inputs=["-"])], tokenizer=TOKENIZER), 1)
    assert nothing.input_bytes is nothing.bytes_per_token is nothing.tokens is None


def test_a_broken_input_is_found(build: Build, tmp_path: Path) -> None:
    (tmp_path / "00.txt").write_bytes(b"good\n\xff\n")
    with pytest.raises(InputError, match=r"00.txt:2: not valid UTF-8"):
        estimate(build, 1)
